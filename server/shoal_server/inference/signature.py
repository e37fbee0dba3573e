"""That a graph is the one that its manifest describes: inputs, outputs, size of the vectors.

A manifest can be edited, or copied beside another model's graph. Served like that, callers
would be told sizes that are not those of their vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shoal_server.errors import ModelFileCorrupt
from shoal_server.inference.onnx_session import brief, kind_of_failure
from shoal_server.registry.manifest import (
    ATTENTION_MASK,
    EMBEDDING,
    INPUT_IDS,
    POOLED,
    POSITION_IDS,
    TOKEN_TYPE_IDS,
    VERSION_FILE,
    VersionManifest,
)

_NEEDED = {INPUT_IDS, ATTENTION_MASK}
_KNOWN = _NEEDED | {TOKEN_TYPE_IDS, POSITION_IDS}
_INT64, _FLOAT32 = "tensor(int64)", "tensor(float)"


class Tensor(Protocol):
    """An input or output of a graph, as ONNX Runtime describes it."""

    @property
    def name(self) -> str:
        """As the graph has it."""

    @property
    def type(self) -> str:
        """Such as `tensor(float)`."""

    @property
    def shape(self) -> list[int | str | None]:
        """A number for what is fixed."""


class Session(Protocol):
    """An open graph, as far as it describes itself."""

    def get_inputs(self) -> list[Tensor]:
        """What it takes."""

    def get_outputs(self) -> list[Tensor]:
        """What it gives."""

    def run(
        self, names: Sequence[str], feeds: Mapping[str, npt.NDArray[np.int64]]
    ) -> Sequence[npt.NDArray[np.float32]]:
        """The outputs of these names."""


def check_signature(session: Session, manifest: VersionManifest) -> None:
    """Refuse a graph that is not the one its manifest describes.

    Runs one token where the graph does not say how large its vectors are.

    Args:
        session: Of the graph.
        manifest: Of the graph's version.

    Raises:
        ModelFileCorrupt: They contradict each other; says what either says.
        ModelLoadFailed: The graph can not run at all.
    """
    inputs = {each.name: each for each in session.get_inputs()}
    outputs = {each.name: each for each in session.get_outputs()}
    if missing := sorted(_NEEDED - inputs.keys()) + sorted({EMBEDDING} - outputs.keys()):
        raise ModelFileCorrupt(f"the graph has no {' and no '.join(missing)}")
    if unknown := sorted(inputs.keys() - _KNOWN):
        raise ModelFileCorrupt(f"the graph has inputs that nobody feeds: {', '.join(unknown)}")
    typed = {**dict.fromkeys(inputs, _INT64), EMBEDDING: _FLOAT32}
    for name, wanted in typed.items():
        found = (inputs.get(name) or outputs[name]).type
        if found != wanted:
            raise ModelFileCorrupt(f"the graph's {name} is {found}, not {wanted}")
    # Only a graph that ends with L2 gives the vector from before it.
    if manifest.normalized != (POOLED in outputs):
        raise _contradiction(
            "normalized", str(manifest.normalized).lower(), str(POOLED in outputs).lower()
        )
    shape = outputs[EMBEDDING].shape
    if len(shape) != 2 or not isinstance(shape[1], int):
        one_token = {name: np.ones((1, 1), dtype=np.int64) for name in inputs}
        # The token 0, at the place 0.
        zero = {name: np.zeros((1, 1), dtype=np.int64) for name in inputs if name != ATTENTION_MASK}
        try:
            shape = list(session.run([EMBEDDING], {**one_token, **zero})[0].shape)
        except Exception as error:  # ONNX Runtime raises many unrelated types
            raise kind_of_failure(error)(f"the graph can not run: {brief(error)}") from error
    dimensions = shape[-1]
    if dimensions != manifest.dimensions:
        raise _contradiction("dimensions", str(manifest.dimensions), str(dimensions))


def _contradiction(field: str, written: str, found: str) -> ModelFileCorrupt:
    return ModelFileCorrupt(
        f"{VERSION_FILE} says {field} = {written}, the graph itself says {found}: prepare the "
        "version again",
        metadata={"file": VERSION_FILE, "field": field, "value": written, "graph": found},
    )
