"""Idle sessions leave the pool when their time has come, and no others."""

from __future__ import annotations

import asyncio

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition
from shoal_server.lifecycle import UnloadReason
from shoal_server.residency.idle import IdleRules
from tests.server.batching.fakes import settle

from .conftest import MakeBench
from .fakes import CPU, A, B, Bench, C

GPU = "cuda:0"
RULES = IdleRules({CPU: 100.0, GPU: 40.0})


def gone(bench: Bench) -> list[tuple[ModelKey, UnloadReason]]:
    return [(key, why.reason) for key, why in bench.observer.gone]


def left_s(bench: Bench, key: ModelKey) -> float | None:
    resident = bench.pool.get(key)
    assert resident is not None
    return bench.pool.idle_left_s(resident)


async def test_an_idle_session_leaves_when_its_time_is_over(make_bench: MakeBench) -> None:
    """Not a moment before, and it says why."""
    bench = make_bench(idle=RULES)
    await bench.use(A)
    await bench.pass_time(99)
    assert bench.ready == {A}
    await bench.pass_time(1)
    assert gone(bench) == [(A, UnloadReason.IDLE)]
    departure = bench.pool.departure(A)
    assert departure is not None
    assert (departure.why.reason, departure.at_s) == (UnloadReason.IDLE, bench.now_s)


async def test_use_starts_the_time_anew(make_bench: MakeBench) -> None:
    """The time since the last use counts, not the time since the load."""
    bench = make_bench(idle=RULES)
    for _ in range(5):
        await bench.use(A)
        await bench.pass_time(90)
    assert bench.loader.loads == [A]
    await bench.pass_time(10)
    assert gone(bench) == [(A, UnloadReason.IDLE)]


async def test_each_session_has_its_own_time(make_bench: MakeBench) -> None:
    """The next that is due goes, and those used later stay their time."""
    bench = make_bench(idle=RULES)
    await bench.use(A)
    await bench.pass_time(30)
    await bench.use(B)
    await bench.pass_time(30)
    await bench.use(C, A)
    await bench.pass_time(69)
    assert bench.ready == {C, A}
    await bench.pass_time(30)
    assert [key for key, _ in gone(bench)] == [B, C]
    await bench.pass_time(1)
    assert [key for key, _ in gone(bench)] == [B, C, A]


async def test_there_is_one_timer_however_many_uses(make_bench: MakeBench) -> None:
    """A request of a busy model sets no timer: the one that is set looks at it anew."""
    bench = make_bench(idle=RULES)
    for _ in range(50):
        await bench.use(A, B)
    assert len([each for each in bench.timers if not each.cancelled]) == 1


async def test_a_leased_session_stays_however_long(make_bench: MakeBench) -> None:
    """A slow request counts as use for as long as it takes, and after it the time begins."""
    bench = make_bench(idle=RULES)
    lease = await bench.acquire(A)
    await bench.pass_time(1000)
    assert left_s(bench, A) == 100
    lease.release()
    await bench.pass_time(99)
    assert bench.ready == {A}
    await bench.pass_time(1)
    assert bench.ready == set()


async def test_a_session_that_was_loaded_and_never_used_leaves_too(make_bench: MakeBench) -> None:
    """Its time begins when it is ready."""
    bench = make_bench(idle=RULES)
    bench.loader.load_gates[A].close()
    caller = await bench.waiting(A)
    caller.cancel()
    await settle()
    bench.loader.load_gates[A].open()
    await settle()
    await bench.pass_time(100)
    assert gone(bench) == [(A, UnloadReason.IDLE)]


async def test_devices_have_times_of_their_own(make_bench: MakeBench) -> None:
    """A session on a GPU leaves sooner than one in RAM."""
    bench = make_bench(idle=RULES)
    await bench.use(A)
    (await bench.acquire(B, GPU)).release()
    await bench.pass_time(40)
    assert bench.ready == {A}


async def test_a_models_own_time_comes_before_the_servers(make_bench: MakeBench) -> None:
    """Shorter, longer, and for ever."""
    bench = make_bench(idle=RULES)
    bench.loader.idle_s = {A: 10.0, B: 500.0, C: 0.0}
    await bench.use(A, B, C)
    await bench.pass_time(10)
    assert bench.ready == {B, C}
    await bench.pass_time(10_000)
    assert bench.ready == {C}
    assert left_s(bench, C) is None


async def test_without_rules_nothing_leaves(make_bench: MakeBench) -> None:
    """A pool that was told nothing of idleness releases nobody."""
    bench = make_bench()
    await bench.use(A)
    await bench.pass_time(1e9)
    assert bench.ready == {A}
    assert bench.timers == []


async def test_a_request_can_release_the_model_after_it(make_bench: MakeBench) -> None:
    """Keep-alive 0: the session goes as soon as nobody uses it, and not before."""
    bench = make_bench(idle=RULES)
    other = await bench.acquire(A)
    with await bench.acquire(A) as lease:
        lease.keep_alive(0)
    await bench.pass_time(0)
    assert bench.ready == {A}
    other.release()
    await bench.pass_time(0)
    assert gone(bench) == [(A, UnloadReason.KEEP_ALIVE)]


@pytest.mark.parametrize("last", [True, False])
async def test_a_requests_keep_alive_holds_until_another_says_otherwise(
    make_bench: MakeBench, last: bool
) -> None:
    """The requests that say nothing leave it as it is."""
    bench = make_bench(idle=RULES)
    with await bench.acquire(A) as lease:
        lease.keep_alive(-1)
    await bench.use(A)
    await bench.pass_time(10_000)
    assert bench.ready == {A}
    assert left_s(bench, A) is None
    with await bench.acquire(A) as lease:
        lease.keep_alive(7)
    if not last:
        await bench.use(A)
    await bench.pass_time(7)
    assert gone(bench) == [(A, UnloadReason.KEEP_ALIVE)]


async def test_a_keep_alive_is_forgotten_with_the_session(make_bench: MakeBench) -> None:
    """Loaded anew, the model is kept as the server says."""
    bench = make_bench(idle=RULES)
    with await bench.acquire(A) as lease:
        lease.keep_alive(0)
    await bench.pass_time(1)
    await bench.use(A)
    await bench.pass_time(99)
    assert bench.ready == {A}


async def test_a_lease_that_is_back_says_nothing_more(make_bench: MakeBench) -> None:
    """Who gave a session back has no word in how long it stays."""
    bench = make_bench(idle=RULES)
    lease = await bench.acquire(A)
    lease.release()
    lease.keep_alive(0)
    await bench.pass_time(99)
    assert bench.ready == {A}


async def test_a_pinned_session_is_never_idle(make_bench: MakeBench) -> None:
    """Not even for a request that wants it released; unpinned, its time counts from its use."""
    bench = make_bench(idle=RULES)
    with await bench.acquire(A) as lease:
        lease.keep_alive(0)
        bench.pool.pin(A, True)
    await bench.pass_time(10_000)
    assert bench.ready == {A}
    assert left_s(bench, A) is None
    bench.pool.pin(A, False)
    await bench.pass_time(0)
    assert gone(bench) == [(A, UnloadReason.KEEP_ALIVE)]


async def test_a_pin_needs_a_session_in_memory(make_bench: MakeBench) -> None:
    """Pinning loads nothing and says so; there is nothing to unpin in what is not there."""
    bench = make_bench()
    with pytest.raises(FailedPrecondition, match="not in memory"):
        bench.pool.pin(A, True)
    bench.pool.pin(A, False)
    assert bench.loader.loads == []


async def test_a_pin_wakes_nobody_and_an_unpin_the_newcomer(make_bench: MakeBench) -> None:
    """Who waits for room gets it from the model that may go again."""
    bench = make_bench(models=1)
    await bench.use(A)
    bench.pool.pin(A, True)
    caller = await bench.waiting(B)
    assert not caller.done()
    bench.pool.pin(A, False)
    (await asyncio.wait_for(caller, 1)).release()
    assert bench.observer.evicted == [A]


async def test_a_request_brings_a_released_model_back(make_bench: MakeBench) -> None:
    """Whoever comes while it leaves waits for that, and gets it anew."""
    bench = make_bench(idle=RULES)
    await bench.use(A)
    bench.loader.close_gates[A].close()
    await bench.pass_time(100)
    caller = await bench.waiting(A)
    assert not caller.done()
    bench.loader.close_gates[A].open()
    (await asyncio.wait_for(caller, 1)).release()
    assert bench.loader.loads == [A, A]


async def test_an_unloading_that_was_given_up_leaves_the_time_running(
    make_bench: MakeBench,
) -> None:
    """A session that stays after all is released when it is idle."""
    bench = make_bench(idle=RULES)
    lease = await bench.acquire(A)
    unloading = asyncio.create_task(bench.pool.unload(A))
    await settle()
    unloading.cancel()
    await settle()
    lease.release()
    await bench.pass_time(100)
    assert gone(bench) == [(A, UnloadReason.IDLE)]


async def test_other_rules_hold_at_once(make_bench: MakeBench) -> None:
    """A shorter time releases what is over it already, a longer one keeps the rest."""
    bench = make_bench(idle=RULES)
    await bench.use(A)
    await bench.pass_time(50)
    await bench.use(B)
    bench.pool.change_idle(IdleRules({CPU: 50.0, GPU: 50.0}))
    await settle()
    assert bench.ready == {B}
    bench.pool.change_idle(IdleRules({CPU: 0.0, GPU: 0.0}))
    await bench.pass_time(10_000)
    assert bench.ready == {B}


async def test_a_closed_pool_releases_nothing_more(make_bench: MakeBench) -> None:
    """No timer is left behind."""
    bench = make_bench(idle=RULES)
    await bench.use(A)
    await bench.pool.close()
    assert all(each.cancelled for each in bench.timers)


async def test_adaptive_times_follow_the_use(make_bench: MakeBench) -> None:
    """A model asked for every 60 s waits for the next use, and a little longer than was set."""
    bench = make_bench(idle=IdleRules({CPU: 100.0, GPU: 100.0}, adaptive=True))
    for _ in range(20):
        await bench.use(A)
        await bench.pass_time(59)
    assert bench.loader.loads == [A]
    assert left_s(bench, A) == pytest.approx(180 - 59)


async def test_adaptive_times_know_a_model_that_had_left(make_bench: MakeBench) -> None:
    """Its rhythm counts over loads, so that a model that always comes back is kept for it."""
    bench = make_bench(idle=IdleRules({CPU: 100.0, GPU: 100.0}, adaptive=True))
    for _ in range(6):
        await bench.use(A)
        await bench.pass_time(119)
    assert bench.loader.loads == [A, A]
