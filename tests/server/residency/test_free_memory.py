"""Whether there is free memory: by the budgets, and by who watches the machine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from shoal_server.residency.free_memory import FreeMemory
from tests.server.batching.fakes import settle

from .fakes import CPU, A, B, Bench, C
from .test_pressure_monitor import Machine


@dataclass
class Watcher:
    """Says what a test says."""

    answer: str = ""
    asked: list[tuple[str, int]] = field(default_factory=list)

    async def shortage(self, device: str, more_bytes: int) -> str:
        self.asked.append((device, more_bytes))
        return self.answer


def free(bench: Bench, watcher: Watcher | None = None) -> FreeMemory:
    return FreeMemory(bench.pool, bench.loader, watcher)


async def test_the_budgets() -> None:
    """What is counted leaves room, or does not: to the byte, and to the model."""
    bench = Bench(models=2, size_bytes=25)
    await bench.use(A)
    assert await free(bench).obstacle(B, CPU) == ""
    bench.loader.predicted[B] = 15
    assert await free(bench).obstacle(B, CPU) == ""
    bench.loader.predicted[B] = 16
    assert "the budget is 25" in await free(bench).obstacle(B, CPU)
    bench.loader.predicted[B] = 10
    await bench.use(B)
    assert "2 models are in memory" in await free(bench).obstacle(C, CPU)
    await bench.shut_down()


async def test_who_watches_is_asked_with_what_loading_takes() -> None:
    """At its peak; and only when the budgets leave room."""
    bench, watcher = Bench(size_bytes=10), Watcher("too little")
    assert await free(bench, watcher).obstacle(A, CPU) == "too little"
    assert watcher.asked == [(CPU, bench.loader.predict_peak_bytes(A, CPU))]
    await bench.use(A)
    assert "budget" in await free(bench, watcher).obstacle(B, CPU)
    assert len(watcher.asked) == 1
    await bench.shut_down()


async def test_room_that_is_taken_during_the_look_is_not_free() -> None:
    """As when former residents come back while a model is to be loaded ahead."""
    bench = Bench(size_bytes=10)

    class Slow(Watcher):
        async def shortage(self, device: str, more_bytes: int) -> str:
            await bench.use(A)
            return ""

    assert "budget" in await free(bench, Slow()).obstacle(B, CPU)
    await bench.shut_down()


async def test_shortage_of_memory() -> None:
    """Above the threshold with it, or at a level above normal; by a look at that moment."""
    bench = Bench()
    machine = Machine(bench, others=40)
    assert await machine.monitor.shortage(CPU, 39) == ""
    assert "80% in use" in await machine.monitor.shortage(CPU, 40)
    machine.others = 96
    assert "critical" in await machine.monitor.shortage(CPU, 0)
    await bench.shut_down()


async def test_what_others_load_counts() -> None:
    """Two loads at once do not count on the same memory."""
    bench = Bench()
    machine = Machine(bench, others=40)
    bench.loader.load_gates[A].close()
    loading = asyncio.create_task(bench.acquire(A))
    await settle()
    peak_bytes = bench.loader.predict_peak_bytes(A, CPU)
    assert await machine.monitor.shortage(CPU, 39 - peak_bytes) == ""
    assert await machine.monitor.shortage(CPU, 40 - peak_bytes) != ""
    bench.loader.load_gates[A].open()
    (await loading).release()
    await bench.shut_down()


async def test_a_device_that_does_not_tell_is_not_short() -> None:
    """Nor is one that can not be looked at just now."""
    bench = Bench()
    machine = Machine(bench, others=99)
    assert await machine.monitor.shortage("cuda:7", 10**12) == ""
    machine.errors.append(OSError("gone"))
    assert await machine.monitor.shortage(CPU, 10**12) == ""
    await bench.shut_down()
