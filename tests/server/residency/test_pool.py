"""Borrowing sessions and loading them: who waits, who shares what, what is remembered."""

from __future__ import annotations

import asyncio

import pytest

from shoal_server.errors import (
    FailedPrecondition,
    ModelFileCorrupt,
    ModelLoadFailed,
    ModelNotFound,
    Unavailable,
)
from shoal_server.lifecycle import Unloading, UnloadReason
from tests.server.batching.fakes import settle

from .conftest import MakeBench
from .fakes import CPU, A, B, C


async def test_a_cold_model_is_loaded_once_for_all_who_wait(make_bench: MakeBench) -> None:
    """However many callers wait, there is one load, and each gets a lease of its own."""
    bench = make_bench()
    bench.loader.load_gates[A].close()
    callers = [await bench.waiting(A) for _ in range(5)]
    assert bench.loader.loads == [A]
    bench.loader.load_gates[A].open()
    leases = await asyncio.gather(*callers)
    assert len({id(lease.session) for lease in leases}) == 1
    resident = bench.pool.get(A)
    assert resident is not None
    assert resident.leases == 5
    for lease in leases:
        lease.release()
    assert resident.leases == 0
    assert bench.loader.loads == [A]


async def test_a_session_is_told_when_a_lease_ends(make_bench: MakeBench) -> None:
    """Once for each that is given back, so that it can begin what nobody had to wait for."""
    bench = make_bench()
    first, second = await bench.acquire(A), await bench.acquire(A)
    told = [bench.loader.sessions[0].leases_ended]
    for lease in (first, first, second):
        lease.release()
        told.append(bench.loader.sessions[0].leases_ended)
    assert told == [0, 1, 1, 2]


async def test_a_session_that_leaves_begins_nothing(make_bench: MakeBench) -> None:
    """Its unloading would have to wait for that."""
    bench = make_bench()
    lease = await bench.acquire(A)
    unloading = asyncio.ensure_future(bench.pool.unload(A))
    await settle()
    lease.release()
    await unloading
    assert bench.loader.sessions[0].leases_ended == 0


async def test_a_resident_model_is_lent_without_a_load(make_bench: MakeBench) -> None:
    """A second caller gets the session that is there."""
    bench = make_bench()
    await bench.use(A, A)
    assert bench.loader.loads == [A]


async def test_a_waiter_that_leaves_does_not_stop_the_load(make_bench: MakeBench) -> None:
    """Who is cancelled takes neither the load nor the other waiters with it."""
    bench = make_bench()
    bench.loader.load_gates[A].close()
    leaving, staying = await bench.waiting(A), await bench.waiting(A)
    leaving.cancel()
    await settle()
    bench.loader.load_gates[A].open()
    with await staying as lease:
        assert lease.session.key == A
    assert leaving.cancelled()
    assert bench.loader.loads == [A]


async def test_a_load_that_nobody_waits_for_any_longer_ends(make_bench: MakeBench) -> None:
    """The work already done is kept: the next caller finds the model resident."""
    bench = make_bench()
    bench.loader.load_gates[A].close()
    caller = await bench.waiting(A)
    caller.cancel()
    bench.loader.load_gates[A].open()
    await settle()
    assert bench.ready == {A}
    await bench.use(A)
    assert bench.loader.loads == [A]


async def test_other_models_are_lent_while_one_loads(make_bench: MakeBench) -> None:
    """A load holds up only those who want that model."""
    bench = make_bench()
    bench.loader.load_gates[A].close()
    waiting = await bench.waiting(A)
    await bench.use(B)
    assert not waiting.done()
    bench.loader.load_gates[A].open()
    (await waiting).release()


async def test_only_a_ready_model_is_lent_without_waiting(make_bench: MakeBench) -> None:
    """`lease_resident` gives nothing for a model that is absent, loading or leaving."""
    bench = make_bench()
    assert bench.pool.lease_resident(A) is None
    bench.loader.load_gates[A].close()
    waiting = await bench.waiting(A)
    assert bench.pool.lease_resident(A) is None
    bench.loader.load_gates[A].open()
    lease = await waiting
    with bench.pool.lease_resident(A) or pytest.fail("is ready") as second:
        assert second.session is lease.session
    unloading = asyncio.create_task(bench.pool.unload(A))
    await settle()
    assert bench.pool.lease_resident(A) is None
    lease.release()
    await unloading


async def test_releasing_a_lease_twice_counts_once(make_bench: MakeBench) -> None:
    """A second release takes nobody else's lease away."""
    bench = make_bench()
    first, second = await bench.acquire(A), await bench.acquire(A)
    first.release()
    first.release()
    resident = bench.pool.get(A)
    assert resident is not None
    assert resident.leases == 1
    second.release()


@pytest.mark.parametrize("error", [ModelLoadFailed("no good"), ModelFileCorrupt("one byte off")])
async def test_a_failed_load_is_shared_by_its_waiters(
    make_bench: MakeBench, error: ModelLoadFailed
) -> None:
    """One attempt fails, and all who waited for it are told why; its memory is free again."""
    bench = make_bench()
    bench.loader.load_gates[A].close()
    bench.loader.errors[A] = [error]
    callers = [await bench.waiting(A) for _ in range(3)]
    bench.loader.load_gates[A].open()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert results == [error] * 3
    assert bench.loader.loads == [A]
    assert bench.counted == (0, 0)
    assert bench.observer.ended == [(A, error.reason)]


async def test_a_failed_load_is_remembered(make_bench: MakeBench) -> None:
    """Until the back-off is over callers get the old failure and the time left, and no new load."""
    bench = make_bench()
    bench.loader.errors[A] = [ModelLoadFailed("no good", metadata={"file": "x"})]
    with pytest.raises(ModelLoadFailed):
        await bench.acquire(A)
    bench.now_s += 2
    with pytest.raises(ModelLoadFailed, match="no good") as raised:
        await bench.acquire(A)
    assert raised.value.retry_after_s == pytest.approx(2)  # of 5; `acquire` lets 1 pass
    assert raised.value.metadata == {"file": "x"}
    failure = bench.pool.failure(A)
    assert failure is not None
    assert failure.error.message == "no good"
    assert bench.loader.loads == [A]
    bench.now_s += 2
    await bench.use(A)
    assert bench.loader.loads == [A, A]
    assert bench.pool.failure(A) is None


async def test_the_back_off_doubles_up_to_its_maximum(make_bench: MakeBench) -> None:
    """5, 10, 20, 40, then never more than 60 seconds; a success starts over."""
    bench = make_bench()
    waits = []
    for _ in range(6):
        bench.loader.errors[A] = [ModelLoadFailed("no good")]
        with pytest.raises(ModelLoadFailed):
            await bench.acquire(A)
        failure = bench.pool.failure(A)
        assert failure is not None
        waits.append(failure.until_s - bench.now_s)
        bench.now_s = failure.until_s
    assert waits == pytest.approx([5, 10, 20, 40, 60, 60])
    await bench.use(A)
    await bench.pool.unload(A)
    bench.loader.errors[A] = [ModelLoadFailed("no good")]
    with pytest.raises(ModelLoadFailed):
        await bench.acquire(A)
    failure = bench.pool.failure(A)
    assert failure is not None
    assert failure.until_s - bench.now_s == pytest.approx(5)


async def test_an_explicit_load_forgets_the_failure(make_bench: MakeBench) -> None:
    """`load` tries at once what `acquire` would not try yet."""
    bench = make_bench()
    bench.loader.errors[A] = [ModelLoadFailed("no good")]
    with pytest.raises(ModelLoadFailed):
        await bench.acquire(A)
    await bench.pool.load(A, CPU)
    assert bench.ready == {A}
    assert bench.pool.failure(A) is None


async def test_an_unexpected_error_is_told_without_internals(make_bench: MakeBench) -> None:
    """What is no Shoal error becomes a failed load whose message gives nothing away."""
    bench = make_bench()
    bench.loader.errors[A] = [RuntimeError("/secret/path")]
    for _ in range(2):
        with pytest.raises(ModelLoadFailed) as raised:
            await bench.acquire(A)
        assert "secret" not in str(raised.value)
    assert bench.loader.loads == [A]


async def test_what_is_no_failure_of_the_model_is_not_remembered(make_bench: MakeBench) -> None:
    """A version that was missing may be there a moment later: the next caller tries again."""
    bench = make_bench()
    bench.loader.errors[A] = [ModelNotFound("no such version")]
    with pytest.raises(ModelNotFound):
        await bench.acquire(A)
    await bench.use(A)
    assert bench.loader.loads == [A, A]


async def test_loading_twice_is_loading_once(make_bench: MakeBench) -> None:
    """`load` is idempotent, and leaves no lease behind."""
    bench = make_bench()
    await asyncio.gather(*(bench.pool.load(A, CPU) for _ in range(3)))
    await bench.pool.load(A, CPU)
    resident = bench.pool.get(A)
    assert resident is not None
    assert resident.leases == 0
    assert bench.loader.loads == [A]


async def test_a_load_without_a_word_on_pinning_leaves_the_pin(make_bench: MakeBench) -> None:
    """`pin` is changed by True and False; None keeps it."""
    bench = make_bench()
    pins = []
    for pin in (None, True, None, False, None):
        await bench.pool.load(A, CPU, pin=pin)
        resident = bench.pool.get(A)
        assert resident is not None
        pins.append(resident.pinned)
    assert pins == [False, True, True, False, False]


async def test_a_model_is_not_moved_by_loading_it_elsewhere(make_bench: MakeBench) -> None:
    """An explicit load elsewhere is refused and names both; a request takes what is there."""
    bench = make_bench()
    await bench.pool.load(A, CPU)
    with pytest.raises(FailedPrecondition, match=r"on cpu; .* to cuda:0"):
        await bench.pool.load(A, "cuda:0")
    (await bench.acquire(A, "cuda:0")).release()
    assert bench.loader.loads == [A]


async def test_closing_takes_the_last_opened_first(make_bench: MakeBench) -> None:
    """Sessions are closed in reverse order of opening, whatever was used last."""
    bench = make_bench()
    await bench.use(B, A, C, B)
    await bench.pool.close()
    assert bench.loader.closed == [C, A, B]
    why = Unloading(UnloadReason.SHUTDOWN)
    assert bench.observer.gone == [(C, why), (A, why), (B, why)]


async def test_a_session_that_fails_to_close_does_not_keep_the_others(
    make_bench: MakeBench,
) -> None:
    """A failing close is logged; the rest are closed and nothing stays counted."""
    bench = make_bench()
    bench.loader.close_errors[B] = RuntimeError("stuck")
    await bench.use(A, B, C)
    await bench.pool.close()
    assert bench.loader.closed == [C, B, A]
    assert bench.counted == (0, 0)


async def test_who_waits_for_a_load_when_the_pool_closes_is_told(make_bench: MakeBench) -> None:
    """Loads are given up at shutdown, and nobody is left waiting for them."""
    bench = make_bench()
    bench.loader.load_gates[A].close()
    caller = await bench.waiting(A)
    await bench.pool.close()
    with pytest.raises(Unavailable):
        await caller
    with pytest.raises(Unavailable):
        await bench.acquire(B)


async def test_a_load_that_had_not_begun_when_the_pool_closes_is_told_too(
    make_bench: MakeBench,
) -> None:
    """Closing in the very moment a load is decided on leaves no waiter behind."""
    bench = make_bench()
    caller = asyncio.create_task(bench.acquire(A))
    await asyncio.sleep(0)  # the caller runs, the task of the load has not yet
    assert bench.loader.loads == []
    await bench.pool.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(caller, 1)
    assert bench.loader.loads == []


async def test_what_is_closing_already_is_not_closed_again(make_bench: MakeBench) -> None:
    """An unload that goes on while the pool closes ends once, and both return."""
    bench = make_bench()
    await bench.use(A, B)
    lease = await bench.acquire(A)
    unloading = asyncio.create_task(bench.pool.unload(A))
    bench.loader.close_gates[B].close()
    await settle()
    closing = asyncio.create_task(bench.pool.close())
    await settle()
    lease.release()  # A starts to close by itself while the pool is busy with B
    await settle()
    bench.loader.close_gates[B].open()
    await asyncio.wait_for(asyncio.gather(closing, unloading), 1)
    assert sorted(bench.loader.closed, key=str) == [A, B]


async def test_a_model_that_is_being_unloaded_can_not_be_pinned(make_bench: MakeBench) -> None:
    """The pin would be gone with the session, though the caller was told that it holds."""
    bench = make_bench()
    await bench.use(A)
    bench.loader.close_gates[A].close()
    unloading = asyncio.create_task(bench.pool.unload(A))
    await settle()
    with pytest.raises(FailedPrecondition, match="being unloaded"):
        bench.pool.pin(A, True)
    bench.loader.close_gates[A].open()
    await unloading


async def test_a_model_may_fail_any_number_of_times(make_bench: MakeBench) -> None:
    """The wait before the next try doubles up to its bound, and stays there."""
    bench = make_bench()
    bench.loader.errors[A] = [ModelLoadFailed("broken") for _ in range(1_100)]
    for _ in range(1_100):
        with pytest.raises(ModelLoadFailed):
            await bench.acquire(A)
        failure = bench.pool.failure(A)
        assert failure is not None
        wait_s = failure.until_s - bench.now_s
        bench.now_s += wait_s
    assert wait_s == 60.0
