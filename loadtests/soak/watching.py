"""Looks at the server all the while: its events, what it holds, its process's memory."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import grpc.aio
import psutil
from google.protobuf import duration_pb2

from loadtests.soak.control import Control
from shoal.v1 import model_control_pb2 as pb

_EVERY_S = 0.2


@dataclass(slots=True)
class Events:
    """Every event of a server, as one watcher saw them."""

    kinds: Counter[str] = field(default_factory=Counter)
    unloads: Counter[str] = field(default_factory=Counter)
    """Models that left memory, by the reason."""
    switches: Counter[str] = field(default_factory=Counter)
    """Names that mean something else, by the cause."""
    loads_ms: list[float] = field(default_factory=list)
    """From the decision to load a model to its being ready, waiting for room included."""
    switches_ms: list[float] = field(default_factory=list)
    """From the new version being warm to the first request that gets it."""
    resident: Counter[str] = field(default_factory=Counter)
    """Loads less unloads, by version."""
    last: int = 0
    """The number of the last one."""
    problems: list[str] = field(default_factory=list)
    _states: dict[str, pb.ModelState.ValueType] = field(default_factory=dict)

    def take(self, event: pb.Event) -> None:
        """The next one."""
        kind = event.WhichOneof("kind") or "unknown"
        self.kinds[kind] += 1
        if event.sequence != self.last + 1:
            self.problems.append(f"event {event.sequence} follows {self.last}")
        self.last = event.sequence
        match kind:
            case "model_state_changed":
                self._change(event.model_state_changed)
            case "model_loaded":
                self.resident[_key(event.model_loaded)] += 1
                self.loads_ms.append(_ms(event.model_loaded.duration))
            case "model_unloaded":
                gone = event.model_unloaded
                self.resident[_key(gone)] -= 1
                self.unloads[pb.UnloadReason.Name(gone.reason)] += 1
            case "name_switched":
                self.switches[str(event.name_switched.cause)] += 1
                self.switches_ms.append(_ms(event.name_switched.times.switch))

    def _change(self, change: pb.ModelStateChanged) -> None:
        key = _key(change)
        before = self._states.get(key, change.before)
        if before != change.before:
            names = pb.ModelState.Name(before), pb.ModelState.Name(change.before)
            self.problems.append(f"event {self.last}: {key} was {names[0]}, told as {names[1]}")
        self._states[key] = change.after


def _key(about: pb.ModelStateChanged | pb.ModelLoaded | pb.ModelUnloaded) -> str:
    return f"{about.model}@{about.version}"


def _ms(duration: duration_pb2.Duration) -> float:
    return duration.seconds * 1e3 + duration.nanos / 1e6


async def follow(control: Control, events: Events) -> None:
    """Take every event there was and will be; ends when it is cancelled."""
    request = pb.WatchEventsRequest(after_sequence=0)
    try:
        async for answer in control.stub.WatchEvents(request):
            if answer.HasField("event"):
                events.take(answer.event)
        events.problems.append("the stream of events ended")
    except grpc.aio.AioRpcError as error:
        events.problems.append(f"the stream of events ended: {error.code().name}")


@dataclass(slots=True)
class Memory:
    """What the server held, as it says and as the system does."""

    rss_bytes: list[int] = field(default_factory=list)
    """Of its process, at even intervals."""
    resident_bytes: list[int] = field(default_factory=list)
    """Counted by it for models, at the same times."""
    most_models: int = 0
    over_s: float = 0.0
    """The longest that more was counted than the budget allows."""
    problems: Counter[str] = field(default_factory=Counter)
    _over_since_s: float | None = None

    def take(self, info: pb.GetServerInfoResponse, rss_bytes: int, now_s: float) -> None:
        """One look."""
        device = info.devices[0]
        self.rss_bytes.append(rss_bytes)
        self.resident_bytes.append(device.resident_bytes)
        self.most_models = max(self.most_models, device.resident_models)
        if device.resident_models > device.max_resident_models:
            room = device.max_resident_models
            self.problems[f"{device.resident_models} models in memory, room for {room}"] += 1
        if device.resident_bytes <= device.memory_budget_bytes:
            self._over_since_s = None
            return
        if self._over_since_s is None:
            self._over_since_s = now_s
        self.over_s = max(self.over_s, now_s - self._over_since_s)


async def watch_memory(
    control: Control, process: psutil.Process, memory: Memory, enough: asyncio.Event
) -> None:
    """Look again and again until it is enough; no call is left half way, since all are counted."""
    while not enough.is_set():
        info = await control.info()
        memory.take(info, process.memory_info().rss, time.monotonic())
        await asyncio.sleep(_EVERY_S)
