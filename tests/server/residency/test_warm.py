"""What leaves a GPU stays warm in RAM, for as long as nobody needs the room."""

from __future__ import annotations

import asyncio

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import AllocationFailed, ModelLoadFailed, Overloaded
from shoal_server.lifecycle import Unloading, UnloadReason, WarmRelease
from shoal_server.residency.idle import IdleRules
from tests.server.batching.fakes import settle

from .conftest import MakeBench
from .fakes import CPU, A, B, Bench, C, D

GPU = "cuda:0"
RULES = IdleRules({CPU: 100.0, GPU: 40.0})
WARM_BYTES = 8
PRESSURE = Unloading(UnloadReason.PRESSURE)


async def use_on_gpu(bench: Bench, *keys: ModelKey) -> None:
    for key in keys:
        (await bench.acquire(key, GPU)).release()
        await settle()


async def make_warm(bench: Bench, *keys: ModelKey) -> None:
    """Each was used on the GPU, in this order, and is warm now."""
    for key in keys:
        await use_on_gpu(bench, key)
        await bench.pool.release_unused(GPU, 0.0, PRESSURE)
        await settle()


def warm(bench: Bench) -> list[ModelKey]:
    return [each.key for each in bench.pool.warm()]


def released(bench: Bench) -> list[tuple[ModelKey, str]]:
    return [(each.key, str(each)) for each in bench.warm.released]


async def test_an_idle_session_on_a_gpu_stays_warm(make_bench: MakeBench) -> None:
    """The GPU's memory is free, RAM holds and counts its warm form, and those who ask know."""
    bench = make_bench(idle=RULES)
    await use_on_gpu(bench, A)
    await bench.pass_time(40)
    assert bench.pool.counted(GPU) == (0, 0)
    assert bench.counted == (0, WARM_BYTES)
    assert (bench.ready, warm(bench)) == (set(), [A])
    assert bench.pool.is_warm(A)
    assert bench.warm.now == (1, WARM_BYTES)
    assert bench.observer.gone == [(A, Unloading(UnloadReason.IDLE, stays_warm=True))]


async def test_a_request_brings_it_back_from_ram(make_bench: MakeBench) -> None:
    """Its files are not read, and RAM is free again once it is on the GPU."""
    bench = make_bench(idle=RULES)
    await make_warm(bench, A)
    await use_on_gpu(bench, A)
    assert (bench.loader.loads, bench.loader.warm_loads) == ([A], [A])
    assert (bench.counted, warm(bench)) == ((0, 0), [])
    assert bench.warm.loaded == [A]
    assert released(bench) == []
    resident = bench.pool.get(A)
    assert resident is not None
    assert resident.from_warm


async def test_it_leaves_ram_when_it_was_not_used_for_long(make_bench: MakeBench) -> None:
    """The time counts from its last use, not from when it left the GPU."""
    bench = make_bench(idle=RULES)
    await use_on_gpu(bench, A)
    await bench.pass_time(99)
    (form,) = bench.pool.warm()
    assert bench.pool.warm_left_s(form) == 1
    await bench.pass_time(1)
    assert (bench.counted, warm(bench)) == ((0, 0), [])
    assert released(bench) == [(A, "idle")]


async def test_each_model_may_have_a_time_of_its_own_in_ram(make_bench: MakeBench) -> None:
    """As on the GPU: sooner, later, or for ever."""
    bench = make_bench(idle=RULES)
    bench.loader.warm_idle_s = {A: 60.0, B: 500.0, C: 0.0}
    await use_on_gpu(bench, A, B, C)
    await bench.pass_time(60)
    assert warm(bench) == [B, C]
    await bench.pass_time(10_000)
    assert warm(bench) == [C]
    assert bench.pool.warm_left_s(bench.pool.warm()[0]) is None


async def test_other_rules_hold_for_what_is_warm_already(make_bench: MakeBench) -> None:
    """A changed setting takes effect at once."""
    bench = make_bench(idle=RULES)
    await make_warm(bench, A)
    await bench.pass_time(30)
    bench.pool.change_idle(IdleRules({CPU: 20.0, GPU: 40.0}))
    assert warm(bench) == []


async def test_no_stage_where_ram_is_left_first(make_bench: MakeBench) -> None:
    """With a time in RAM that is no longer than that on the GPU, it goes wholly."""
    bench = make_bench(idle=IdleRules({CPU: 40.0, GPU: 40.0}))
    await use_on_gpu(bench, A)
    await bench.pass_time(40)
    assert (bench.counted, warm(bench)) == ((0, 0), [])
    assert bench.observer.gone == [(A, Unloading(UnloadReason.IDLE))]


@pytest.mark.parametrize("keep_alive_s", [0.0, 30.0])
async def test_keep_alive_releases_a_model_wholly(
    make_bench: MakeBench, keep_alive_s: float
) -> None:
    """Who says how long a model is kept means all of its memory."""
    bench = make_bench(idle=RULES)
    with await bench.acquire(A, GPU) as lease:
        lease.keep_alive(keep_alive_s)
    await bench.pass_time(30)
    assert (bench.ready, warm(bench)) == (set(), [])


async def test_a_model_kept_for_ever_stays_warm_for_ever(make_bench: MakeBench) -> None:
    """Where others need the GPU, a negative keep-alive holds in RAM."""
    bench = make_bench(idle=RULES, models=1)
    with await bench.acquire(A, GPU) as lease:
        lease.keep_alive(-1)
    await use_on_gpu(bench, B)
    await bench.pass_time(10_000)
    assert warm(bench) == [A]


async def test_what_is_evicted_from_a_gpu_stays_warm(make_bench: MakeBench) -> None:
    """For the others' room on the GPU its place in RAM is none."""
    bench = make_bench(models=1)
    await use_on_gpu(bench, A, B, A)
    assert (bench.loader.loads, bench.loader.warm_loads) == ([A, B], [A])
    assert warm(bench) == [B]


@pytest.mark.parametrize("is_warm", [False, True])
async def test_unload_takes_it_out_of_ram_too(make_bench: MakeBench, is_warm: bool) -> None:
    """Whoever calls UnloadModel gets all of the memory back, on the GPU or warm."""
    bench = make_bench()
    await use_on_gpu(bench, A)
    if is_warm:
        await bench.pool.release_unused(GPU, 0.0, PRESSURE)
    await bench.pool.unload(A)
    assert (bench.counted, bench.pool.counted(GPU)) == ((0, 0), (0, 0))
    assert released(bench) == [(A, "asked")] * is_warm


async def test_unload_waits_for_what_is_being_filled(make_bench: MakeBench) -> None:
    """It answers when the memory is free."""
    bench = make_bench()
    bench.loader.fill_gates[A].close()
    await make_warm(bench, A)
    caller = asyncio.create_task(bench.pool.unload(A))
    await settle()
    assert not caller.done()
    assert bench.counted == (0, WARM_BYTES)
    bench.loader.fill_gates[A].open()
    await caller
    assert bench.counted == (0, 0)


async def test_a_session_on_the_cpu_leaves_wholly(make_bench: MakeBench) -> None:
    """There is nothing below RAM."""
    bench = make_bench(idle=RULES)
    await bench.use(A)
    await bench.pass_time(100)
    assert (bench.counted, warm(bench)) == ((0, 0), [])


async def test_room_in_ram_is_made_of_warm_forms_first(make_bench: MakeBench) -> None:
    """The least recently used of them, no more than needed, and no session while they do."""
    bench = make_bench(size_bytes=38)
    await bench.use(D)
    await make_warm(bench, A, B, C)
    assert bench.counted == (1, 10 + 3 * WARM_BYTES)
    await bench.acquire(A, CPU)
    # That A was warm is of no use to a session on the CPU: it goes by itself.
    assert (warm(bench), bench.ready) == ([B, C], {D, A})
    other = ModelKey("other", "1")
    (await bench.acquire(other)).release()
    assert released(bench) == [(B, "evicted to make room for other@1")]
    assert (warm(bench), bench.ready) == ([C], {D, A})


async def test_a_limit_of_models_is_none_for_warm_forms(make_bench: MakeBench) -> None:
    """They are no models in memory: neither counted as such nor evicted for one more."""
    bench = make_bench(models=1)
    await make_warm(bench, A, B)
    await bench.use(C, D)
    assert (warm(bench), bench.ready) == ([A, B], {D})


async def test_no_session_goes_for_a_warm_form(make_bench: MakeBench) -> None:
    """Older warm forms do; where they are not enough, it is not kept."""
    bench = make_bench(size_bytes=27)
    await bench.use(D)
    await make_warm(bench, A, B, C)
    assert (warm(bench), bench.ready) == ([B, C], {D})
    bench.loader.warm_bytes = 18
    await use_on_gpu(bench, A)
    await bench.pool.release_unused(GPU, 0.0, PRESSURE)
    assert (warm(bench), bench.ready) == ([B, C], {D})
    assert bench.observer.gone[-1] == (A, PRESSURE)


async def test_short_memory_takes_warm_forms_first(make_bench: MakeBench) -> None:
    """However short ago they were used, the least recent first; then sessions."""
    bench = make_bench()
    await bench.use(D)
    await make_warm(bench, A, B)
    gone = [await bench.pool.release_unused(CPU, 0.0, PRESSURE) for _ in range(4)]
    assert gone == [A, B, D, None]
    assert released(bench) == [(A, "pressure"), (B, "pressure")]


async def test_while_memory_is_short_nothing_stays_warm(make_bench: MakeBench) -> None:
    """It would take what others are about to give back."""
    bench = make_bench()
    bench.pool.memory_is_short(CPU, True)
    await make_warm(bench, A)
    assert warm(bench) == []
    bench.pool.memory_is_short(CPU, False)
    await make_warm(bench, A)
    assert warm(bench) == [A]


async def test_what_is_being_filled_is_not_waited_for(make_bench: MakeBench) -> None:
    """The files are as near; it counts until it is really gone."""
    bench = make_bench()
    bench.loader.fill_gates[A].close()
    await make_warm(bench, A)
    await use_on_gpu(bench, A)
    assert (bench.loader.loads, bench.loader.warm_loads) == ([A, A], [])
    assert bench.counted == (0, WARM_BYTES)
    bench.loader.fill_gates[A].open()
    await settle()
    assert (bench.counted, warm(bench)) == ((0, 0), [])


async def test_what_can_not_be_read_does_not_stay(make_bench: MakeBench) -> None:
    """That it was to stay was told; so it is told that it does not, and why."""
    bench = make_bench()
    bench.loader.fill_problems[A] = "model.onnx is missing"
    await make_warm(bench, A)
    assert bench.observer.gone[-1][1].stays_warm
    assert bench.warm.released == [WarmRelease(A, WARM_BYTES, None, "model.onnx is missing")]
    assert bench.counted == (0, 0)


async def test_changed_files_are_read(make_bench: MakeBench) -> None:
    """What stays warm is never older than what is on disk."""
    bench = make_bench()
    await make_warm(bench, A)
    bench.loader.changed.add(A)
    await use_on_gpu(bench, A)
    assert (bench.loader.loads, bench.loader.warm_loads) == ([A, A], [])
    assert released(bench) == [(A, "its files were changed")]


async def test_a_load_that_can_be_tried_again_finds_it_warm(make_bench: MakeBench) -> None:
    """It is dropped only by failures that are remembered: it may be at fault."""
    bench = make_bench()
    await make_warm(bench, A)
    bench.pool.guard_loads(refuse)
    with pytest.raises(Overloaded, match="not now"):
        await bench.pool.acquire(A, GPU)
    assert warm(bench) == [A]
    bench.pool.guard_loads(admit)
    bench.loader.errors[A].append(ModelLoadFailed("no good"))
    with pytest.raises(ModelLoadFailed):
        await bench.pool.acquire(A, GPU)
    assert (warm(bench), released(bench)) == ([], [(A, "no good")])


async def refuse(device: str, peak_bytes: int, *, unasked: bool) -> bool:
    raise Overloaded("not now", retry_after_s=1.0)


async def admit(device: str, peak_bytes: int, *, unasked: bool) -> bool:
    return True


async def test_a_load_that_needs_memory_is_tried_again_from_ram(make_bench: MakeBench) -> None:
    """Another model on the GPU makes way, and the second try needs no file either."""
    bench = make_bench()
    await make_warm(bench, A)
    await use_on_gpu(bench, B)
    bench.loader.errors[A].append(AllocationFailed("no memory"))
    await use_on_gpu(bench, A)
    assert bench.loader.warm_loads == [A, A]
    assert warm(bench) == [B]


async def test_it_is_held_while_it_is_being_loaded(make_bench: MakeBench) -> None:
    """Nobody takes from a load what it reads from."""
    bench = make_bench(size_bytes=20)
    await make_warm(bench, A)
    bench.loader.load_gates[A].close()
    caller = asyncio.create_task(bench.acquire(A, GPU))
    await settle()
    assert await bench.pool.release_unused(CPU, 0.0, PRESSURE) is None
    assert warm(bench) == [A]
    bench.loader.load_gates[A].open()
    (await caller).release()
    assert bench.loader.warm_loads == [A]


async def test_a_load_waits_for_what_is_being_filled(make_bench: MakeBench) -> None:
    """Where memory is tight it begins when that is done, like after another load."""
    bench = make_bench()

    async def nothing_else_comes_in(device: str, peak_bytes: int, *, unasked: bool) -> bool:
        return bench.pool.loading_bytes(CPU) == 0

    bench.loader.fill_gates[A].close()
    await make_warm(bench, A)
    bench.pool.guard_loads(nothing_else_comes_in)
    caller = await bench.waiting(B)
    assert bench.loader.loads == [A]
    bench.loader.fill_gates[A].open()
    (await asyncio.wait_for(caller, 5)).release()
