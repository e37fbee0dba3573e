"""A session takes another one's place, and nobody who uses the model notices."""

from __future__ import annotations

import asyncio

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition, ModelLoadFailed, Overloaded, Unavailable
from shoal_server.registry.events import ModelUnloaded
from tests.server.batching.fakes import settle

from .conftest import MakeBench
from .fakes import CPU, A, B, Bench, FakeSession


async def replacing(bench: Bench, key: ModelKey) -> asyncio.Task[None]:
    """A replacement that has got as far as it can."""
    task = asyncio.create_task(bench.pool.replace(key, CPU, lambda: None))
    await settle()
    return task


def lent(bench: Bench, key: ModelKey) -> FakeSession:
    """The session that a request gets now."""
    lease = bench.pool.lease_resident(key)
    assert lease is not None, bench.pool
    with lease:
        return lease.session


async def test_the_old_session_serves_until_the_new_one_is_open(make_bench: MakeBench) -> None:
    """Nobody waits: at every moment one of the two is lent; both count."""
    bench = make_bench()
    await bench.use(A)
    old = lent(bench, A)
    bench.loader.load_gates[A].close()
    task = await replacing(bench, A)
    assert lent(bench, A) is old
    assert bench.counted == (2, 20)
    bench.loader.load_gates[A].open()
    await task
    await settle()
    assert lent(bench, A) is not old
    assert old.closed
    assert bench.counted == (1, 10)


async def test_who_holds_the_old_session_keeps_it(make_bench: MakeBench) -> None:
    """It is closed after its last lease, and counts until then."""
    bench = make_bench()
    lease = await bench.acquire(A)
    await bench.pool.replace(A, CPU, lambda: None)
    assert lent(bench, A) is not lease.session
    assert not lease.session.closing
    assert bench.counted == (2, 20)
    lease.release()
    await settle()
    assert lease.session.closed
    assert bench.counted == (1, 10)


async def test_room_that_the_old_session_takes_is_not_waited_for_for_ever(
    make_bench: MakeBench,
) -> None:
    """Who waits for it may be who holds it, such as a switch."""
    bench = make_bench(models=2, eviction_wait_s=0.01)
    with await bench.acquire(A):
        await bench.pool.replace(A, CPU, lambda: None)
        with pytest.raises(Overloaded, match=r"none was released within 0\.01 s"):
            await asyncio.wait_for(bench.acquire(B), timeout=5.0)


async def test_swapped_is_called_in_the_moment_of_the_swap(make_bench: MakeBench) -> None:
    """What it changes goes with the new session, and with no other."""
    bench = make_bench()
    await bench.use(A)
    old = lent(bench, A)
    seen: list[FakeSession] = []
    await bench.pool.replace(A, CPU, lambda: seen.append(lent(bench, A)))
    assert seen == [lent(bench, A)]
    assert seen != [old]


async def test_a_failing_load_leaves_the_old_session(make_bench: MakeBench) -> None:
    """The caller is told why; the failure is not remembered against the model."""
    bench = make_bench()
    await bench.use(A)
    old = lent(bench, A)
    bench.loader.errors[A].append(ModelLoadFailed("no good"))
    with pytest.raises(ModelLoadFailed, match="no good"):
        await bench.pool.replace(A, CPU, lambda: None)
    await settle()
    assert lent(bench, A) is old
    assert bench.pool.failure(A) is None
    assert bench.counted == (1, 10)


async def test_without_room_for_both_the_old_session_stays(make_bench: MakeBench) -> None:
    """It is never given up for its successor, which waits for others to leave as any load."""
    bench = make_bench(models=2, eviction_wait_s=0.01)
    await bench.use(A)
    with await bench.acquire(B):
        old = lent(bench, A)
        with pytest.raises(Overloaded):
            await bench.pool.replace(A, CPU, lambda: None)
        assert lent(bench, A) is old


@pytest.mark.parametrize("budget", [{"models": 1}, {"size_bytes": 19}])
async def test_what_never_fits_twice_is_refused_at_once(
    make_bench: MakeBench, budget: dict[str, int]
) -> None:
    """Nobody else could make that room by leaving."""
    bench = make_bench(**budget)
    await bench.use(A)
    old = lent(bench, A)
    with pytest.raises(FailedPrecondition, match="unload it and load it"):
        await bench.pool.replace(A, CPU, lambda: None)
    assert lent(bench, A) is old
    assert bench.loader.loads == [A]


async def test_another_model_makes_room(make_bench: MakeBench) -> None:
    """As for any load; the one that is being replaced is in use and stays."""
    bench = make_bench(models=2)
    await bench.use(A, B)
    await bench.pool.replace(A, CPU, lambda: None)
    await settle()
    assert bench.ready == {A}
    assert bench.observer.evicted == [B]


async def test_watchers_hear_of_no_unloading(make_bench: MakeBench) -> None:
    """The model goes on: for them it was ready all the while."""
    bench = make_bench()
    await bench.use(A)
    told = len(bench.published.events)
    await bench.pool.replace(A, CPU, lambda: None)
    await settle()
    assert not [each for each in bench.published.events[told:] if isinstance(each, ModelUnloaded)]
    assert bench.pool.departure(A) is None


async def test_what_was_asked_of_the_old_session_holds_for_the_new_one(
    make_bench: MakeBench,
) -> None:
    """Pin, keep-alive and the count of uses."""
    bench = make_bench()
    lease = await bench.acquire(A)
    lease.keep_alive(7.0)
    lease.release()
    bench.pool.pin(A, True)
    before = bench.pool.get(A)
    await bench.pool.replace(A, CPU, lambda: None)
    after = bench.pool.get(A)
    assert before is not None
    assert after is not None
    assert after is not before
    assert (after.pinned, after.keep_alive_s, after.uses) == (True, 7.0, before.uses)


@pytest.mark.parametrize("pinned", [True, False])
async def test_what_is_said_while_it_is_opened_holds(make_bench: MakeBench, pinned: bool) -> None:
    """Of pin and keep-alive the last word counts, not the one when the replacing began."""
    bench = make_bench()
    await bench.use(A)
    bench.pool.pin(A, not pinned)
    bench.loader.load_gates[A].close()
    task = await replacing(bench, A)
    bench.pool.pin(A, pinned)
    with await bench.acquire(A) as lease:
        lease.keep_alive(7.0)
    bench.loader.load_gates[A].open()
    await task
    after = bench.pool.get(A)
    assert after is not None
    assert (after.pinned, after.keep_alive_s) == (pinned, 7.0)


@pytest.mark.parametrize(("said", "expected"), [(None, True), (False, False)])
async def test_a_pin_of_the_new_manifest_holds_unless_somebody_said_otherwise(
    said: bool | None, expected: bool
) -> None:
    """What an operator said outlasts the manifest."""
    bench = Bench(pins={} if said is None else {A: said})
    await bench.use(A)
    await bench.pool.replace(A, CPU, lambda: None, pinned=True)
    after = bench.pool.get(A)
    assert after is not None
    assert after.pinned is expected
    await bench.shut_down()


async def test_an_unload_meanwhile_wins(make_bench: MakeBench) -> None:
    """Who wants the model out of memory gets that, and no session is left over."""
    bench = make_bench()
    await bench.use(A)
    bench.loader.load_gates[A].close()
    task = await replacing(bench, A)
    unload = asyncio.create_task(bench.pool.unload(A))
    await settle()
    bench.loader.load_gates[A].open()
    with pytest.raises(FailedPrecondition, match="taken out of memory"):
        await task
    await unload
    await settle()
    assert bench.pool.get(A) is None
    assert bench.counted == (0, 0)


async def test_a_caller_that_leaves_does_not_stop_it(make_bench: MakeBench) -> None:
    """The load is under way, and the swap comes."""
    bench = make_bench()
    await bench.use(A)
    old = lent(bench, A)
    bench.loader.load_gates[A].close()
    task = await replacing(bench, A)
    task.cancel()
    await settle()
    assert task.cancelled()
    bench.loader.load_gates[A].open()
    await settle()
    assert lent(bench, A) is not old


async def test_what_is_not_in_memory_is_not_replaced(make_bench: MakeBench) -> None:
    """There is nothing to take the place of."""
    bench = make_bench()
    with pytest.raises(FailedPrecondition, match="not in memory"):
        await bench.pool.replace(A, CPU, lambda: None)


async def test_closing_the_pool_ends_it(make_bench: MakeBench) -> None:
    """Who waits is told, and nothing is left in memory."""
    bench = make_bench()
    await bench.use(A)
    bench.loader.load_gates[A].close()
    task = await replacing(bench, A)
    await bench.pool.close()
    with pytest.raises(Unavailable):
        await task
    assert bench.counted == (0, 0)


async def test_looking_into_a_session_is_no_use_of_it(make_bench: MakeBench) -> None:
    """It forbids to close it meanwhile, and moves neither count nor time of the last use."""
    bench = make_bench(models=1, eviction_wait_s=0.01)
    await bench.use(A)
    resident = bench.pool.get(A)
    assert resident is not None
    before = (resident.uses, resident.last_used_s)
    lease = bench.pool.look_into(A)
    assert lease is not None
    with pytest.raises(Overloaded):
        await bench.acquire(B)
    lease.release()
    assert (resident.uses, resident.last_used_s) == before
    await bench.use(B)
    assert bench.ready == {B}
