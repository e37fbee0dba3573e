"""Requests by the hour of the week, older weeks counting less."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.usage import history as module
from shoal_server.usage.history import (
    BELIEVED_AFTER,
    DECAY,
    HOURS_PER_WEEK,
    Pattern,
    UsageHistory,
    hour_of,
    hour_of_week,
)
from tests.server.clock import Clock

MONDAY_NINE = hour_of(datetime(2026, 11, 16, 9, tzinfo=UTC).timestamp())


def asked_weekly(weeks: int, times: int = 1, *, last: int = MONDAY_NINE) -> Pattern:
    """A pattern of so many weeks of the same, which end with `last`."""
    hours = [last - HOURS_PER_WEEK * week for week in reversed(range(weeks))]
    pattern = Pattern(hours[0], hours[0])
    for hour in hours:
        for _ in range(times):
            pattern.asked(hour)
    return pattern


@pytest.mark.parametrize(
    ("day", "hour", "expected"), [(16, 0, 0), (16, 9, 9), (17, 0, 24), (22, 23, 167), (23, 0, 0)]
)
def test_a_week_begins_on_monday_in_utc(day: int, hour: int, expected: int) -> None:
    """The 16th of November 2026 is a Monday."""
    moment = datetime(2026, 11, day, hour, 59, 59, tzinfo=UTC)
    assert hour_of_week(hour_of(moment.timestamp())) == expected


def test_the_weeks_before_count_less_and_less() -> None:
    """After three weeks of ten requests: 1 + DECAY + DECAY² of each."""
    weeks, used, requests = asked_weekly(3, 10).before(MONDAY_NINE + HOURS_PER_WEEK)
    assert weeks == pytest.approx(1 + DECAY + DECAY**2)
    assert used == pytest.approx(weeks)
    assert requests == pytest.approx(10 * weeks)


def test_this_weeks_requests_are_not_of_the_weeks_before() -> None:
    """In an hour that goes on, and in one that has just begun, the past is the same."""
    pattern = asked_weekly(2, 10)
    before = pattern.before(MONDAY_NINE + HOURS_PER_WEEK)
    pattern.asked(MONDAY_NINE + HOURS_PER_WEEK)
    assert pattern.before(MONDAY_NINE + HOURS_PER_WEEK) == before


def test_a_week_without_requests_counts_too() -> None:
    """As a week in which the model was not asked for."""
    pattern = asked_weekly(1, 10)
    weeks, used, requests = pattern.before(MONDAY_NINE + 3 * HOURS_PER_WEEK)
    assert weeks == pytest.approx(1 + DECAY + DECAY**2)
    assert used == pytest.approx(DECAY**2)
    assert requests == pytest.approx(10 * DECAY**2)


def test_an_hour_before_the_first_request_is_no_week_without() -> None:
    """Nothing is known of a model that is new."""
    assert asked_weekly(1).before(MONDAY_NINE + HOURS_PER_WEEK - 1) == (0, 0, 0)


def test_a_clock_that_goes_back_spoils_nothing() -> None:
    """Its requests count, in the hour that came last."""
    pattern = asked_weekly(2, 10)
    pattern.asked(MONDAY_NINE - HOURS_PER_WEEK)
    _, used, requests = pattern.before(MONDAY_NINE + HOURS_PER_WEEK)
    assert [used, requests] == pytest.approx([1 + DECAY, 11 + 10 * DECAY])


def test_means_are_of_the_weeks_before() -> None:
    """Ten requests in each of three weeks are ten a week; a fourth without takes its share."""
    pattern = asked_weekly(3, 10)
    now = MONDAY_NINE + 1
    assert pattern.mean_requests(now)[9] == pytest.approx(10)
    later = pattern.mean_requests(now + HOURS_PER_WEEK)
    expected = 10 * (DECAY + DECAY**2 + DECAY**3) / (1 + DECAY + DECAY**2 + DECAY**3)
    assert later[9] == pytest.approx(expected)
    assert sum(later) == later[9]


def test_an_hour_that_goes_on_does_not_spoil_its_mean() -> None:
    """It counts when it is over; only in the first week there is nothing else to tell."""
    pattern = asked_weekly(3, 10)
    pattern.asked(MONDAY_NINE + HOURS_PER_WEEK)
    assert pattern.mean_requests(MONDAY_NINE + HOURS_PER_WEEK)[9] == pytest.approx(10)
    assert asked_weekly(1, 4).mean_requests(MONDAY_NINE)[9] == 4


@given(st.lists(st.integers(0, 6 * HOURS_PER_WEEK), min_size=1, max_size=80))
def test_adding_up_as_it_happens_is_adding_up_at_the_end(offsets: list[int]) -> None:
    """The sums are those of the definition, for every hour of the next week."""
    hours = sorted(MONDAY_NINE + offset for offset in offsets)
    pattern = Pattern(hours[0], hours[0])
    for hour in hours:
        pattern.asked(hour)
    counts = Counter(hours)
    for hour in range(hours[-1] + 1, hours[-1] + HOURS_PER_WEEK):
        before = range(hour - HOURS_PER_WEEK, hours[0] - 1, -HOURS_PER_WEEK)
        weights = [(DECAY**age, counts[then]) for age, then in enumerate(before)]
        expected = (
            sum(weight for weight, _ in weights),
            sum(weight for weight, count in weights if count),
            sum(weight * count for weight, count in weights),
        )
        assert pattern.before(hour) == pytest.approx(expected)


@given(st.lists(st.integers(0, 6 * HOURS_PER_WEEK), min_size=1, max_size=80))
def test_a_record_keeps_a_pattern(offsets: list[int]) -> None:
    """Through JSON, within the digits that are kept."""
    hours = sorted(MONDAY_NINE + offset for offset in offsets)
    pattern = Pattern(hours[0], hours[0])
    for hour in hours:
        pattern.asked(hour)
    again = Pattern.from_record(json.loads(json.dumps(pattern.to_record())))
    assert (again.first, again.last) == (pattern.first, pattern.last)
    for hour in range(hours[-1], hours[-1] + HOURS_PER_WEEK):
        assert again.before(hour) == pytest.approx(pattern.before(hour), abs=2e-3)


class Served:
    """A history whose model was asked for ten times at nine on each of four Mondays."""

    def __init__(self) -> None:
        self.clock = Clock(0.0)
        self.history = UsageHistory(self.clock)
        self.history.restore({"a": asked_weekly(4, 10)})

    def ask(self, name: str, hour: int, times: int = 1) -> None:
        self.clock.now_s = hour * 3600.0
        for _ in range(times):
            self.history.asked(name)

    def expected(self, hour: int) -> tuple[float, float, float]:
        return self.history.patterns["a"].before(hour)


@pytest.mark.parametrize("ahead_weeks", [1, 10, 5000])
def test_a_clock_that_was_weeks_ahead_leaves_no_trace(ahead_weeks: int) -> None:
    """At once the past is what it was; hours later counting goes on as if nothing had been."""
    served, now = Served(), MONDAY_NINE + HOURS_PER_WEEK
    before = served.expected(now)
    served.ask("a", now + ahead_weeks * HOURS_PER_WEEK, 1000)
    served.ask("b", now + ahead_weeks * HOURS_PER_WEEK)
    assert served.expected(now) == pytest.approx(before)
    served.ask("a", now - BELIEVED_AFTER)
    served.ask("a", now, 10)
    assert set(served.history.patterns) == {"a"}
    undisturbed = asked_weekly(5, 10, last=now).before(now + HOURS_PER_WEEK)
    assert served.expected(now + HOURS_PER_WEEK) == pytest.approx(undisturbed)


@pytest.mark.parametrize("wrong_hour", [0, MONDAY_NINE - 3 * HOURS_PER_WEEK])
def test_a_clock_that_was_weeks_behind_leaves_no_trace(wrong_hour: int) -> None:
    """Such as 1970, where a machine without a battery begins."""
    served, now = Served(), MONDAY_NINE + HOURS_PER_WEEK
    before = served.expected(now)
    served.ask("a", wrong_hour, 1000)
    served.ask("b", wrong_hour + 1)
    served.ask("a", now)
    assert served.expected(now) == pytest.approx(before)
    assert served.history.patterns["a"].first == MONDAY_NINE - 3 * HOURS_PER_WEEK
    assert set(served.history.patterns) == {"a"}


def test_a_clock_that_stays_in_1970_is_not_believed() -> None:
    """However long it goes on: no server ran then, so that what is known is not taken back."""
    served, now = Served(), MONDAY_NINE + HOURS_PER_WEEK
    before = served.expected(now)
    for hour in range(0, 2 * HOURS_PER_WEEK, BELIEVED_AFTER):
        served.ask("a", hour)
        served.ask("b", hour)
    served.ask("a", now)
    assert served.expected(now) == pytest.approx(before)
    assert set(served.history.patterns) == {"a"}


def test_a_model_is_as_new_as_it_is_after_a_start_in_1970() -> None:
    """Weeks that nobody saw do not speak against its being asked for."""
    clock = Clock(0.0)
    history = UsageHistory(clock)
    history.asked("a")
    clock.now_s = MONDAY_NINE * 3600.0
    history.asked("a")
    assert history.patterns["a"].before(MONDAY_NINE + HOURS_PER_WEEK) == (1, 1, 1)


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was asked for least recently is forgotten, and said to have changed."""
    monkeypatch.setattr(module, "MAX_NAMES", 2)
    clock = Clock(MONDAY_NINE * 3600.0)
    history = UsageHistory(clock)
    for name in ("a", "b", "a", "c"):
        history.asked(name)
        clock.now_s += timedelta(hours=1).total_seconds()
    assert set(history.patterns) == {"a", "c"}
    assert history.changed == {"a", "b", "c"}
