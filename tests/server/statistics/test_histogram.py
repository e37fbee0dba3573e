"""Percentiles from buckets."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.statistics.histogram import RELATIVE_ERROR, DurationHistogram

SHARES = (0.01, 0.5, 0.9, 0.95, 0.99, 1.0)
DURATIONS = st.lists(st.floats(min_value=1e-6, max_value=1e5), min_size=1, max_size=300)


def histogram(values: list[float]) -> DurationHistogram:
    made = DurationHistogram()
    for value in values:
        made.record(value)
    return made


@given(DURATIONS)
def test_percentiles_are_within_the_error_of_the_value_of_that_rank(values: list[float]) -> None:
    """Whatever is counted, over the eleven decades that are told apart."""
    ordered = sorted(values)
    for share, found in zip(SHARES, histogram(values).percentiles(SHARES), strict=True):
        exact = ordered[math.ceil(share * len(ordered)) - 1]
        # The last digits are rounding's.
        assert abs(found - exact) <= exact * (RELATIVE_ERROR + 1e-9)


@given(DURATIONS, DURATIONS)
def test_adding_is_as_counting_both(one: list[float], other: list[float]) -> None:
    """Parts of a window add up without loss."""
    added, counted = histogram(one), histogram(one + other)
    added.add(histogram(other))
    assert added.percentiles(SHARES) == counted.percentiles(SHARES)
    assert (added.count, added.max_s) == (counted.count, counted.max_s)
    assert added.mean_s == pytest.approx(counted.mean_s)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-9, 1e9])
def test_values_out_of_range_are_counted_at_its_ends(value: float) -> None:
    """A clock that steps back, or a day-long request, breaks nothing."""
    made = histogram([value, value])
    (found,) = made.percentiles([0.5])
    assert made.count == 2
    assert 0 <= found <= 1.01e5


def test_nothing_counted() -> None:
    """Zeros, not an error."""
    empty = DurationHistogram()
    assert empty.percentiles(SHARES) == [0.0] * len(SHARES)
    assert (empty.mean_s, empty.max_s) == (0.0, 0.0)
