"""Models that go back and forth are noticed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import ModelLoadFailed
from shoal_server.lifecycle import Load, LoadReason, Unloading, UnloadReason
from shoal_server.residency.churn import ChurnGuard, ChurnObserver

from .fakes import CPU, A, B


def test_a_model_that_comes_for_the_first_time_has_not_returned() -> None:
    """Nor one that comes back after a long time."""
    guard = ChurnGuard()
    assert guard.came(A, 0) is None
    guard.pushed_out(A, 10)
    assert guard.came(A, 70.1) is None


def test_a_return_says_how_long_it_was_away() -> None:
    """Within a minute counts; each model for itself."""
    guard = ChurnGuard()
    guard.pushed_out(A, 10)
    guard.pushed_out(B, 20)
    back = guard.came(A, 70)
    assert back is not None
    assert (back.after_s, back.times) == (60, 1)


def test_one_departure_is_one_return() -> None:
    """A model that is here can not return once more."""
    guard = ChurnGuard()
    guard.pushed_out(A, 10)
    assert guard.came(A, 11) is not None
    assert guard.came(A, 12) is None


def test_it_is_worth_telling_from_the_third_time_on_and_once_a_minute() -> None:
    """The log says that it goes back and forth, and does not fill up with it."""
    guard = ChurnGuard()
    told = []
    for second in range(0, 200, 10):
        guard.pushed_out(A, second)
        back = guard.came(A, second + 5)
        assert back is not None
        if back.worth_telling:
            told.append((second, back.times))
    assert told == [(20, 3), (90, 10), (160, 17)]


def test_returns_are_forgotten() -> None:
    """Three in a day are none."""
    guard = ChurnGuard()
    for hour in range(24):
        guard.pushed_out(A, hour * 3600)
        back = guard.came(A, hour * 3600 + 1)
        assert back is not None
        assert (back.times, back.worth_telling) == (1, False)


@dataclass
class Returns:
    """Remembers who returned."""

    keys: list[ModelKey] = field(default_factory=list)

    def model_returned(
        self, key: ModelKey, *, after_s: float, times: int, worth_telling: bool
    ) -> None:
        self.keys.append(key)


@pytest.mark.parametrize("reason", UnloadReason)
def test_only_who_was_pushed_out_can_return(reason: UnloadReason) -> None:
    """Who left on demand, or because nobody wanted it, made room for nobody."""
    returns = Returns()
    observer = ChurnObserver(returns, clock=lambda: 100.0)
    observer.unloaded(A, Unloading(reason))
    observer.load_ended(Load(A, CPU, LoadReason.REQUEST, 1.0, 10))
    pushed_out = reason in (UnloadReason.EVICTED, UnloadReason.PRESSURE)
    assert returns.keys == ([A] if pushed_out else [])


def test_a_load_that_failed_is_no_return() -> None:
    """It did not come back."""
    returns = Returns()
    observer = ChurnObserver(returns, clock=lambda: 100.0)
    observer.unloaded(A, Unloading(UnloadReason.EVICTED))
    observer.load_ended(Load(A, CPU, LoadReason.REQUEST, 1.0, 10, ModelLoadFailed("no good")))
    assert returns.keys == []
