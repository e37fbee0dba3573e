"""What is expected soon, from recorded weeks of use."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.usage.history import Pattern, UsageHistory, hour_of
from shoal_server.usage.prediction import predict
from tests.server.clock import Clock

QUARTER_S = 900.0
MONDAY = datetime(2026, 10, 5, tzinfo=UTC)

# Requests an hour that some kinds of callers sent, by day (0: Monday) and hour in UTC.
OFFICE = {(day, hour): 40 for day in range(5) for hour in range(8, 17)}
NIGHTLY = {(day, 2): 500 for day in range(7)}
WEEKLY_REPORT = {(4, 15): 12}
ALL_DAY = {(day, hour): 3 for day in range(7) for hour in range(24)}


def recorded(weeks: int, **callers: dict[tuple[int, int], int]) -> dict[str, Pattern]:
    """The patterns of models whose callers do the same for so many weeks from MONDAY on."""
    clock = Clock()
    history = UsageHistory(clock)
    for week in range(weeks):
        for hour in range(168):
            clock.now_s = (MONDAY + timedelta(weeks=week, hours=hour)).timestamp()
            for name, requests in callers.items():
                for _ in range(requests.get(divmod(hour, 24), 0)):
                    history.asked(name)
    return dict(history.patterns)


def likely(patterns: dict[str, Pattern], moment: datetime) -> list[str]:
    """What is more likely than not within a quarter of an hour."""
    found = predict(patterns, moment.timestamp(), QUARTER_S)
    return [each.name for each in found if each.probability > 0.5]


@pytest.mark.parametrize(
    ("day", "hour", "minute", "expected"),
    [
        (0, 7, 30, []),  # an hour before the office opens
        (0, 7, 50, ["office"]),
        (2, 12, 0, ["office"]),
        (2, 16, 55, ["office"]),
        (2, 16, 59, []),  # less than one of forty requests is still to come
        (2, 17, 0, []),
        (2, 1, 50, ["nightly"]),
        (4, 14, 50, ["office"]),  # one of the report's twelve requests: too few to be sure
        (4, 15, 0, ["office", "report"]),
        (5, 12, 0, []),  # Saturday
        (6, 1, 59, ["nightly"]),
    ],
)
def test_recorded_weeks(day: int, hour: int, minute: int, expected: list[str]) -> None:
    """After six weeks of them, the right models at the right time."""
    patterns = recorded(6, office=OFFICE, nightly=NIGHTLY, report=WEEKLY_REPORT)
    moment = MONDAY + timedelta(weeks=6, days=day, hours=hour, minutes=minute)
    assert likely(patterns, moment) == expected


@pytest.mark.parametrize(("weeks", "expected"), [(1, []), (2, ["office"])])
def test_one_week_is_no_pattern(weeks: int, expected: list[str]) -> None:
    """A week may be chance, two are a habit."""
    patterns = recorded(weeks, office=OFFICE)
    for minute in (0, 30, 50):
        moment = MONDAY + timedelta(weeks=weeks, hours=10, minutes=minute)
        assert likely(patterns, moment) == expected


def test_a_habit_that_has_ended_is_forgotten() -> None:
    """A month later nothing is expected any longer."""
    patterns = recorded(6, office=OFFICE)
    assert likely(patterns, MONDAY + timedelta(weeks=6, hours=10)) == ["office"]
    assert likely(patterns, MONDAY + timedelta(weeks=10, hours=10)) == []


def test_the_formula() -> None:
    """As the module says: p = U / (W + 1), r = R / U, and P = p · (1 − exp(−r · s))."""
    patterns = recorded(2, report=WEEKLY_REPORT)
    moment = MONDAY + timedelta(weeks=2, days=4, hours=15)
    (found,) = predict(patterns, moment.timestamp(), QUARTER_S)
    # Counted from the first request on, the weeks weigh 1 and 0.75, with 12 requests each.
    used = 1.75 / 2.75
    assert found.probability == pytest.approx(used * (1 - math.exp(-12 * 0.25)))
    assert found.requests == pytest.approx(used * 12 * 0.25)


def test_a_horizon_over_two_hours_is_both_of_them() -> None:
    """Each with its share; one that is touched by nothing does not count."""
    patterns = recorded(2, all_day=ALL_DAY)
    begin = (MONDAY + timedelta(weeks=2, hours=10)).timestamp()
    whole, half, across = (
        predict(patterns, start_s, length_s)[0]
        for start_s, length_s in [(begin, 3600), (begin, 1800), (begin + 1800, 3600)]
    )
    assert across.requests == pytest.approx(whole.requests) == pytest.approx(2 * half.requests)
    assert across.probability == pytest.approx(whole.probability)
    assert half.probability < whole.probability


def test_hours_of_one_week_go_together() -> None:
    """One that was used in two weeks of three adds nothing to the other's three of three.

    Were they independent, a habit of one week would look like one of many around the hour.
    """
    patterns = recorded(3, both={(0, 10): 10**4, (0, 11): 10**4})
    seldom = patterns["both"].hours[hour_of((MONDAY + timedelta(hours=11)).timestamp()) % 168]
    seldom.used -= 1
    seldom.requests -= 10**4
    at = (MONDAY + timedelta(weeks=3, hours=10)).timestamp()
    alone, together = predict(patterns, at, 1800)[0], predict(patterns, at + 1800, 3600)[0]
    assert together.probability == pytest.approx(alone.probability)


def test_the_most_probable_comes_first() -> None:
    """The busier one of two that are equally sure to be used."""
    patterns = recorded(4, idle={(0, 10): 1}, busy={(0, 10): 100}, middle={(0, 10): 10})
    moment = MONDAY + timedelta(weeks=4, hours=10)
    found = predict(patterns, moment.timestamp(), QUARTER_S)
    assert [each.name for each in found] == ["busy", "middle", "idle"]


def test_it_only_looks() -> None:
    """The same question has the same answer."""
    patterns = recorded(3, office=OFFICE)
    now_s = (MONDAY + timedelta(weeks=3, hours=10)).timestamp()
    assert predict(patterns, now_s, QUARTER_S) == predict(patterns, now_s, QUARTER_S)


@given(
    hours=st.lists(st.integers(0, 1000), max_size=30),
    now_s=st.floats(0, 1500 * 3600),
    horizon_s=st.floats(60, 14_400),
)
def test_probabilities_are_probabilities(
    hours: Iterable[int], now_s: float, horizon_s: float
) -> None:
    """Whatever was recorded; and a longer horizon expects no less."""
    clock = Clock()
    history = UsageHistory(clock)
    for hour in hours:
        clock.now_s = hour * 3600.0
        history.asked("model")
    shorter = predict(history.patterns, now_s, horizon_s)
    longer = predict(history.patterns, now_s, 2 * horizon_s)
    for each in longer:
        assert 0 < each.probability <= 1
    if shorter:
        assert longer[0].probability >= shorter[0].probability * (1 - 1e-9)
        assert longer[0].requests >= shorter[0].requests * (1 - 1e-9)


def test_a_clock_that_goes_back_leaves_probabilities() -> None:
    """To before the first request: what was asked for in weeks to come is no certainty."""
    patterns = recorded(6, report=WEEKLY_REPORT)
    for prediction in predict(patterns, datetime(2026, 10, 9, 15, tzinfo=UTC).timestamp(), 3600.0):
        assert 0 <= prediction.probability <= 1
