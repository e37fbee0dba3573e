"""The seam between the batcher and whatever runs a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shoal_server.errors import ShoalError

Row = npt.NDArray[np.float32]
"""float32[D]: the vector of one item."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gives back."""

    rows: Sequence[Row | ShoalError]
    """By the batch's items: a vector, or what is wrong with that item."""
    seconds: float
    """How long the run took."""
    computed_tokens: int
    """Of the items, and whatever padding the model computed as if it were tokens."""


class Backend(Protocol):
    """A model opened on one device; called in worker threads, several at once."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda:N`."""

    @property
    def padding_free(self) -> bool:
        """Whether runs from now on compute no tokens for padding."""

    @property
    def wide_speedup(self) -> float:
        """How much faster a wide run is than a narrow one; 1 where there is none."""

    def run(
        self, sequences: Sequence[Sequence[int]], pooled: Sequence[bool], *, wide: bool = False
    ) -> RunResult:
        """Give each token sequence its vector.

        Args:
            sequences: Token ids, of different lengths.
            pooled: For each, whether the vector before normalisation is wanted.
            wide: Use all of the device's threads; no other run goes on meanwhile.

        Raises:
            InferenceFailed: The run failed as a whole.
        """

    def close(self) -> None:
        """Free the model's memory; no run is going on."""
