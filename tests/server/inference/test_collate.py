"""From sequences to rectangles."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.inference.collate import collate, collate_into, longest

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=12)


@given(st.lists(IDS, min_size=1, max_size=8), st.integers(0, 100))
def test_every_sequence_is_where_its_mask_says(sequences: list[list[int]], pad_id: int) -> None:
    """Ids at the left under ones, padding at the right under zeros, as wide as the longest."""
    ids, mask = collate(sequences, pad_id)
    width = max(1, max(map(len, sequences)))
    assert ids.shape == mask.shape == (len(sequences), width)
    assert ids.dtype == mask.dtype == np.int64
    for row, ones, sequence in zip(ids.tolist(), mask.tolist(), sequences, strict=True):
        padding = width - len(sequence)
        assert row == sequence + [pad_id] * padding
        assert ones == [1] * len(sequence) + [0] * padding


def test_a_sequence_without_ids_takes_one_place() -> None:
    """Graphs are not made for a width of 0: an empty text is one place of padding."""
    ids, mask = collate([[]], 7)
    assert (ids.tolist(), mask.tolist()) == ([[7]], [[0]])


@given(st.lists(IDS, min_size=1, max_size=8), st.integers(0, 3), st.integers(0, 3))
def test_a_larger_rectangle_is_filled_up_with_padding(
    sequences: list[list[int]], more_rows: int, more_places: int
) -> None:
    """What was there before is gone; the rest is as in the rectangle that just holds them."""
    rows, places = len(sequences), longest(sequences)
    ids = np.full((rows + more_rows, places + more_places), 99, dtype=np.int64)
    mask = np.full_like(ids, 99)
    collate_into(ids, mask, sequences, 7)
    expected_ids, expected_mask = collate(sequences, 7)
    np.testing.assert_array_equal(ids[:rows, :places], expected_ids)
    np.testing.assert_array_equal(mask[:rows, :places], expected_mask)
    assert (ids[rows:] == 7).all() and (ids[:, places:] == 7).all()
    assert mask.sum() == expected_mask.sum()
