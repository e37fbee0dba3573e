"""Taking models out of memory by hand."""

from __future__ import annotations

import asyncio

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import ModelLoadFailed, Unavailable
from shoal_server.lifecycle import Unloading, UnloadReason
from tests.server.batching.fakes import settle

from .conftest import MakeBench
from .fakes import CPU, A, B, Bench


async def unloading(
    bench: Bench, key: ModelKey, *, force_after_s: float | None = None
) -> asyncio.Task[None]:
    """An unload that has got as far as it can."""
    task = asyncio.create_task(bench.pool.unload(key, force_after_s=force_after_s))
    await settle()
    return task


async def test_unloading_what_is_not_there_is_done(make_bench: MakeBench) -> None:
    """Idempotent: absent, unloaded and unloaded again are all the same."""
    bench = make_bench()
    await bench.pool.unload(A)
    await bench.use(A)
    await bench.pool.unload(A)
    await bench.pool.unload(A)
    assert bench.observer.gone == [(A, Unloading(UnloadReason.ASKED))]
    assert bench.counted == (0, 0)


async def test_unloading_returns_when_the_memory_is_free(make_bench: MakeBench) -> None:
    """Not when closing begins; for everybody who asked."""
    bench = make_bench()
    await bench.use(A)
    bench.loader.close_gates[A].close()
    tasks = [await unloading(bench, A) for _ in range(2)]
    assert not any(task.done() for task in tasks)
    assert bench.counted == (1, 10)
    bench.loader.close_gates[A].open()
    await asyncio.gather(*tasks)
    assert bench.counted == (0, 0)


async def test_unloading_waits_for_leases(make_bench: MakeBench) -> None:
    """Whoever holds a lease keeps a working session until it is given back."""
    bench = make_bench()
    first, second = await bench.acquire(A), await bench.acquire(A)
    task = await unloading(bench, A)
    first.release()
    await settle()
    assert not second.session.closing
    assert not task.done()
    second.release()
    await task
    assert bench.loader.closed == [A]


async def test_a_caller_that_comes_while_a_model_leaves_gets_a_new_one(
    make_bench: MakeBench,
) -> None:
    """It waits for the old session to be gone, then loads the model again."""
    bench = make_bench()
    lease = await bench.acquire(A)
    task = await unloading(bench, A)
    caller = await bench.waiting(A)
    lease.release()
    await task
    with await caller as fresh:
        assert fresh.session is not lease.session
    assert bench.loader.loads == [A, A]


async def test_a_pinned_model_can_be_unloaded(make_bench: MakeBench) -> None:
    """A pin keeps the evictor away, not the operator; it goes with the session."""
    bench = make_bench()
    await bench.pool.load(A, CPU, pin=True)
    await bench.pool.unload(A)
    await bench.use(A)
    resident = bench.pool.get(A)
    assert resident is not None
    assert not resident.pinned


async def test_unloading_a_model_that_loads_waits_for_the_load(make_bench: MakeBench) -> None:
    """The waiter of the load is served first, then the model leaves."""
    bench = make_bench()
    bench.loader.load_gates[A].close()
    caller = await bench.waiting(A)
    task = await unloading(bench, A)
    bench.loader.load_gates[A].open()
    (await caller).release()
    await task
    assert bench.ready == set()


async def test_unloading_a_model_whose_load_fails_is_done(make_bench: MakeBench) -> None:
    """A failed load left nothing to unload; the failure is the loader's to tell."""
    bench = make_bench()
    bench.loader.load_gates[A].close()
    bench.loader.errors[A] = [ModelLoadFailed("no good")]
    caller = await bench.waiting(A)
    task = await unloading(bench, A)
    bench.loader.load_gates[A].open()
    with pytest.raises(ModelLoadFailed):
        await caller
    await task


async def test_who_stops_waiting_leaves_the_model_resident(make_bench: MakeBench) -> None:
    """A cancelled unload undoes itself: waiting callers get the session that is there."""
    bench = make_bench()
    lease = await bench.acquire(A)
    task = await unloading(bench, A)
    caller = await bench.waiting(A)
    task.cancel()
    with await asyncio.wait_for(caller, 1) as same:
        assert same.session is lease.session
    lease.release()
    await settle()
    assert bench.ready == {A}
    assert bench.loader.loads == [A]


async def test_one_who_stops_waiting_does_not_speak_for_the_others(
    make_bench: MakeBench,
) -> None:
    """While another unload still waits the model leaves, and that one returns when it is gone."""
    bench = make_bench()
    lease = await bench.acquire(A)
    leaving, staying = await unloading(bench, A), await unloading(bench, A)
    leaving.cancel()
    await settle()
    assert not staying.done()
    assert bench.ready == set()
    lease.release()
    await asyncio.wait_for(staying, 1)
    assert bench.counted == (0, 0)


async def test_force_fails_what_is_left_and_then_closes(make_bench: MakeBench) -> None:
    """The session is aborted after the time, and closed once its leases are back."""
    bench = make_bench()
    lease = await bench.acquire(A)
    task = await unloading(bench, A, force_after_s=0.0)
    assert isinstance(lease.session.aborted, Unavailable)
    assert not lease.session.closing
    lease.release()
    await task
    assert bench.loader.closed == [A]


async def test_force_does_not_abort_what_ends_in_time(make_bench: MakeBench) -> None:
    """Requests that finish before the time are not failed."""
    bench = make_bench()
    lease = await bench.acquire(A)
    task = await unloading(bench, A, force_after_s=60)
    lease.release()
    await task
    assert lease.session.aborted is None


async def test_force_is_not_held_up_by_one_who_waits_patiently(make_bench: MakeBench) -> None:
    """An operator can force what an earlier unload without force waits for."""
    bench = make_bench()
    lease = await bench.acquire(A)
    patient = await unloading(bench, A)
    forcing = await unloading(bench, A, force_after_s=0.0)
    assert lease.session.aborted is not None
    lease.release()
    await asyncio.gather(patient, forcing)
    assert bench.loader.closed == [A]


async def test_after_force_there_is_no_way_back(make_bench: MakeBench) -> None:
    """An aborted session serves nobody, so it leaves even when who forced it stops waiting."""
    bench = make_bench()
    lease = await bench.acquire(A)
    task = await unloading(bench, A, force_after_s=0.0)
    task.cancel()
    await settle()
    assert bench.ready == set()
    lease.release()
    await settle()
    assert bench.loader.closed == [A]
    (await bench.acquire(A)).release()
    assert bench.loader.loads == [A, A]


async def test_unloading_makes_room_for_who_waits(make_bench: MakeBench) -> None:
    """A newcomer that waits for room goes on when an unload frees it."""
    bench = make_bench(models=1)
    lease = await bench.acquire(A)
    task = await unloading(bench, A)
    caller = await bench.waiting(B)
    lease.release()
    await task
    (await asyncio.wait_for(caller, 1)).release()
    assert bench.observer.evicted == []
