"""Models are loaded ahead when they are usually wanted soon, and what became of that is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import ModelLoadFailed
from shoal_server.lifecycle import LoadReason, Unloading, UnloadReason
from shoal_server.preloading import Preloader, PreloadRules
from shoal_server.registry.events import PreloadDecided
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.residency.free_memory import FreeMemory
from shoal_server.usage.history import UsageHistory
from tests.server.batching.fakes import settle
from tests.server.clock import Clock
from tests.server.residency.fakes import CPU, A, B, Bench, C, Published
from tests.tiny_model import make_tiny_model

MONDAY_NINE = datetime(2026, 10, 5, 9, tzinfo=UTC)
WEEKS = 6
HORIZON_S = 900.0


class OnCpu:
    """Places everything there."""

    def device_for(self, *_: object, **__: object) -> str:
        return CPU


class Watcher:
    """Says what a test says of how short memory is."""

    def __init__(self) -> None:
        self.is_short = ""
        self.asked: list[tuple[str, int]] = []

    async def shortage(self, device: str, more_bytes: int) -> str:
        self.asked.append((device, more_bytes))
        return self.is_short


class Parts:
    """A preloader and its surroundings; on Mondays at nine `a` was asked for most, then `b`."""

    def __init__(self, root: Path) -> None:
        self.bench = Bench(size_bytes=30)
        self.clock = Clock()
        self.history = UsageHistory(self.clock)
        self.published = Published()
        self.watcher = Watcher()
        self.outcomes: list[tuple[ModelKey, str]] = []
        self.rules = PreloadRules(is_on=True, horizon_s=HORIZON_S, threshold=0.5, max_models=2)
        self.is_idle = True
        self.registry = Registry(ModelRepository(root), "a")
        for week in range(WEEKS):
            self.clock.now_s = (MONDAY_NINE + timedelta(weeks=week)).timestamp()
            for name, requests in (("a", 60), ("b", 40), ("c", 20)):
                for _ in range(requests):
                    self.history.asked(name)
        self.preloader = Preloader(
            self.history,
            rules=lambda: self.rules,
            events=self.published,
            observer=self,
            wall_clock=self.clock,
            clock=lambda: self.bench.now_s,
        )
        self.bench.observers.append(self.preloader)
        self.preloader.begin(
            self.registry,
            cast(Any, self.bench.pool),
            cast(Any, OnCpu()),
            FreeMemory(self.bench.pool, self.bench.loader, self.watcher),
            lambda: self.is_idle,
        )
        self.at(minutes=-5)

    def at(self, *, minutes: float) -> None:
        """It is so long after nine on the Monday that follows."""
        moment = MONDAY_NINE + timedelta(weeks=WEEKS, minutes=minutes)
        self.clock.now_s = moment.timestamp()

    def preload_ended(self, key: ModelKey, outcome: str) -> None:
        self.outcomes.append((key, outcome))

    async def obstacles(self) -> dict[str, str]:
        """Why each is not loaded ahead now."""
        return {each.prediction.name: each.obstacle async for each in self.preloader.candidates()}


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    for name in "abc":
        make_tiny_model(tmp_path, name)
    parts = Parts(tmp_path)
    yield parts
    await parts.bench.shut_down()


async def test_what_is_likely_is_loaded_most_likely_first(parts: Parts) -> None:
    """As many as may wait for their first request, with reason, event and hold."""
    assert await parts.preloader.look()
    assert parts.bench.loader.loads == [A, B]
    resident = parts.bench.pool.get(A)
    assert resident is not None
    assert resident.why_loaded is LoadReason.PRELOADED
    assert parts.bench.pool.idle_left_s(resident) is None
    first, second = (e for e in parts.published.events if isinstance(e, PreloadDecided))
    assert (first.key, first.name, first.device, first.horizon_s) == (A, "a", CPU, HORIZON_S)
    # 10 of 60 minutes, of an hour in which it was asked for in each of the weeks that are known.
    assert 0.5 < first.probability < 1
    assert first.requests > second.requests > 0
    assert first.subjects == {"a", "a@1"}


async def test_nothing_is_loaded_long_before_or_when_it_is_off(parts: Parts) -> None:
    """Neither an hour before the time, nor without the setting."""
    parts.at(minutes=-60)
    assert await parts.preloader.look()
    parts.at(minutes=-5)
    parts.rules = replace(parts.rules, is_on=False)
    assert await parts.preloader.look()
    assert parts.bench.loader.loads == []


async def test_it_waits_for_an_idle_moment(parts: Parts) -> None:
    """And says that it would have something to do."""
    parts.is_idle = False
    assert not await parts.preloader.look()
    assert parts.bench.loader.loads == []
    parts.is_idle = True
    assert await parts.preloader.look()
    assert parts.bench.loader.loads == [A, B]


async def test_only_into_free_memory(parts: Parts) -> None:
    """What is in memory stays, whether it is used or not."""
    parts.bench.loader.predicted[ModelKey("d", "1")] = 25
    await parts.bench.use(ModelKey("d", "1"))
    await parts.preloader.look()
    assert parts.bench.loader.loads == [ModelKey("d", "1")]
    assert parts.bench.observer.gone == []
    assert "budget is 30" in (await parts.obstacles())["a"]


async def test_not_while_memory_is_short(parts: Parts) -> None:
    """Nor when it would be with the model in it, loading included."""
    parts.watcher.is_short = "memory of cpu would be 83% in use"
    await parts.preloader.look()
    assert parts.bench.loader.loads == []
    assert (await parts.obstacles())["a"] == "memory of cpu would be 83% in use"
    assert parts.watcher.asked[0] == (CPU, parts.bench.loader.predict_peak_bytes(A, CPU))


async def test_what_was_used_makes_place_for_the_next(parts: Parts) -> None:
    """It counts as used, and no longer as waiting."""
    await parts.preloader.look()
    await parts.bench.use(A)
    await parts.preloader.look()
    assert parts.outcomes == [(A, "used")]
    assert parts.bench.loader.loads == [A, B, C]


async def test_only_a_request_is_a_use(parts: Parts) -> None:
    """Not an operator's load: nobody knows yet whether it was wanted."""
    await parts.preloader.look()
    await parts.bench.pool.load(A, CPU)
    await parts.preloader.look()
    assert parts.outcomes == []
    await parts.bench.pool.unload(A)
    assert parts.outcomes == [(A, "unused")]


async def test_what_leaves_unused_is_told_and_not_tried_again_at_once(parts: Parts) -> None:
    """It would be loaded and released back and forth; after the horizon it may be."""
    await parts.preloader.look()
    await parts.bench.pool.release_unused(CPU, 0.0, Unloading(UnloadReason.PRESSURE))
    assert parts.outcomes == [(B, "unused")]
    await parts.preloader.look()
    assert parts.bench.loader.loads == [A, B, C]
    assert "pressure" in (await parts.obstacles())["b"]
    parts.bench.now_s += HORIZON_S
    assert "pressure" not in (await parts.obstacles())["b"]


async def test_a_use_just_before_it_leaves_counts(parts: Parts) -> None:
    """Nobody looked in between."""
    await parts.preloader.look()
    await parts.bench.use(A)
    await parts.bench.pool.unload(A)
    assert parts.outcomes == [(A, "used")]


async def test_a_failure_is_not_held_against_it_for_ever(parts: Parts) -> None:
    """It is tried again, a horizon after its back-off."""
    parts.rules = replace(parts.rules, max_models=3)
    parts.bench.loader.errors[A].append(ModelLoadFailed("files are gone"))
    assert await parts.preloader.look()
    failure = parts.bench.pool.failure(A)
    assert failure is not None
    parts.bench.now_s = failure.until_s + HORIZON_S
    assert await parts.preloader.look()
    assert A in parts.bench.ready


async def test_a_load_that_fails_is_told(parts: Parts) -> None:
    """The others are loaded all the same, and it is not tried at every look."""
    parts.bench.loader.errors[A].append(ModelLoadFailed("no good"))
    await parts.preloader.look()
    await parts.preloader.look()
    assert parts.outcomes == [(A, "failed")]
    assert parts.bench.loader.loads == [A, B, C]
    assert "could not be loaded" in (await parts.obstacles())["a"]


async def test_names_that_mean_nothing_any_longer_are_left_out(
    parts: Parts, tmp_path: Path
) -> None:
    """Their patterns are still there; it says why."""
    (tmp_path / "a").rename(tmp_path.parent / "gone")
    await parts.preloader.look()
    assert parts.bench.loader.loads == [B, C]
    assert "a" in (await parts.obstacles())["a"]


async def test_at_the_end_of_the_server_nothing_is_said_of_what_waits(parts: Parts) -> None:
    """It might have been used yet."""
    await parts.preloader.look()
    await parts.bench.pool.close()
    await settle()
    assert parts.outcomes == []
