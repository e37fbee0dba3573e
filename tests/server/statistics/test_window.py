"""The sliding window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.statistics.window import PARTS, SlidingWindow
from tests.server.clock import Clock

WINDOW_S = 60.0
STEP_S = WINDOW_S / PARTS


class Times:
    """When events were."""

    def __init__(self, *times_s: float) -> None:
        self.times_s = list(times_s)

    def add(self, other: Times) -> None:
        self.times_s += other.times_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def new_window(clock: Clock) -> SlidingWindow[Times]:
    return SlidingWindow(WINDOW_S, Times, clock)


def recent(window: SlidingWindow[Times]) -> list[float]:
    return [time_s for part in window.recent() for time_s in part.times_s]


def of_all_time(window: SlidingWindow[Times]) -> list[float]:
    return [time_s for part in window.all() for time_s in part.times_s]


@given(st.lists(st.floats(min_value=0, max_value=3 * WINDOW_S), max_size=50))
def test_recent_is_exactly_what_happened_in_the_time_it_says(waits_s: list[float]) -> None:
    """And nothing is ever lost from, or counted twice in, all time."""
    clock = Clock()
    window = new_window(clock)
    happened = []
    for wait_s in waits_s:
        clock.now_s += wait_s
        window.newest().times_s.append(clock.now_s)
        happened.append(clock.now_s)
        assert of_all_time(window) == happened
        since_s = clock.now_s - window.recent_s()
        # Within rounding of the border an event may be on either side.
        inside = {each for each in happened if each > since_s + 1e-6}
        near = {each for each in happened if each >= since_s - 1e-6}
        assert inside <= set(recent(window)) <= near


def test_recent_covers_the_window_less_a_step_at_most(clock: Clock) -> None:
    """Once it has run for that long; before, all the time there was."""
    window = new_window(clock)
    clock.now_s += 7
    assert window.recent_s() == pytest.approx(7)
    for _ in range(200):
        clock.now_s += 1.7
        if window.since_start_s() >= WINDOW_S:
            assert WINDOW_S - STEP_S - 1e-6 <= window.recent_s() <= WINDOW_S + 1e-6


def test_what_is_not_recent_any_more_is_past_without_another_event(clock: Clock) -> None:
    """Nobody has to count for the window to slide."""
    window = new_window(clock)
    window.newest().times_s.append(1.0)
    clock.now_s += 10 * WINDOW_S
    assert (recent(window), of_all_time(window)) == ([], [1.0])


def test_memory_does_not_grow_with_time(clock: Clock) -> None:
    """There are never more parts than the window has."""
    window = new_window(clock)
    for _ in range(10 * PARTS):
        clock.now_s += STEP_S
        window.newest().times_s.append(clock.now_s)
        assert len(list(window.recent())) <= PARTS
