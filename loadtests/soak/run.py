"""One soak: rounds of load and change, each ended by a look at what is left.

After each round the callers and operators have left: then the server must hold nothing for
anybody, and its books must balance. Then every model is unloaded, and what the process
still takes is the floor: it must not rise from the first round to the last.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import grpc.aio
import psutil

from loadtests.servers import Sample, ServerUnderTest
from loadtests.soak.callers import Caller
from loadtests.soak.control import Control
from loadtests.soak.names import Names
from loadtests.soak.operators import Operator
from loadtests.soak.scene import Scene
from loadtests.soak.verdict import count_problems, event_problems, idle_problems
from loadtests.soak.versions import keys
from loadtests.soak.watching import Events, Memory, follow, watch_memory
from shoal.v1 import embed_pb2_grpc, statistics_pb2
from shoal.v1 import model_control_pb2 as pb

_CONNECTIONS = 8
# Without it channels of one process share connections.
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
# How long the server may take to notice that everybody has left.
_SETTLES_S = 30.0
_LOOKS_EVERY_S = 0.05
# What was loaded last is still being packed, and what nobody asks for leaves.
_COOLS_S = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do."""

    seconds: float
    rounds: int
    callers: int
    streams: int
    """Of the callers, those who ask over streams."""
    operators: int
    seed: int
    idle_s: float
    """How long to look at a server that nobody calls; 0: not at all."""


@dataclass(slots=True)
class Found:
    """What was seen."""

    memory: Memory
    events: Events
    floors_bytes: list[int] = field(default_factory=list)
    """Memory of the process without models, after each round."""
    operations: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    took_s: float = 0.0
    """Of the rounds, without what comes between them."""
    cpu_s: float = 0.0
    """Of the server, in that time."""
    idle_share: float | None = None
    """Of one core, that the server takes when nobody calls it."""


class Soak:
    """Runs once, on one event loop."""

    def __init__(self, plan: Plan, scene: Scene, server: ServerUnderTest) -> None:
        """Set up; nothing is called yet."""
        self._plan = plan
        self._scene = scene
        self._server = server
        self._process = psutil.Process(server.pid)
        self._found = Found(Memory(), Events())

    async def run(self) -> Found:
        """All rounds, and the comparison of what both sides counted."""
        channels = [
            grpc.aio.insecure_channel(self._server.address, _OWN_CONNECTION)
            for _ in range(_CONNECTIONS)
        ]
        control = Control(channels[0], self._scene)
        names = Names(self._scene.timeline)
        callers = [
            Caller(
                self._scene,
                embed_pb2_grpc.EmbedServiceStub(channels[number % _CONNECTIONS]),
                f"{self._plan.seed}/caller/{number}",
            )
            for number in range(self._plan.callers)
        ]
        operators = [
            Operator(self._scene, control, names, f"{self._plan.seed}/operator/{number}")
            for number in range(max(1, self._plan.operators))
        ]
        following = asyncio.create_task(follow(control, self._found.events))
        try:
            await operators[0].set_up()
            for number in range(self._plan.rounds):
                await self._round(callers, operators, control)
                await self._settle(control)
                if number == self._plan.rounds - 1:
                    await self._look_at_idleness()
                await self._empty(control)
            await self._compare(control)
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            for channel in channels:
                await channel.close()
        return self._found

    async def _round(
        self, callers: Sequence[Caller], operators: Sequence[Operator], control: Control
    ) -> None:
        plan, found, enough = self._plan, self._found, asyncio.Event()
        watching = asyncio.create_task(watch_memory(control, self._process, found.memory, enough))
        began_s, cpu_before_s = time.monotonic(), self._cpu_s()
        until_s = began_s + plan.seconds / plan.rounds
        working = [
            each.stream(until_s) if number < plan.streams else each.call(until_s)
            for number, each in enumerate(callers)
        ]
        working += [each.operate(until_s) for each in operators[: plan.operators]]
        await asyncio.gather(*working)
        enough.set()
        await watching
        found.took_s += time.monotonic() - began_s
        found.cpu_s += self._cpu_s() - cpu_before_s
        found.operations = sum((each.done for each in operators), Counter())

    async def _settle(self, control: Control) -> None:
        """Nothing may be left that is held for anybody."""
        give_up_s = time.monotonic() + _SETTLES_S
        while problems := list(idle_problems(await control.info())):
            if time.monotonic() > give_up_s:
                self._found.problems += [f"when all had left: {each}" for each in problems]
                return
            await asyncio.sleep(_LOOKS_EVERY_S)

    async def _look_at_idleness(self) -> None:
        if self._plan.idle_s:
            await asyncio.sleep(_COOLS_S)
            before_s = self._cpu_s()
            await asyncio.sleep(self._plan.idle_s)
            self._found.idle_share = (self._cpu_s() - before_s) / self._plan.idle_s

    async def _empty(self, control: Control) -> None:
        """Unload everything; what the process still takes is the floor."""
        for key in keys():
            await control.call("UnloadModel", pb.UnloadModelRequest(model=key))
        device = (await control.info()).devices[0]
        if device.resident_models or device.resident_bytes:
            self._found.problems.append(
                f"with nothing in memory {device.resident_models} models of "
                f"{device.resident_bytes} bytes are counted"
            )
        self._found.floors_bytes.append(self._process.memory_info().rss)

    async def _compare(self, control: Control) -> None:
        found, ledger = self._found, self._scene.ledger
        statistics = await control.call("GetStatistics", statistics_pb2.GetStatisticsRequest())
        info = await control.info()
        samples = await self._samples_when_told(found.events)
        found.problems += count_problems(ledger, statistics, samples)
        found.problems += event_problems(ledger, found.events, info, samples)

    async def _samples_when_told(self, events: Events) -> list[Sample]:
        """The metrics, once the watcher has had every event that they count."""
        give_up_s = time.monotonic() + _SETTLES_S
        while True:
            samples = await asyncio.to_thread(self._server.samples)
            published = sum(each.value for each in samples if each.name == "shoal_events_total")
            if events.last == published or time.monotonic() > give_up_s:
                return samples
            await asyncio.sleep(_LOOKS_EVERY_S)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
