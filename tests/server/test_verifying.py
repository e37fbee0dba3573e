"""Whose turn it is to be verified."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from shoal_server.core import ModelKey
from shoal_server.errors import (
    InferenceFailed,
    ModelFileCorrupt,
    NothingToCompare,
    ShoalError,
)
from shoal_server.registry.accuracy import Accuracy
from shoal_server.residency.resident import State
from shoal_server.verifying import Schedule, embed_kept, next_due
from tests.server.clock import Clock

A, B, C = (ModelKey(name, "1") for name in "abc")
READY_A = SimpleNamespace(key=A, state=State.READY, session=None)


def at(at_s: float) -> Accuracy:
    """An outcome of then."""
    return Accuracy(1, 1.0, 1.0, None, 1.0, 0.001, "", "runtime 1", "fp32", at_s, 0.1)


def test_who_never_was_comes_first() -> None:
    """Before all that were, however long ago."""
    assert next_due([A, B], {A: at(0.0)}, now_s=1e9, interval_s=60.0) == B


def test_then_who_was_longest_ago() -> None:
    """So everybody has a turn."""
    outcomes = {A: at(30.0), B: at(10.0), C: at(20.0)}
    assert next_due([A, B, C], outcomes, now_s=1000.0, interval_s=60.0) == B
    assert next_due([A, C], outcomes, now_s=1000.0, interval_s=60.0) == C


def test_nobody_before_the_interval_is_over() -> None:
    """At the interval itself it is."""
    assert next_due([A], {A: at(100.0)}, now_s=159.0, interval_s=60.0) is None
    assert next_due([A], {A: at(100.0)}, now_s=160.0, interval_s=60.0) == A


def test_nobody_where_nothing_is_in_memory() -> None:
    """What left memory is not verified."""
    assert next_due([], {A: at(0.0)}, now_s=1000.0, interval_s=60.0) is None


def test_a_clock_that_went_back_does_not_stop_it() -> None:
    """What was verified in times to come is due."""
    assert next_due([A], {A: at(5000.0)}, now_s=1000.0, interval_s=60.0) == A


@pytest.mark.parametrize("error", [NothingToCompare("none kept"), ModelFileCorrupt("damaged")])
async def test_one_that_can_not_be_verified_keeps_nobody_from_a_turn(error: ShoalError) -> None:
    """It is tried again after the interval, not at each look."""
    clock, asked = Clock(1000.0), list[ModelKey]()
    outcomes: dict[ModelKey, Accuracy] = {}

    async def verify_version(key: ModelKey) -> None:
        asked.append(key)
        if key == A:
            raise error
        outcomes[key] = at(clock.now_s)

    residents = [SimpleNamespace(key=key, state=State.READY, session=None) for key in (A, B)]
    schedule = Schedule(
        cast(Any, SimpleNamespace(outcomes=outcomes, verify_version=verify_version)),
        cast(Any, SimpleNamespace(version=lambda key: key)),
        cast(Any, SimpleNamespace(residents=lambda: residents)),
        interval_s=100.0,
        wall_clock=clock,
    )
    tried: dict[ModelKey, float] = {}
    for _ in range(6):
        await schedule.look(tried)
        clock.now_s += 30.0
    assert asked == [A, B, A, B]


async def test_that_there_is_nothing_to_compare_with_is_told_once() -> None:
    """It will be so at the next interval, too."""
    clock = Clock(1000.0)

    async def verify_version(_: ModelKey) -> None:
        raise NothingToCompare("none kept")

    schedule = Schedule(
        cast(Any, SimpleNamespace(outcomes={}, verify_version=verify_version)),
        cast(Any, SimpleNamespace(version=lambda key: key)),
        cast(Any, SimpleNamespace(residents=lambda: [READY_A])),
        interval_s=100.0,
        wall_clock=clock,
    )
    tried: dict[ModelKey, float] = {}
    with capture_logs() as logged:
        for _ in range(3):
            await schedule.look(tried)
            clock.now_s += 100.0
    assert [each["event"] for each in logged] == ["not_verified"]


class Failing:
    """A model whose runs fail."""

    def __init__(self, error: ShoalError) -> None:
        self.error = error
        self.tokenizer = SimpleNamespace(
            encode=lambda texts: [SimpleNamespace(ids=[1]) for _ in texts]
        )
        self.batcher = self

    def submit(self, *_: object, **__: object) -> Failing:
        return self

    async def rows(self) -> None:
        raise self.error


async def test_a_run_that_fails_says_nothing_of_the_vectors() -> None:
    """Such as for want of memory; only what is not finite does."""
    assert (
        await embed_kept(cast(Any, Failing(InferenceFailed("so", not_finite=True))), ("red",))
        is None
    )
    with pytest.raises(InferenceFailed):
        await embed_kept(cast(Any, Failing(InferenceFailed("no memory"))), ("red",))
