"""From token sequences of different lengths to the rectangles a graph takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def collate(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Int64, Int64]:
    """Pad on the right to the longest sequence.

    Args:
        sequences: B sequences of token ids; an empty one becomes padding alone (a
            tokenizer without special tokens makes it of an empty text).
        pad_id: What stands in padded places; the mask hides it.

    Returns:
        Ids int64[B, T] and attention mask int64[B, T], 1 at tokens, 0 at padding.
    """
    # Graphs are not made for T = 0.
    longest = max(1, *map(len, sequences))
    ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask
