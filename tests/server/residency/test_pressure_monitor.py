"""What is done when memory is short: in which order, for how long, and whom it spares."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import ModelLoadFailed, Overloaded
from shoal_server.lifecycle import LoadReason, PressureLevel, Unloading, UnloadReason
from shoal_server.residency.pressure import MemoryUse, PressureLimits
from shoal_server.residency.pressure_monitor import PressureMonitor
from shoal_server.residency.probes import Memory
from tests.server.batching.fakes import settle

from .conftest import MakeBench
from .fakes import CPU, A, B, Bench, C, D, Gate

GPU = "cuda:0"
NORMAL, ELEVATED, CRITICAL = PressureLevel
LIMITS = PressureLimits(threshold=0.8, lower=0.7, critical=0.95, hold_s=10.0)


@dataclass
class Changes:
    """Remembers what the monitor told."""

    levels: list[tuple[str, PressureLevel, PressureLevel]] = field(default_factory=list)
    last: dict[str, tuple[float, PressureLevel]] = field(default_factory=dict)
    looks: int = 0
    """At the CPU's memory."""
    seen: asyncio.Event = field(default_factory=asyncio.Event)

    def memory_seen(self, device: str, used: float, level: PressureLevel) -> None:
        self.last[device] = (used, level)
        self.looks += device == CPU
        self.seen.set()

    def pressure_changed(
        self, device: str, before: PressureLevel, after: PressureLevel, used: float
    ) -> None:
        self.levels.append((device, before, after))


class Machine:
    """A machine of 100 bytes, of which others use some, and its monitor."""

    def __init__(self, bench: Bench, *, others: int = 0) -> None:
        self.bench = bench
        self.others = others
        self.free_pages = 0
        """Of what others use: freed, but not given back."""
        self.shrinks = 0
        self.told = Changes()
        self.errors: list[Exception] = []
        """Raised by the next looks."""
        self.monitor = PressureMonitor(
            bench.pool,
            limits=LIMITS,
            probe=self.probe,
            shrink=self.shrink,
            observer=self.told,
            clock=lambda: bench.now_s,
        )

    def probe(self) -> Mapping[str, MemoryUse]:
        if self.errors:
            raise self.errors.pop()
        return {
            CPU: MemoryUse((Memory(100, 100 - self.others - self._in_memory()),)),
            GPU: MemoryUse((Memory(100, 100),)),
        }

    def _in_memory(self) -> int:
        sessions = self.bench.loader.sessions
        return sum(each.size_bytes + each.arena_bytes for each in sessions if not each.closed)

    def shrink(self) -> None:
        self.shrinks += 1
        self.others -= self.free_pages
        self.free_pages = 0

    async def look(self, *, after_s: float = 0.0) -> PressureLevel | None:
        self.bench.now_s += after_s
        await self.monitor.look()
        return self.monitor.level(CPU)

    async def looked(self, times: int) -> None:
        """Return when the monitor has looked so often in all."""
        while self.told.looks < times:
            self.told.seen.clear()
            await asyncio.wait_for(self.told.seen.wait(), 5)
        await settle()

    @property
    def gone(self) -> list[tuple[ModelKey, UnloadReason]]:
        return [(key, why.reason) for key, why in self.bench.observer.gone]


async def test_below_the_threshold_nothing_is_done(make_bench: MakeBench) -> None:
    """Nobody leaves and nothing is trimmed."""
    machine = Machine(make_bench(), others=45)
    await machine.bench.use(A, B, C)
    for _ in range(30):
        assert await machine.look(after_s=1) is NORMAL
    assert machine.shrinks == 0
    assert machine.gone == []
    assert machine.told.last[CPU] == (0.75, NORMAL)


async def test_the_least_recently_used_go_until_it_is_enough(make_bench: MakeBench) -> None:
    """One by one, in the order of their last use, and none more than needed."""
    machine = Machine(make_bench(), others=45)
    await machine.bench.use(A, B, C, D, A)
    assert await machine.look(after_s=60) is NORMAL
    assert machine.gone == []
    assert await machine.look(after_s=10) is NORMAL
    assert machine.gone == [(B, UnloadReason.PRESSURE), (C, UnloadReason.PRESSURE)]
    assert machine.told.levels == [(CPU, NORMAL, ELEVATED), (CPU, ELEVATED, NORMAL)]


async def test_free_pages_are_given_back_before_anybody_goes(make_bench: MakeBench) -> None:
    """What costs nobody anything comes first, and may be enough."""
    machine = Machine(make_bench(), others=75)
    machine.free_pages = 30
    await machine.bench.use(A)
    await machine.look(after_s=60)
    assert await machine.look(after_s=10) is NORMAL
    assert machine.shrinks == 1
    assert machine.gone == []


async def test_arenas_are_shrunk_before_anybody_goes(make_bench: MakeBench) -> None:
    """What runs have left behind is given back, of models in use too, and counts as no use."""
    machine = Machine(make_bench(), others=45)
    machine.bench.loader.arenas = {A: 10, B: 20}
    await machine.bench.use(A)
    resident = machine.bench.pool.get(A)
    assert resident is not None
    used_s = resident.last_used_s
    with await machine.bench.acquire(B):
        await machine.look(after_s=60)
        assert await machine.look(after_s=10) is NORMAL
    assert [each.arena_bytes for each in machine.bench.loader.sessions] == [0, 0]
    assert machine.gone == []
    assert resident.last_used_s == used_s


async def test_a_session_is_not_closed_while_it_shrinks(make_bench: MakeBench) -> None:
    """Whoever wants it gone waits for that, and then it goes."""
    bench = make_bench()
    await bench.use(A)
    bench.loader.shrink_gates[A].close()
    shrinking = asyncio.create_task(bench.pool.shrink(CPU))
    await settle()
    unloading = asyncio.create_task(bench.pool.unload(A))
    await settle()
    assert not bench.loader.sessions[0].closing
    bench.loader.shrink_gates[A].open()
    await asyncio.wait_for(asyncio.gather(shrinking, unloading), 1)
    assert bench.loader.sessions[0].closed


async def test_a_session_that_can_not_shrink_keeps_no_other_from_it(
    make_bench: MakeBench,
) -> None:
    """The failure is logged, and the session serves on."""
    bench = make_bench()
    bench.loader.arenas = {A: 10, B: 20}
    bench.loader.shrink_errors[A] = RuntimeError("no")
    await bench.use(A, B)
    await bench.pool.shrink(CPU)
    assert [each.arena_bytes for each in bench.loader.sessions] == [0, 0]
    assert bench.ready == {A, B}


async def test_the_pages_are_trimmed_once_for_each_rise(make_bench: MakeBench) -> None:
    """Where others use the memory, trimming again and again would only cost time."""
    machine = Machine(make_bench(), others=90)
    for _ in range(20):
        await machine.look(after_s=1)
    assert machine.shrinks == 1
    machine.others = 97
    await machine.look()
    assert machine.shrinks == 2


async def test_leased_and_pinned_sessions_stay(make_bench: MakeBench) -> None:
    """Short memory takes nothing from anybody who uses it or was promised it."""
    machine = Machine(make_bench(), others=90)
    await machine.bench.use(A, B, C)
    machine.bench.pool.pin(A, True)
    with await machine.bench.acquire(B):
        assert await machine.look(after_s=60) is CRITICAL
        assert machine.bench.ready == {A, B}
    assert machine.gone == [(C, UnloadReason.PRESSURE)]


async def test_what_was_used_just_now_stays_while_it_is_not_critical(
    make_bench: MakeBench,
) -> None:
    """A model that is asked for all the time is not loaded and released back and forth."""
    machine = Machine(make_bench(), others=65)
    await machine.bench.use(A, B)
    await machine.look()
    for _ in range(10):
        await machine.bench.use(B)  # lets a second pass
        await machine.look()
    assert machine.monitor.level(CPU) is ELEVATED
    assert machine.gone == [(A, UnloadReason.PRESSURE)]
    machine.others = 90
    await machine.look()
    assert machine.gone == [(A, UnloadReason.PRESSURE), (B, UnloadReason.PRESSURE)]


async def test_each_device_is_relieved_for_itself(make_bench: MakeBench) -> None:
    """Memory that is short on the CPU drives nobody from a GPU."""
    machine = Machine(make_bench(), others=90)
    (await machine.bench.acquire(A, GPU)).release()
    await machine.bench.use(B)
    await machine.look(after_s=60)
    assert machine.gone == [(B, UnloadReason.PRESSURE)]
    assert machine.monitor.level(GPU) is NORMAL


async def test_at_critical_no_model_is_loaded(make_bench: MakeBench) -> None:
    """The caller is told so, and when to come back; it is no failure of the model."""
    machine = Machine(make_bench(), others=96)
    await machine.look()
    told = "memory of cpu is 96% in use, critical from 95% on"
    with pytest.raises(Overloaded, match=told) as raised:
        await machine.bench.acquire(A)
    assert raised.value.retry_after_s > 0
    assert machine.bench.loader.loads == []
    assert machine.bench.pool.failure(A) is None
    (await machine.bench.acquire(A, GPU)).release()
    machine.others = 50
    await machine.look()
    await machine.bench.use(B)
    assert machine.bench.loader.loads == [A, B]


async def test_at_critical_what_is_in_memory_serves_on(make_bench: MakeBench) -> None:
    """Only loads are refused."""
    machine = Machine(make_bench(), others=90)
    lease = await machine.bench.acquire(A)
    await machine.look()
    assert machine.monitor.level(CPU) is CRITICAL
    (await machine.bench.acquire(A)).release()
    lease.release()


async def test_a_load_that_waited_for_room_is_refused_too(make_bench: MakeBench) -> None:
    """What was decided before memory got short is not begun after it."""
    machine = Machine(make_bench(models=1), others=50)
    lease = await machine.bench.acquire(A)
    caller = await machine.bench.waiting(B)
    machine.others = 90
    await machine.look()
    lease.release()
    with pytest.raises(Overloaded, match="in use"):
        await asyncio.wait_for(caller, 1)
    assert machine.bench.loader.loads == [A]
    assert machine.bench.counted == (0, 0)


async def test_a_load_that_would_be_too_much_is_made_room_for(make_bench: MakeBench) -> None:
    """Before it begins, and by the least recently used only."""
    machine = Machine(make_bench(), others=65)
    machine.bench.pool.guard_loads(machine.monitor.may_load)
    await machine.bench.use(A, B)
    assert machine.gone == []
    await machine.bench.use(C)
    assert machine.gone == [(A, UnloadReason.PRESSURE)]
    assert machine.bench.ready == {B, C}


async def test_a_load_that_would_be_too_much_whoever_goes_is_refused(
    make_bench: MakeBench,
) -> None:
    """Nobody is driven out in vain; the caller may come back."""
    machine = Machine(make_bench(), others=65)
    machine.bench.pool.guard_loads(machine.monitor.may_load)
    machine.bench.loader.predicted[C] = 30
    await machine.bench.use(A, B)
    with pytest.raises(Overloaded, match="85% in use, too much for a model"):
        await machine.bench.acquire(C)
    assert machine.gone == []
    assert machine.bench.counted == (2, 20)
    assert machine.bench.pool.failure(C) is None


async def test_nobody_makes_room_for_what_nobody_asks_for(make_bench: MakeBench) -> None:
    """Where a request's load would have others go: free memory is below the threshold."""
    machine = Machine(make_bench(), others=65)
    bench = machine.bench
    bench.pool.guard_loads(machine.monitor.may_load)
    await bench.use(A)
    with pytest.raises(Overloaded, match="would be 90% in use"):
        await bench.pool.load_ahead(C, CPU, hold_s=60.0, why=LoadReason.PRELOADED)
    assert machine.gone == []
    assert bench.ready == {A}
    machine.others = 40
    await bench.pool.load_ahead(C, CPU, hold_s=60.0, why=LoadReason.PRELOADED)
    assert bench.ready == {A, C}


async def test_a_request_while_memory_is_looked_at_makes_it_its_own(
    make_bench: MakeBench,
) -> None:
    """Then others go for it, and who asked is not told that nobody had asked."""
    machine = Machine(make_bench(), others=70)
    bench = machine.bench
    looking = Gate()
    looking.close()

    async def look_slowly(device: str, peak_bytes: int, *, unasked: bool) -> bool:
        if unasked:
            await looking.passed()
        return await machine.monitor.may_load(device, peak_bytes, unasked=unasked)

    await bench.use(A)
    bench.pool.guard_loads(look_slowly)
    load = bench.pool.load_ahead(C, CPU, hold_s=60.0, why=LoadReason.PRELOADED)
    ahead = asyncio.create_task(load)
    await asyncio.wait_for(looking.reached.wait(), 5)
    caller = await bench.waiting(C)
    looking.open()
    (await asyncio.wait_for(caller, 5)).release()
    await ahead
    assert machine.gone == [(A, UnloadReason.PRESSURE)]


async def test_loads_at_once_do_not_count_on_the_same_memory(make_bench: MakeBench) -> None:
    """What is still coming in counts: the second load begins when the first has ended."""
    machine = Machine(make_bench(), others=69)
    machine.bench.pool.guard_loads(machine.monitor.may_load)
    machine.bench.loader.load_gates[A].close()
    first = await machine.bench.waiting(A)
    await asyncio.wait_for(machine.bench.loader.load_gates[A].reached.wait(), 5)
    second = await machine.bench.waiting(B)
    await machine.looked(2)
    assert machine.bench.loader.loads == [A]
    machine.bench.loader.load_gates[A].open()
    (await first).release()
    (await asyncio.wait_for(second, 5)).release()
    assert machine.bench.loader.loads == [A, B]
    assert machine.gone == []


async def test_a_load_that_fails_lets_the_next_begin(make_bench: MakeBench) -> None:
    """Its memory is free again."""
    machine = Machine(make_bench(), others=75)
    machine.bench.pool.guard_loads(machine.monitor.may_load)
    machine.bench.loader.load_gates[A].close()
    machine.bench.loader.errors[A] = [ModelLoadFailed("no good")]
    first = await machine.bench.waiting(A)
    await asyncio.wait_for(machine.bench.loader.load_gates[A].reached.wait(), 5)
    second = await machine.bench.waiting(B)
    await machine.looked(2)
    machine.bench.loader.load_gates[A].open()
    with pytest.raises(ModelLoadFailed):
        await first
    (await asyncio.wait_for(second, 5)).release()


async def test_a_load_does_not_wait_for_others_for_ever(make_bench: MakeBench) -> None:
    """As long as for room, then it is refused and may be tried again."""
    machine = Machine(make_bench(eviction_wait_s=0.001), others=75)
    machine.bench.pool.guard_loads(machine.monitor.may_load)
    machine.bench.loader.load_gates[A].close()
    first = await machine.bench.waiting(A)
    await asyncio.wait_for(machine.bench.loader.load_gates[A].reached.wait(), 5)
    with pytest.raises(Overloaded, match="beside the models that are being loaded"):
        await machine.bench.acquire(B)
    machine.bench.loader.load_gates[A].open()
    (await first).release()


async def test_the_next_goes_only_when_the_last_has_gone(make_bench: MakeBench) -> None:
    """Memory that is still being freed counts as used, and drives nobody out."""
    machine = Machine(make_bench(), others=66)
    await machine.bench.use(A, B)
    machine.bench.loader.close_gates[A].close()
    await machine.look()
    machine.bench.now_s += 60
    looking = asyncio.create_task(machine.monitor.look())
    gate = machine.bench.loader.close_gates[A]
    await asyncio.wait_for(gate.reached.wait(), 5)
    assert machine.bench.ready == {B}
    machine.others = 50
    gate.open()
    await asyncio.wait_for(looking, 5)
    assert machine.gone == [(A, UnloadReason.PRESSURE)]


async def test_before_the_first_look_nothing_is_known(make_bench: MakeBench) -> None:
    """A device of which nobody told has no level."""
    machine = Machine(make_bench())
    assert machine.monitor.level(CPU) is None
    assert machine.monitor.use(CPU) is None
    await machine.look()
    assert machine.monitor.level("cuda:7") is None


async def test_a_look_that_fails_is_not_the_last(make_bench: MakeBench) -> None:
    """A probe that raises is logged, and asked again."""
    machine = Machine(make_bench(), others=97)
    machine.errors = [OSError("gone"), OSError("gone")]
    running = asyncio.create_task(machine.monitor.run(0))
    await asyncio.wait_for(machine.told.seen.wait(), 5)
    running.cancel()
    assert machine.errors == []
    assert machine.monitor.level(CPU) is CRITICAL


async def test_a_look_that_fails_stops_no_load(make_bench: MakeBench) -> None:
    """What can not be seen is not held against anybody."""
    machine = Machine(make_bench(), others=94)
    machine.bench.pool.guard_loads(machine.monitor.may_load)
    machine.errors = [OSError("gone")]
    await machine.bench.use(A)
    with pytest.raises(Overloaded):
        await machine.bench.acquire(B)


async def test_other_limits_hold_from_the_next_look_on(make_bench: MakeBench) -> None:
    """As when an operator changes them at run time."""
    machine = Machine(make_bench(), others=60)
    await machine.look()
    machine.monitor.change(PressureLimits(threshold=0.5, lower=0.4, critical=0.6, hold_s=0))
    assert await machine.look() is CRITICAL


async def test_while_ram_is_short_nothing_that_leaves_a_gpu_stays_warm(
    make_bench: MakeBench,
) -> None:
    """What is warm goes, and nothing comes until memory is no longer short."""
    machine = Machine(make_bench(), others=85)
    bench = machine.bench

    async def evict_from_the_gpu(key: ModelKey) -> list[ModelKey]:
        (await bench.acquire(key, GPU)).release()
        await bench.pool.release_unused(GPU, 0.0, Unloading(UnloadReason.PRESSURE))
        await settle()
        return [each.key for each in bench.pool.warm()]

    assert await evict_from_the_gpu(A) == [A]
    await machine.look()
    assert await machine.look(after_s=10) is ELEVATED
    assert bench.pool.warm() == []
    assert await evict_from_the_gpu(B) == []
    machine.others = 10
    assert await machine.look() is NORMAL
    assert await evict_from_the_gpu(B) == [B]
