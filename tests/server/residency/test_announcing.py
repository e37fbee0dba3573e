"""What the pool does, as those hear it who watch events."""

from __future__ import annotations

import asyncio

import pytest

from shoal_server.errors import ModelLoadFailed as LoadFailed
from shoal_server.errors import Overloaded, ShoalError
from shoal_server.lifecycle import LoadReason, ModelState, Unloading, UnloadReason
from shoal_server.registry.events import (
    ModelLoaded,
    ModelLoadFailed,
    ModelStateChanged,
    ModelUnloaded,
)
from tests.server.batching.fakes import settle

from .conftest import MakeBench
from .fakes import CPU, A, B

REGISTERED, LOADING, READY = ModelState.REGISTERED, ModelState.LOADING, ModelState.READY
UNLOADING, ERROR = ModelState.UNLOADING, ModelState.ERROR


async def test_a_load_and_an_unload_are_told_with_their_reasons(make_bench: MakeBench) -> None:
    """The whole life of a model that a request needed and somebody took out again."""
    bench = make_bench()
    bench.loader.measured[A] = 12
    await bench.use(A)
    await bench.pool.unload(A)
    assert bench.published.events == [
        ModelStateChanged(A, REGISTERED, LOADING, "request"),
        ModelStateChanged(A, LOADING, READY, ""),
        ModelLoaded(A, CPU, size_bytes=12, seconds=0.0, why=LoadReason.REQUEST),
        ModelStateChanged(A, READY, UNLOADING, "asked"),
        ModelStateChanged(A, UNLOADING, REGISTERED, "asked"),
        ModelUnloaded(A, Unloading(UnloadReason.ASKED)),
    ]


async def test_an_eviction_names_the_model_that_needed_the_room(make_bench: MakeBench) -> None:
    """In the state's reason for people, and apart for programs."""
    bench = make_bench(models=1)
    await bench.use(A, B)
    why = Unloading(UnloadReason.EVICTED, made_room_for=B)
    assert ModelUnloaded(A, why) in bench.published.events
    reason = "evicted to make room for b@1"
    assert ModelStateChanged(A, READY, UNLOADING, reason) in bench.published.events


async def test_a_load_that_somebody_asked_for_says_so(make_bench: MakeBench) -> None:
    """LoadModel and the server's start are told from requests."""
    bench = make_bench()
    await bench.pool.load(A, CPU)
    await bench.pool.load(B, CPU, why=LoadReason.START)
    loaded = [each for each in bench.published.events if isinstance(each, ModelLoaded)]
    assert [(each.key, each.why) for each in loaded] == [
        (A, LoadReason.ASKED),
        (B, LoadReason.START),
    ]


async def test_a_failed_load_is_told_with_what_went_wrong(make_bench: MakeBench) -> None:
    """The state is error while the failure is remembered; the next load begins there."""
    bench = make_bench()
    bench.loader.errors[A].append(LoadFailed("no good"))
    with pytest.raises(LoadFailed):
        await bench.acquire(A)
    await bench.pool.load(A, CPU)
    assert bench.published.events[:4] == [
        ModelStateChanged(A, REGISTERED, LOADING, "request"),
        ModelStateChanged(A, LOADING, ERROR, "no good"),
        ModelLoadFailed(A, CPU, 0.0, "MODEL_LOAD_FAILED", "no good", LoadReason.REQUEST),
        ModelStateChanged(A, ERROR, LOADING, "asked"),
    ]


async def test_a_load_without_room_leaves_no_failed_model(make_bench: MakeBench) -> None:
    """Nothing is wrong with it: the next request tries again, and so the state says."""
    bench = make_bench(models=1, eviction_wait_s=0.0)
    lease = await bench.acquire(A)
    with pytest.raises(Overloaded):
        await bench.acquire(B)
    lease.release()
    assert bench.published.states()[B] is REGISTERED
    (failed,) = [each for each in bench.published.events if isinstance(each, ModelLoadFailed)]
    assert (failed.key, failed.reason) == (B, "OVERLOADED")


async def test_an_unload_that_is_given_up_is_told_too(make_bench: MakeBench) -> None:
    """Ready, unloading, and ready again."""
    bench = make_bench()
    lease = await bench.acquire(A)
    unloading = asyncio.create_task(bench.pool.unload(A))
    await settle()
    assert bench.published.states()[A] is UNLOADING
    unloading.cancel()
    await settle()
    assert bench.published.states()[A] is READY
    lease.release()


async def test_the_shutdown_is_a_reason(make_bench: MakeBench) -> None:
    """What was in memory at the end, and what was still loading."""
    bench = make_bench()
    await bench.use(A)
    bench.loader.load_gates[B].close()
    caller = await bench.waiting(B)
    await bench.pool.close()
    with pytest.raises(ShoalError):
        await caller
    assert ModelUnloaded(A, Unloading(UnloadReason.SHUTDOWN)) in bench.published.events
    assert bench.published.states() == {A: REGISTERED, B: REGISTERED}
