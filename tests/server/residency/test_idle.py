"""How long an idle session stays: whose word counts, and time-outs that adapt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.residency.idle import Rhythm, adapted_s, idle_limit_s

SECONDS = st.floats(1, 1e6)


@pytest.mark.parametrize(
    ("timeout_s", "keep_alive_s", "expected"),
    [
        (1800, None, 1800),
        (0, None, None),
        (1800, 5, 5),
        (1800, 0, 0),
        (1800, -1, None),
        (0, 5, 5),
        (0, 0, 0),
    ],
)
def test_a_requests_word_comes_before_what_was_set(
    timeout_s: float, keep_alive_s: float | None, expected: float | None
) -> None:
    """Zero of a setting and less than zero of a request mean for ever; zero of a request, now."""
    assert idle_limit_s(timeout_s, keep_alive_s) == expected


@pytest.mark.parametrize(("timeout_s", "keep_alive_s"), [(0, None), (1800, -1), (1800, 7)])
def test_what_is_for_ever_or_asked_for_does_not_adapt(
    timeout_s: float, keep_alive_s: float | None
) -> None:
    """Only a time-out that was set follows how often the model is asked for."""
    expected = idle_limit_s(timeout_s, keep_alive_s)
    assert idle_limit_s(timeout_s, keep_alive_s, mean_gap_s=400) == expected


@pytest.mark.parametrize(
    ("mean_gap_s", "expected_s"),
    [
        (1, 450),  # every second: gone for a quarter of the time-out means it has ended
        (150, 450),
        (300, 900),
        (1000, 3000),
        (3000, 7200),  # within reach: kept as long as a time-out may be
        (7200, 7200),
        (7201, 450),  # asked for too seldom to be worth keeping
    ],
)
def test_an_adaptive_time_out_waits_for_the_next_use(mean_gap_s: float, expected_s: float) -> None:
    """Three gaps, within a quarter and four times of what was set (1800)."""
    assert adapted_s(1800, mean_gap_s) == expected_s


@given(SECONDS, SECONDS)
def test_an_adaptive_time_out_stays_near_the_one_that_was_set(
    timeout_s: float, mean_gap_s: float
) -> None:
    """Whatever the rhythm, an operator's word bounds it both ways."""
    assert timeout_s / 4 <= adapted_s(timeout_s, mean_gap_s) <= timeout_s * 4


def test_a_burst_counts_as_one_use() -> None:
    """What lies between bursts says when the next one comes, not what lies within."""
    rhythm = Rhythm(last_use_s=0)
    for burst_s in (600, 1200, 1800):
        for request in range(100):
            rhythm.used(burst_s + request * 0.1, timeout_s=1800)
    assert rhythm.mean_gap_s == pytest.approx(600, abs=10)


def test_the_rhythm_follows_a_change() -> None:
    """A model that is asked for more often from now on is soon known to be."""
    rhythm = Rhythm(last_use_s=0)
    now_s = 0.0
    for gap_s in [1000] * 10 + [100] * 20:
        now_s += gap_s
        rhythm.used(now_s, timeout_s=1800)
    assert rhythm.mean_gap_s == pytest.approx(100, abs=5)


def test_of_one_use_nothing_is_known() -> None:
    """A first request says nothing of when the second comes."""
    assert Rhythm(last_use_s=5).mean_gap_s is None
