"""Making room in the pool: who leaves, who stays, who waits and for how long."""

from __future__ import annotations

import asyncio

import pytest

from shoal_server.errors import AllocationFailed, FailedPrecondition, Overloaded, Unavailable
from tests.server.batching.fakes import settle

from .conftest import MakeBench
from .fakes import CPU, A, B, C, D


async def test_nothing_is_evicted_while_there_is_room(make_bench: MakeBench) -> None:
    """A budget that is exactly full pushes nobody out."""
    bench = make_bench(models=3, size_bytes=30)
    await bench.use(A, B, C)
    assert bench.ready == {A, B, C}
    assert bench.counted == (3, 30)
    assert bench.observer.gone == []


@pytest.mark.parametrize("budget", [{"models": 2}, {"size_bytes": 29}])
async def test_the_least_recently_used_leaves(
    make_bench: MakeBench, budget: dict[str, int]
) -> None:
    """The victim is whoever was lent or released longest ago, under either budget."""
    bench = make_bench(**budget)
    await bench.use(A, B, A, C)
    assert bench.observer.evicted == [B]
    await bench.use(D)
    assert bench.observer.evicted == [B, A]
    assert bench.ready == {C, D}


async def test_releasing_counts_as_use(make_bench: MakeBench) -> None:
    """A model that was in use until just now is not the least recently used."""
    bench = make_bench(models=2)
    lease = await bench.acquire(A)
    await bench.use(B)
    bench.now_s += 1
    lease.release()
    await bench.use(C)
    assert bench.observer.evicted == [B]


async def test_a_leased_model_is_never_evicted(make_bench: MakeBench) -> None:
    """With the least recently used in use, the next one leaves."""
    bench = make_bench(models=2)
    with await bench.acquire(A) as lease:
        await bench.use(B, C, D)
        assert bench.observer.evicted == [B, C]
        assert not lease.session.closing


async def test_a_pinned_model_is_never_evicted(make_bench: MakeBench) -> None:
    """A pin holds without any lease."""
    bench = make_bench(models=2)
    await bench.pool.load(A, CPU, pin=True)
    await bench.use(B, C, D)
    assert bench.observer.evicted == [B, C]
    assert bench.ready == {A, D}


async def test_a_request_pins_only_what_it_loads(make_bench: MakeBench) -> None:
    """A manifest's pin counts from the load on; what is in memory stays as the operator has it."""
    bench = make_bench(models=2)
    (await bench.pool.acquire(A, CPU, pinned=True)).release()
    await bench.use(B)
    (await bench.pool.acquire(B, CPU, pinned=True)).release()
    await bench.use(C)
    assert bench.observer.evicted == [B]


async def test_no_more_leave_than_needed(make_bench: MakeBench) -> None:
    """Enough of the least recently used leave for the newcomer's bytes, and the rest stay."""
    bench = make_bench(size_bytes=40)
    bench.loader.predicted[D] = 15
    await bench.use(A, B, C, D)
    assert bench.observer.evicted == [A]
    assert bench.counted == (3, 35)


async def test_a_model_above_the_whole_budget_evicts_nobody(make_bench: MakeBench) -> None:
    """It is refused for good, with both numbers, before anything is closed for it."""
    bench = make_bench(size_bytes=30)
    bench.loader.predicted[D] = 31
    await bench.use(A, B)
    with pytest.raises(FailedPrecondition) as raised:
        await bench.acquire(D)
    assert raised.value.metadata == {"limit": "30", "value": "31"}
    assert bench.ready == {A, B}
    assert bench.loader.loads == [A, B]


async def test_bytes_on_their_way_out_stay_counted(make_bench: MakeBench) -> None:
    """The newcomer is not loaded before the victim's memory is really free."""
    bench = make_bench(models=1)
    await bench.use(A)
    bench.loader.close_gates[A].close()
    caller = await bench.waiting(B)
    assert bench.counted == (1, 10)
    assert bench.loader.loads == [A]
    bench.loader.close_gates[A].open()
    (await caller).release()
    assert bench.loader.loads == [A, B]
    assert bench.ready == {B}


async def test_one_on_its_way_out_makes_room_for_one_only(make_bench: MakeBench) -> None:
    """Two newcomers do not both count on the same victim's memory."""
    bench = make_bench(models=2)
    await bench.use(A, B)
    bench.loader.close_gates[A].close()
    callers = [await bench.waiting(C), await bench.waiting(D)]
    assert bench.loader.loads == [A, B]
    bench.loader.close_gates[A].open()
    for caller in callers:
        (await caller).release()
        await settle()
        bench.pool.check_integrity()
    assert bench.ready == {C, D}


async def test_when_all_are_in_use_the_newcomer_waits_and_is_told_to_come_back(
    make_bench: MakeBench,
) -> None:
    """After the wait it is refused with a time to retry, and not remembered as a failure."""
    bench = make_bench(models=1, eviction_wait_s=0.001)
    with await bench.acquire(A):
        with pytest.raises(Overloaded) as raised:
            await bench.acquire(B)
        assert raised.value.retry_after_s > 0
    assert bench.ready == {A}
    await bench.use(B)
    assert bench.loader.loads == [A, B]


async def test_a_lease_that_comes_back_wakes_the_newcomer(make_bench: MakeBench) -> None:
    """Nobody polls: giving the last lease back is what lets the waiting load go on."""
    bench = make_bench(models=1)
    first, second = await bench.acquire(A), await bench.acquire(A)
    caller = await bench.waiting(B)
    first.release()
    await settle()
    assert bench.loader.loads == [A]
    second.release()
    (await asyncio.wait_for(caller, 1)).release()
    assert bench.observer.evicted == [A]


async def test_a_pin_that_is_taken_back_wakes_the_newcomer(make_bench: MakeBench) -> None:
    """Unpinning frees room just as a release does."""
    bench = make_bench(models=1)
    await bench.pool.load(A, CPU, pin=True)
    caller = await bench.waiting(B)
    await bench.pool.load(A, CPU, pin=False)
    (await asyncio.wait_for(caller, 1)).release()


async def test_an_idle_model_gives_way_however_short_the_wait(make_bench: MakeBench) -> None:
    """The wait is for models in use; one that nobody uses makes room even with no wait at all."""
    bench = make_bench(models=1, eviction_wait_s=0.0)
    await bench.use(A, B, A)
    assert bench.observer.evicted == [A, B]


async def test_who_loaded_a_model_gets_it_before_it_may_leave(make_bench: MakeBench) -> None:
    """Cold models that take turns on one place are all used: none evicts another unused."""
    bench = make_bench(models=1)
    callers = [asyncio.create_task(bench.use(key)) for key in (A, B, C)]
    await asyncio.wait_for(asyncio.gather(*callers), 1)
    assert sorted(bench.loader.loads, key=str) == [A, B, C]


async def test_a_model_that_its_only_waiter_left_may_be_evicted(make_bench: MakeBench) -> None:
    """Waiting protects a model only for as long as somebody waits."""
    bench = make_bench(models=1)
    bench.loader.load_gates[A].close()
    leaving = await bench.waiting(A)
    caller = await bench.waiting(B)
    bench.loader.load_gates[A].open()
    await asyncio.sleep(0)  # A's task ends its load; its waiter has not run yet
    leaving.cancel()
    (await asyncio.wait_for(caller, 1)).release()
    assert bench.observer.evicted == [A]


async def test_devices_have_budgets_of_their_own(make_bench: MakeBench) -> None:
    """A full GPU evicts from itself and leaves the CPU's models alone."""
    bench = make_bench(models=1)
    await bench.use(A)
    for key in (B, C):
        (await bench.acquire(key, "cuda:0")).release()
    assert bench.observer.evicted == [B]
    assert bench.counted == (1, 10 + bench.loader.warm_bytes)
    assert bench.pool.counted("cuda:0") == (1, 10)


async def test_an_allocation_failure_evicts_one_and_tries_once_more(
    make_bench: MakeBench,
) -> None:
    """The least recently used leaves, the second try succeeds, and the caller notices nothing."""
    bench = make_bench()
    await bench.use(A, B)
    bench.loader.errors[C] = [AllocationFailed("no memory")]
    await bench.use(C)
    assert bench.loader.loads == [A, B, C, C]
    assert bench.observer.evicted == [A]
    assert bench.ready == {B, C}


async def test_a_second_allocation_failure_is_told(make_bench: MakeBench) -> None:
    """One retry, one victim, then the failure stands, though more could be evicted."""
    bench = make_bench()
    await bench.use(A, B)
    bench.loader.errors[C] = [AllocationFailed("no memory"), AllocationFailed("still none")]
    with pytest.raises(AllocationFailed, match="still none"):
        await bench.acquire(C)
    assert bench.loader.loads == [A, B, C, C]
    assert bench.ready == {B}
    assert bench.counted == (1, 10)


async def test_an_allocation_failure_without_a_victim_is_told(make_bench: MakeBench) -> None:
    """With everything in use there is nothing to evict, hence no second try."""
    bench = make_bench()
    with await bench.acquire(A):
        bench.loader.errors[C] = [AllocationFailed("no memory")]
        with pytest.raises(AllocationFailed):
            await bench.acquire(C)
    assert bench.loader.loads == [A, C]
    assert bench.ready == {A}


async def test_a_victim_goes_on_closing_when_the_load_it_was_for_is_given_up(
    make_bench: MakeBench,
) -> None:
    """Closing the pool returns only when the memory of a victim in the middle of it is free."""
    bench = make_bench()
    await bench.use(A)
    bench.loader.errors[C] = [AllocationFailed("no memory")]
    bench.loader.close_gates[A].close()
    caller = await bench.waiting(C)
    closing = asyncio.create_task(bench.pool.close())
    await settle()
    assert not closing.done()
    bench.loader.close_gates[A].open()
    await closing
    assert bench.loader.closed == [A]
    with pytest.raises(Unavailable):
        await caller


async def test_the_measured_size_is_what_counts(make_bench: MakeBench) -> None:
    """A prediction holds only until the model is loaded."""
    bench = make_bench(size_bytes=40)
    bench.loader.measured = {A: 4, B: 6}
    await bench.use(A, B)
    assert bench.counted == (2, 10)
    assert bench.observer.counted[CPU] == (2, 10)


async def test_a_model_larger_than_predicted_pushes_the_excess_out(
    make_bench: MakeBench,
) -> None:
    """The least recently used leave until the budget holds again; the newcomer stays."""
    bench = make_bench(size_bytes=40)
    bench.loader.measured = {D: 25}
    await bench.use(A, B, C, D)
    assert bench.observer.evicted == [A, B]
    assert bench.ready == {C, D}
    assert bench.counted == (2, 35)


async def test_a_model_larger_than_predicted_pushes_out_none_that_is_in_use(
    make_bench: MakeBench,
) -> None:
    """Excess is borne while models are leased, and goes with the first that comes back."""
    bench = make_bench(size_bytes=30)
    bench.loader.measured = {B: 25}
    old, large = await bench.acquire(A), await bench.acquire(B)
    assert bench.counted == (2, 35)
    large.release()
    await settle()
    assert not old.session.closing
    assert bench.counted == (1, 10)
    old.release()


async def test_a_model_is_expected_to_take_what_it_took(make_bench: MakeBench) -> None:
    """Room is made for what was measured at the last load, not for the prediction."""
    bench = make_bench(size_bytes=30)
    bench.loader.measured = {A: 25}
    await bench.use(A)
    await bench.pool.unload(A)
    await bench.use(B, A)
    assert bench.observer.evicted == [B]
    assert bench.ready == {A}


async def test_a_measurement_shuts_no_model_out(make_bench: MakeBench) -> None:
    """One above the whole budget may hold what else happened: the model comes in, alone."""
    bench = make_bench(size_bytes=30)
    bench.loader.measured = {A: 31}
    await bench.use(A)
    await bench.pool.unload(A)
    await bench.use(B, A)
    assert bench.ready == {A}


async def test_an_explicit_load_forgets_what_was_measured(make_bench: MakeBench) -> None:
    """A size that was measured too large shuts no model out for good."""
    bench = make_bench(size_bytes=30)
    bench.loader.measured = {A: 31}
    await bench.use(A)
    await bench.pool.unload(A)
    bench.loader.measured = {}
    await bench.pool.load(A, "cpu")
    assert bench.ready == {A}
    assert bench.counted == (1, 10)
