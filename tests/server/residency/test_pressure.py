"""When memory counts as short: thresholds, the time they must hold, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.lifecycle import PressureLevel
from shoal_server.residency.pressure import MemoryUse, Pressure, PressureLimits, next_pressure
from shoal_server.residency.probes import Memory

LIMITS = PressureLimits(threshold=0.8, lower=0.7, critical=0.95, hold_s=10.0)
NORMAL, ELEVATED, CRITICAL = PressureLevel


def use(used: float, stalled: float = 0.0) -> MemoryUse:
    """Of a machine of 1 GB, to the byte."""
    total_bytes = 10**9
    return MemoryUse((Memory(total_bytes, total_bytes - round(used * total_bytes)),), stalled)


def levels(*seen: float | MemoryUse, every_s: float = 1.0) -> list[PressureLevel]:
    """Where a device stands after each look, from the beginning."""
    found = []
    pressure = Pressure()
    for number, each in enumerate(seen):
        found_use = each if isinstance(each, MemoryUse) else use(each)
        pressure = next_pressure(pressure, found_use, number * every_s, LIMITS)
        found.append(pressure.level)
    return found


def test_a_peak_is_no_pressure() -> None:
    """Above the threshold, but not for as long as it must hold."""
    assert set(levels(*[0.85] * 10, 0.5, *[0.9] * 10)) == {NORMAL}


def test_use_above_the_threshold_for_long_enough_is() -> None:
    """From the first look that is the hold time after the first that was too much."""
    assert levels(0.5, *[0.8] * 12) == [NORMAL] * 11 + [ELEVATED] * 2


def test_a_pause_starts_the_time_anew() -> None:
    """One look below the threshold, and the hold time begins again."""
    assert set(levels(*[0.85] * 9, 0.79, *[0.85] * 10)) == {NORMAL}


def test_elevated_ends_below_the_lower_threshold_only() -> None:
    """Between the two nothing changes, whichever way use came there."""
    up = [0.9] * 11
    assert levels(*up, 0.75, 0.7, 0.69, 0.75)[-5:] == [
        ELEVATED, ELEVATED, ELEVATED, NORMAL, NORMAL,
    ]  # fmt: skip
    assert levels(0.75, 0.79, *[0.75] * 20)[-1] is NORMAL


def test_after_relief_the_hold_time_begins_anew() -> None:
    """What drove a model out does not drive out the next one at once."""
    assert levels(*[0.9] * 11, 0.6, 0.9)[-2:] == [NORMAL, NORMAL]


def test_critical_needs_no_time() -> None:
    """The OOM killer does not wait either."""
    assert levels(0.5, 0.95) == [NORMAL, CRITICAL]


def test_critical_ends_one_band_below_its_threshold() -> None:
    """Loads are let in again when there is room for more than one look's change."""
    assert levels(0.96, 0.9, 0.85, 0.84, 0.75, 0.69) == [
        CRITICAL, CRITICAL, CRITICAL, ELEVATED, ELEVATED, NORMAL,
    ]  # fmt: skip


def test_stalls_make_the_lower_threshold_the_one_that_counts() -> None:
    """Tasks that wait for memory while most of it is used need what is used."""
    assert levels(*[use(0.75, stalled=0.2)] * 11)[-1] is ELEVATED
    assert set(levels(*[use(0.75, stalled=0.1)] * 20)) == {NORMAL}


def test_stalls_alone_are_no_pressure() -> None:
    """With memory free, releasing models would not end them."""
    assert set(levels(*[use(0.5, stalled=0.9)] * 20)) == {NORMAL}


def test_without_a_hold_time_the_first_look_counts() -> None:
    """0 means at once."""
    limits = PressureLimits(threshold=0.8, lower=0.7, critical=0.95, hold_s=0.0)
    assert next_pressure(Pressure(), use(0.8), 0.0, limits).level is ELEVATED


@given(st.lists(st.integers(0, 1000).map(lambda each: each / 1000), min_size=1, max_size=60))
def test_levels_mean_what_they_say(seen: list[float]) -> None:
    """Whatever is seen: critical exactly from its threshold on, normal always below the lower."""
    for used, level in zip(seen, levels(*seen), strict=True):
        if used >= LIMITS.critical:
            assert level is CRITICAL
        if used < LIMITS.lower:
            assert level is NORMAL
        if level is CRITICAL:
            assert used >= LIMITS.critical - (LIMITS.threshold - LIMITS.lower)


def test_the_fullest_limit_may_be_another_one_with_more() -> None:
    """A small cgroup that is empty fills up long before a large machine that is half full."""
    found = MemoryUse((Memory(10_000, 5_000), Memory(1_000, 1_000)))
    assert found.used == 0.5
    assert found.used_with(400) == pytest.approx(0.54)
    assert found.used_with(800) == pytest.approx(0.8)
    assert found.used_with(-1_000) == pytest.approx(0.4)


@pytest.mark.parametrize("start", [NORMAL, ELEVATED, CRITICAL])
@pytest.mark.parametrize("used", [0.0, 0.75, 0.82, 0.9, 1.0])
def test_steady_use_leads_to_a_steady_level(start: PressureLevel, used: float) -> None:
    """No level is left and come back to while nothing changes."""
    pressure = Pressure(start)
    found = []
    for second in range(30):
        pressure = next_pressure(pressure, use(used), second, LIMITS)
        found.append(pressure.level)
    changes = sum(one is not other for one, other in zip([start, *found], found, strict=False))
    assert changes <= 1
