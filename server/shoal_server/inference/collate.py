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
    shape = len(sequences), longest(sequences)
    ids, mask = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
    collate_into(ids, mask, sequences, pad_id)
    return ids, mask


def collate_into(ids: Int64, mask: Int64, sequences: Sequence[Sequence[int]], pad_id: int) -> None:
    """Write sequences and their attention mask into rectangles that are large enough.

    Args:
        ids: int64[B, T]; rows beyond the sequences become padding.
        mask: int64[B, T]; there, of no token.
        sequences: At most B, of at most T token ids each.
        pad_id: As in `collate`.
    """
    ids.fill(pad_id)
    mask.fill(0)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1


def longest(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens of the longest sequence; 1 at least: graphs are not made for T = 0."""
    return max(1, *map(len, sequences))
