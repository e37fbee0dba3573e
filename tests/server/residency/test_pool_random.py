"""Whatever happens in whatever order, the pool keeps its promises."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from shoal_server.core import ModelKey
from shoal_server.errors import (
    AllocationFailed,
    FailedPrecondition,
    ModelLoadFailed,
    ShoalError,
)
from shoal_server.lifecycle import LoadReason, ModelState, Unloading, UnloadReason
from shoal_server.residency.idle import IdleRules
from shoal_server.residency.resident import Lease, State
from tests.server.batching.fakes import settle

from .fakes import CPU, A, B, Bench, C, D, FakeSession

E, F = ModelKey("e", "1"), ModelKey("f", "1")
GPU = "cuda:0"
KEYS = (A, B, C, D, E, F)
SIZES = {A: 10, B: 10, C: 20, D: 20, E: 20, F: 20}
# Two of the last three fit on the GPU.
DEVICES = {A: CPU, B: CPU, C: CPU, D: GPU, E: GPU, F: GPU}
MODELS, BYTES = 3, 45

# What watchers were told last, by the state that a session is in; None: in none.
STATES = {
    None: {ModelState.REGISTERED, ModelState.ERROR},
    State.LOADING: {ModelState.LOADING},
    State.READY: {ModelState.READY},
    State.LEAVING: {ModelState.UNLOADING},
    State.CLOSING: {ModelState.UNLOADING},
}

# What to do, to which model, and to which of the tasks or leases at hand.
Step = tuple[str, ModelKey, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("acquire", "acquire", "acquire", "release", "release", "cancel"),
                *("use", "use", "use", "use"),
                *("replace", "load", "load_ahead", "pin", "unpin", "unload", "force", "pass_time"),
                *("hold_load", "hold_close", "go_on", "fail", "exhaust"),
                *("keep_alive", "hold_on", "let_go", "press", "refuse"),
                *("hold_fill", "fail_fill", "change_files", "change_back", "short", "plenty"),
            ]
        ),
        st.sampled_from(KEYS),
        st.integers(0, 7),
    ),
    max_size=60,
)


class Scenario:
    """Does what hypothesis says, and looks at the pool after each step."""

    def __init__(self) -> None:
        self.bench = Bench(
            models=MODELS, size_bytes=BYTES, idle=IdleRules({CPU: 25.0, "cuda:0": 25.0})
        )
        self.bench.loader.predicted.update(SIZES)
        # Beside all that the CPU may hold there is room for one.
        self.bench.loader.warm_bytes = 4
        self.callers: list[asyncio.Task[Lease[FakeSession]]] = []
        self.controls: list[asyncio.Task[None]] = []
        self.leases: list[Lease[FakeSession]] = []
        self.replacing: list[asyncio.Task[None]] = []
        self.has_replaced = False

    async def run(self, steps: list[Step]) -> None:
        for name, key, number in steps:
            getattr(self, name)(key, number)
            if number % 2:  # else the next step comes before this one's consequences
                await settle()
            self.collect()
            self.check()
        await self.end()

    def acquire(self, key: ModelKey, _: int) -> None:
        self.callers.append(asyncio.create_task(self.bench.acquire(key, DEVICES[key])))

    def use(self, key: ModelKey, _: int) -> None:
        self._control(self._use(key))

    async def _use(self, key: ModelKey) -> None:
        (await self.bench.acquire(key, DEVICES[key])).release()

    def release(self, _: ModelKey, number: int) -> None:
        if self.leases:
            self.leases.pop(number % len(self.leases)).release()

    def cancel(self, _: ModelKey, number: int) -> None:
        tasks: list[asyncio.Task[Any]] = [*self.callers, *self.controls]
        if tasks:
            tasks[number % len(tasks)].cancel()

    def load(self, key: ModelKey, _: int) -> None:
        self._control(self.bench.pool.load(key, DEVICES[key]))

    def load_ahead(self, key: ModelKey, number: int) -> None:
        self._control(
            self.bench.pool.load_ahead(key, CPU, hold_s=10.0 * number, why=LoadReason.PRELOADED)
        )

    def replace(self, key: ModelKey, _: int) -> None:
        # Three at once would wait for each other's room; one that nobody waits for goes on.
        if all(each.done() and not each.cancelled() for each in self.replacing):
            self.has_replaced = True
            self._control(self.bench.pool.replace(key, DEVICES[key], lambda: None))
            self.replacing.append(self.controls[-1])

    def pin(self, key: ModelKey, _: int) -> None:
        self._control(self.bench.pool.load(key, DEVICES[key], pin=True))

    def unpin(self, key: ModelKey, _: int) -> None:
        self._control(self.bench.pool.load(key, DEVICES[key], pin=False))

    def unload(self, key: ModelKey, _: int) -> None:
        self._control(self.bench.pool.unload(key))

    def force(self, key: ModelKey, _: int) -> None:
        self._control(self.bench.pool.unload(key, force_after_s=0.0))

    def hold_load(self, key: ModelKey, _: int) -> None:
        self.bench.loader.load_gates[key].close()

    def hold_close(self, key: ModelKey, _: int) -> None:
        self.bench.loader.close_gates[key].close()

    def go_on(self, key: ModelKey, _: int) -> None:
        loader = self.bench.loader
        for gates in (loader.load_gates, loader.close_gates, loader.fill_gates):
            gates[key].open()

    def hold_fill(self, key: ModelKey, _: int) -> None:
        self.bench.loader.fill_gates[key].close()

    def fail_fill(self, key: ModelKey, _: int) -> None:
        self.bench.loader.fill_problems[key] = "not what was prepared"

    def change_files(self, key: ModelKey, _: int) -> None:
        self.bench.loader.changed.add(key)

    def change_back(self, key: ModelKey, _: int) -> None:
        self.bench.loader.changed.discard(key)
        self.bench.loader.fill_problems.pop(key, None)

    def short(self, key: ModelKey, _: int) -> None:
        self.bench.pool.memory_is_short(DEVICES[key], True)

    def plenty(self, key: ModelKey, _: int) -> None:
        self.bench.pool.memory_is_short(DEVICES[key], False)

    def fail(self, key: ModelKey, _: int) -> None:
        self.bench.loader.errors[key].append(ModelLoadFailed("no good"))

    def exhaust(self, key: ModelKey, number: int) -> None:
        self.bench.loader.errors[key].extend([AllocationFailed("no memory")] * (number % 3))

    def pass_time(self, _: ModelKey, number: int) -> None:
        self.bench.now_s += 10.0 * number
        self.bench.call_due()

    def keep_alive(self, _: ModelKey, number: int) -> None:
        if self.leases:
            self.leases[number % len(self.leases)].keep_alive(number - 1.0)

    def hold_on(self, key: ModelKey, _: int) -> None:
        with suppress(FailedPrecondition):
            self.bench.pool.pin(key, True)

    def let_go(self, key: ModelKey, _: int) -> None:
        self.bench.pool.pin(key, False)

    def press(self, key: ModelKey, number: int) -> None:
        self._control(self._release_unused(DEVICES[key], number % 2 * 10.0))

    async def _release_unused(self, device: str, unused_s: float) -> None:
        await self.bench.pool.release_unused(device, unused_s, Unloading(UnloadReason.PRESSURE))

    def refuse(self, key: ModelKey, number: int) -> None:
        self.bench.pool.refuse_loads(DEVICES[key], "no memory" if number % 2 else None)

    def _control(self, work: Coroutine[Any, Any, None]) -> None:
        self.controls.append(asyncio.create_task(work))

    def collect(self) -> None:
        """Take what the tasks that are done have brought."""
        for task in [each for each in self.callers if each.done()]:
            self.callers.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.leases.append(task.result())
            elif not task.cancelled():
                assert isinstance(task.exception(), ShoalError), task
        for control in [each for each in self.controls if each.done()]:
            self.controls.remove(control)
            if not control.cancelled():
                assert isinstance(control.exception(), ShoalError | None), control

    def check(self) -> None:
        bench = self.bench
        bench.pool.check_integrity()
        assert bench.observer.counted.get(CPU, (0, 0)) == bench.counted
        in_memory = [each for each in bench.loader.sessions if not each.closed]
        # One session of a model at a time, unless one takes another's place, and all that
        # takes memory is counted.
        assert len({each.key for each in in_memory}) == len(in_memory) or self.has_replaced
        warm_bytes = sum(each.size_bytes for each in bench.loader.forms if each.begun)
        for device in (CPU, GPU):
            there = [each for each in in_memory if each.device == device]
            taken_bytes = sum(each.size_bytes for each in there) + warm_bytes * (device == CPU)
            models, size_bytes = bench.pool.counted(device)
            assert taken_bytes <= size_bytes <= BYTES, bench.pool
            assert len(there) <= models <= MODELS
        sizes = [each.form.size_bytes for each in bench.pool.warm()]
        assert bench.warm.now == (len(sizes), sum(sizes))
        assert warm_bytes <= sum(sizes), bench.pool
        for lease in self.leases:
            assert not lease.session.closing, bench.pool
        told = bench.published.states()
        for key in KEYS:
            resident = bench.pool.get(key)
            assert (
                told.get(key, ModelState.REGISTERED) in STATES[resident.state if resident else None]
            )
            if resident is not None and resident.state is State.READY:
                assert resident.session is not None
                assert resident.session.aborted is None, "lends what it has aborted"

    async def end(self) -> None:
        """Hold nothing up any longer: everybody gets an answer, and the memory is free again."""
        loader = self.bench.loader
        for device in (CPU, GPU):
            self.bench.pool.refuse_loads(device, None)
        for key in KEYS:
            loader.errors[key].clear()
            self.go_on(key, 0)
        await settle()
        for key in KEYS:
            self._control(self.bench.pool.load(key, DEVICES[key], pin=False))
        for _ in range(100):
            await settle()
            self.collect()
            self.check()
            while self.leases:
                self.leases.pop().release()
            for key in KEYS:  # a caller that waited may have pinned it just now
                self.let_go(key, 0)
            if not self.callers and not self.controls:
                break
        assert not self.callers, self.bench.pool
        assert not self.controls, self.bench.pool
        self.tell_hypothesis()
        opened = [each.key for each in loader.sessions if not each.closed]
        already = len(loader.closed)
        await self.bench.shut_down()
        assert loader.closed[already:] == opened[::-1]

    def tell_hypothesis(self) -> None:
        """What was met on the way."""
        for why in {str(why.reason) for _, why in self.bench.observer.gone}:
            event(why)
        for release in self.bench.warm.released:
            event(f"warm, {release.why.reason if release.why else release.problem}")
        if self.bench.warm.loaded:
            event("loaded from its warm form")


@given(STEPS)
@settings(deadline=None, max_examples=300)
def test_the_pool_keeps_its_promises(steps: list[Step]) -> None:
    """Within budget, one session a model, no lease of a closed one, nobody waits for ever."""
    asyncio.run(Scenario().run(steps))


async def test_the_scenario_would_notice_an_eviction_of_a_leased_model() -> None:
    """The random test looks: a pool that breaks its promise fails it."""
    scenario = Scenario()
    scenario.acquire(A, 1)
    await settle()
    scenario.collect()
    scenario.check()
    scenario.leases[0].session.closing = True
    with pytest.raises(AssertionError):
        scenario.check()
