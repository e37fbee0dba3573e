"""Sessions that nobody asked for: into free memory, and the first to leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import AllocationFailed, Overloaded
from shoal_server.lifecycle import LoadReason, Unloading, UnloadReason
from shoal_server.residency.idle import IdleRules
from shoal_server.residency.resident import Resident
from tests.server.batching.fakes import settle

from .fakes import CPU, A, B, Bench, C, D, FakeSession

HOLD_S = 900.0
IDLE = IdleRules({CPU: 100.0, "cuda:0": 100.0})


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench(size_bytes=30, idle=IDLE)
    yield bench
    await bench.shut_down()


async def ahead(bench: Bench, key: ModelKey) -> None:
    await bench.pool.load_ahead(key, CPU, hold_s=HOLD_S, why=LoadReason.PRELOADED)


def resident(bench: Bench, key: ModelKey) -> Resident[FakeSession]:
    found = bench.pool.get(key)
    assert found is not None
    return found


async def test_it_is_there_and_nobody_has_used_it(bench: Bench) -> None:
    """Until the first request, which counts as the first use."""
    await ahead(bench, A)
    assert (resident(bench, A).uses, resident(bench, A).unasked) == (0, True)
    await bench.use(A)
    assert (resident(bench, A).uses, resident(bench, A).unasked) == (1, False)
    assert bench.loader.loads == [A]


async def test_nobody_leaves_for_it(bench: Bench) -> None:
    """Not even who has not been used for long; it is refused at once, and that is forgotten."""
    await bench.use(A, B, C)
    with pytest.raises(Overloaded, match="nobody asks for"):
        await ahead(bench, D)
    assert bench.ready == {A, B, C}
    assert bench.pool.failure(D) is None


async def test_it_waits_for_nobody_who_leaves_anyway(bench: Bench) -> None:
    """Room that is still taken is not free."""
    await bench.use(A, B, C)
    bench.loader.close_gates[A].close()
    unload = asyncio.create_task(bench.pool.unload(A))
    await settle()
    with pytest.raises(Overloaded):
        await ahead(bench, D)
    bench.loader.close_gates[A].open()
    await unload


async def test_it_is_the_first_to_leave(bench: Bench) -> None:
    """For a request's model, before who was used long ago; of two the last one."""
    await bench.use(A)
    await ahead(bench, B)
    await ahead(bench, C)
    await bench.use(D)
    assert bench.ready == {A, B, D}
    assert [each.key for each in bench.pool.residents()] == [B, A, D]


async def test_one_that_was_used_leaves_like_others(bench: Bench) -> None:
    """By its last use."""
    await ahead(bench, A)
    await bench.use(B, C, A, D)
    assert bench.ready == {A, C, D}


@pytest.mark.parametrize("pinned", [False, True])
async def test_it_makes_way_for_itself_when_it_is_larger_than_expected(
    bench: Bench, pinned: bool
) -> None:
    """Nobody else leaves for what was measured, not even for one that is pinned once it is there.

    Nor does what stays warm of others.
    """
    (await bench.acquire(D, "cuda:0")).release()
    await bench.pool.release_unused("cuda:0", 0.0, Unloading(UnloadReason.PRESSURE))
    await settle()
    await bench.use(A)
    bench.loader.measured[C] = 20
    await bench.pool.load_ahead(C, CPU, pinned=pinned, hold_s=HOLD_S, why=LoadReason.PRELOADED)
    await settle()
    assert bench.ready == {A}
    assert [each.key for each in bench.pool.warm()] == [D]


async def test_making_way_does_not_forget_that_others_are_too_large(bench: Bench) -> None:
    """Who is in use and over the budget meanwhile goes once it is in use no more."""
    bench.loader.measured |= {A: 20, B: 20}
    for key in (A, B, C):
        bench.loader.load_gates[key].close()
    coming = [await bench.waiting(key) for key in (A, B)]
    loading = asyncio.create_task(ahead(bench, C))
    await settle()
    for key in (A, B, C):
        bench.loader.load_gates[key].open()
        await settle()
    await loading
    assert bench.ready == {A, B}
    for each in coming:
        (await each).release()
    await settle()
    assert bench.ready == {B}


async def test_an_operators_load_is_no_use_of_it(bench: Bench) -> None:
    """But no longer is it the first to leave."""
    await ahead(bench, A)
    await bench.pool.load(A, CPU)
    assert (resident(bench, A).uses, resident(bench, A).unasked) == (0, False)


async def test_it_is_held_while_its_request_may_come(bench: Bench) -> None:
    """Past its idle time-out, up to the horizon, and no longer."""
    await ahead(bench, A)
    assert bench.pool.idle_left_s(resident(bench, A)) == HOLD_S
    await bench.pass_time(HOLD_S - 1)
    assert bench.ready == {A}
    await bench.pass_time(1)
    assert bench.ready == set()
    assert bench.observer.gone == [(A, Unloading(UnloadReason.IDLE))]


async def test_once_used_the_idle_rules_hold(bench: Bench) -> None:
    """Though the horizon is not over."""
    await ahead(bench, A)
    await bench.use(A)
    await bench.pass_time(100)
    assert bench.ready == set()


async def test_memory_pressure_takes_it_at_once(bench: Bench) -> None:
    """Though it has just come: nobody has used it."""
    await bench.use(A)
    await ahead(bench, B)
    why = Unloading(UnloadReason.PRESSURE)
    assert await bench.pool.release_unused(CPU, 50.0, why) == B
    assert await bench.pool.release_unused(CPU, 50.0, why) is None


async def test_a_request_meanwhile_makes_it_its_own(bench: Bench) -> None:
    """Others leave for it then, and it is loaded once."""
    await bench.use(A, B, C)
    loading = asyncio.create_task(ahead(bench, D))
    lease = await bench.acquire(D)
    await loading
    lease.release()
    assert bench.ready == {B, C, D}
    assert bench.loader.loads == [A, B, C, D]


async def test_without_memory_after_all_nobody_leaves(bench: Bench) -> None:
    """Where a request's load would evict and try again; the next request does."""
    await bench.use(A)
    bench.loader.errors[B].append(AllocationFailed("no memory"))
    with pytest.raises(Overloaded, match="no memory"):
        await ahead(bench, B)
    assert bench.ready == {A}
    await bench.use(B)
    assert bench.ready == {A, B}


async def test_what_is_there_is_left_alone(bench: Bench) -> None:
    """One in memory is not loaded, and not the first to leave from then on."""
    await bench.use(A)
    await ahead(bench, A)
    assert not resident(bench, A).unasked
    assert bench.loader.loads == [A]


async def test_remembered_pins_hold_for_newcomers() -> None:
    """Whatever brings them in, and whatever their manifest says."""
    bench = Bench(pins={A: True, B: True, C: False})
    await bench.use(A)
    await ahead(bench, B)
    await bench.pool.load(C, CPU, pinned=True)
    await bench.pool.load(D, CPU, pinned=True)
    assert [resident(bench, key).pinned for key in (A, B, C, D)] == [True, True, False, True]
    await bench.shut_down()
