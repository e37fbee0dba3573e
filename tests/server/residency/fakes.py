"""Sessions without models, and a loader that waits until a test lets it go on."""

from __future__ import annotations

import asyncio
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shoal_server.core import ModelKey
from shoal_server.errors import ModelFileCorrupt, Unavailable
from shoal_server.lifecycle import (
    Load,
    LoadReason,
    ModelState,
    Unloading,
    UnloadReason,
    WarmRelease,
)
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.events import Event, ModelStateChanged
from shoal_server.registry.labelled import Labelled
from shoal_server.registry.states import LEGAL
from shoal_server.residency.announcing import ObserverGroup, PoolEvents
from shoal_server.residency.eviction import Budget
from shoal_server.residency.idle import IdleRules
from shoal_server.residency.model_states import ModelStates, Versions
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import Lease, PoolObserver, PoolSettings, SessionLoader, State
from tests.server.batching.fakes import settle

CPU = "cpu"
A, B, C, D = (ModelKey(name, "1") for name in "abcd")


class Gate:
    """Lets everybody through while open; a test closes and opens it."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.reached = asyncio.Event()
        self.waiting = 0

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        self.waiting += 1
        self.reached.set()
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1


class FakeSession:
    """Takes memory from being made until `close` has returned."""

    def __init__(
        self, key: ModelKey, size_bytes: int, loader: FakeLoader, device: str = CPU
    ) -> None:
        self.key = key
        self.size_bytes = size_bytes
        self.version = None  # what the catalog asks a model for; this one has no files
        self.device = device
        self.idle_s = loader.idle_s.get(key)
        self.arena_bytes = loader.arenas.get(key, 0)
        self.aborted: Unavailable | None = None
        self.leases_ended = 0
        self.closing = self.closed = False
        self._loader = loader

    async def close(self) -> None:
        assert not self.closing, f"{self.key} is closed twice"
        self.closing = True
        await self._loader.close_gates[self.key].passed()
        self.closed = True
        self._loader.closed.append(self.key)
        error = self._loader.close_errors.get(self.key)
        if error is not None:
            raise error

    async def shrink(self) -> None:
        await self._loader.shrink_gates[self.key].passed()
        assert not self.closing
        self.arena_bytes = 0
        if self.key in self._loader.shrink_errors:
            raise self._loader.shrink_errors[self.key]

    def abort(self, reason: Unavailable) -> None:
        self.aborted = reason

    def lease_ended(self) -> None:
        assert not self.closing
        self.leases_ended += 1

    def warm_form(self) -> FakeWarmForm | None:
        return None if self.device == CPU else FakeWarmForm(self.key, self._loader)


class FakeWarmForm:
    """Takes memory from when it begins to be filled."""

    def __init__(self, key: ModelKey, loader: FakeLoader) -> None:
        self.key = key
        self.size_bytes = loader.warm_bytes
        self.idle_s = loader.warm_idle_s.get(key)
        self.begun = self.filled = False
        self._loader = loader
        loader.forms.add(self)

    async def fill(self) -> None:
        self.begun = True
        await self._loader.fill_gates[self.key].passed()
        if self.key in self._loader.fill_problems:
            raise ModelFileCorrupt(self._loader.fill_problems[self.key])
        self.filled = True

    async def is_current(self) -> bool:
        return self.key not in self._loader.changed

    async def load(self, device: str) -> FakeSession:
        assert self.filled
        return await self._loader.load_warm(self.key, device)


class FakeLoader:
    """Loads at once, unless a gate is closed or an error waits to be raised."""

    def __init__(self) -> None:
        self.predicted: defaultdict[ModelKey, int] = defaultdict(lambda: 10)
        self.measured: dict[ModelKey, int] = {}
        self.arenas: dict[ModelKey, int] = {}
        """What runs of a model have left behind."""
        self.shrink_gates: defaultdict[ModelKey, Gate] = defaultdict(Gate)
        self.shrink_errors: dict[ModelKey, Exception] = {}
        self.idle_s: dict[ModelKey, float] = {}
        """Models that have a time-out of their own."""
        self.load_gates: defaultdict[ModelKey, Gate] = defaultdict(Gate)
        self.close_gates: defaultdict[ModelKey, Gate] = defaultdict(Gate)
        self.errors: defaultdict[ModelKey, list[Exception]] = defaultdict(list)
        """Raised by the next loads, in this order."""
        self.close_errors: dict[ModelKey, Exception] = {}
        self.loads: list[ModelKey] = []
        """Every load from the files, in order."""
        self.warm_loads: list[ModelKey] = []
        """Every load from a warm form."""
        self.forms: weakref.WeakSet[FakeWarmForm] = weakref.WeakSet()
        """Those that somebody holds; with the last hold their memory is free."""
        self.warm_bytes = 8
        self.warm_idle_s: dict[ModelKey, float] = {}
        self.fill_gates: defaultdict[ModelKey, Gate] = defaultdict(Gate)
        self.fill_problems: dict[ModelKey, str] = {}
        self.changed: set[ModelKey] = set()
        """Models whose files are no longer what they were."""
        self.sessions: list[FakeSession] = []
        self.closed: list[ModelKey] = []

    def predict_bytes(self, key: ModelKey, device: str) -> int:
        return self.predicted[key]

    def predict_peak_bytes(self, key: ModelKey, device: str) -> int:
        return self.predicted[key] + 5

    async def load(self, key: ModelKey, device: str) -> FakeSession:
        self.loads.append(key)
        return await self._open(key, device)

    async def load_warm(self, key: ModelKey, device: str) -> FakeSession:
        self.warm_loads.append(key)
        return await self._open(key, device)

    async def _open(self, key: ModelKey, device: str) -> FakeSession:
        await self.load_gates[key].passed()
        if self.errors[key]:
            raise self.errors[key].pop(0)
        size_bytes = self.measured.get(key, self.predicted[key])
        self.sessions.append(FakeSession(key, size_bytes, self, device))
        return self.sessions[-1]


@dataclass
class RecordingObserver:
    """Remembers what the pool told it."""

    counted: dict[str, tuple[int, int]] = field(default_factory=dict)
    ended: list[tuple[ModelKey, str | None]] = field(default_factory=list)
    """Key and, for a failure, its reason."""
    loads: list[Load] = field(default_factory=list)
    """The same, with all there is to it."""
    gone: list[tuple[ModelKey, Unloading]] = field(default_factory=list)
    """Key and why."""

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        self.counted[device] = (models, size_bytes)

    def load_began(self, key: ModelKey, why: LoadReason) -> None:
        pass

    def load_ended(self, load: Load) -> None:
        self.ended.append((load.key, load.error.reason if load.error else None))
        self.loads.append(load)

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        pass

    def stayed(self, key: ModelKey) -> None:
        pass

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        self.gone.append((key, why))

    @property
    def evicted(self) -> list[ModelKey]:
        return [key for key, why in self.gone if why.reason is UnloadReason.EVICTED]


@dataclass
class WarmRecorder:
    """Remembers what it was told of warm forms."""

    now: tuple[int, int] = (0, 0)
    """Models and bytes."""
    loaded: list[ModelKey] = field(default_factory=list)
    released: list[WarmRelease] = field(default_factory=list)

    def warm_changed(self, models: int, size_bytes: int) -> None:
        self.now = (models, size_bytes)

    def warm_loaded(self, key: ModelKey) -> None:
        self.loaded.append(key)

    def warm_released(self, release: WarmRelease) -> None:
        self.released.append(release)


class FakeVersions:
    """As much of a registry as states need."""

    def __init__(self) -> None:
        self.known: list[ModelKey] = []
        self.labelled = Labelled({})

    def versions_known(self, name: str) -> list[ModelKey]:
        return [each for each in self.known if each.name == name]


class Published:
    """Keeps the events that the pool's doings gave."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def publish(self, event: Event) -> None:
        self.events.append(event)

    def states(self) -> dict[ModelKey, ModelState]:
        """What was told last of each; each change is legal, from where the one before ended."""
        states: dict[ModelKey, ModelState] = {}
        for event in self.events:
            if isinstance(event, ModelStateChanged):
                assert event.before is states.get(event.key, ModelState.REGISTERED), self.events
                assert event.after in LEGAL[event.before], self.events
                states[event.key] = event.after
        return states


class FakeTimer:
    """A call that the bench makes when its time has come."""

    def __init__(self, due_s: float, call: Callable[[], None]) -> None:
        self.due_s = due_s
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Bench:
    """A pool with its surroundings, all in a test's hands. Time passes when told to."""

    def __init__(
        self,
        *,
        models: int | None = None,
        size_bytes: int | None = None,
        eviction_wait_s: float = 60.0,
        idle: IdleRules | None = None,
        pins: Mapping[ModelKey, bool] | None = None,
        versions: Versions | None = None,
    ) -> None:
        self.loader = FakeLoader()
        self.observer = RecordingObserver()
        self.warm = WarmRecorder()
        self.published = Published()
        self.versions = FakeVersions()
        self.conditions = Conditions()
        self.states = ModelStates(versions or self.versions, self.conditions, self.published)
        self.observers: list[PoolObserver] = [
            self.observer,
            PoolEvents(self.published, self.states),
        ]
        self.now_s = 1000.0
        self.timers: list[FakeTimer] = []
        loader: SessionLoader[FakeSession] = self.loader
        self.pool = SessionPool(
            loader,
            budgets={CPU: Budget(models, size_bytes), "cuda:0": Budget(models, size_bytes)},
            settings=PoolSettings(eviction_wait_s, load_backoff_s=5.0, load_backoff_max_s=60.0),
            observer=ObserverGroup(self.observers),
            clock=lambda: self.now_s,
            warm_observer=self.warm,
            idle=idle,
            later=self._later,
            pins=pins,
        )
        self.states.begin(self.pool)

    def _later(self, delay_s: float, call: Callable[[], None]) -> FakeTimer:
        self.timers = [each for each in self.timers if not each.cancelled]
        self.timers.append(FakeTimer(self.now_s + delay_s, call))
        return self.timers[-1]

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, and what falls due on the way happen when it does."""
        until_s = self.now_s + seconds
        while (timer := self._due(until_s)) is not None:
            self.now_s = max(self.now_s, timer.due_s)
            timer.call()
            await settle()
        self.now_s = until_s

    def call_due(self) -> None:
        """Make the calls whose time has come."""
        while (timer := self._due(self.now_s)) is not None:
            timer.call()

    def _due(self, until_s: float) -> FakeTimer | None:
        """The first timer up to then, taken from those that wait."""
        due = [each for each in self.timers if not each.cancelled and each.due_s <= until_s]
        timer = min(due, key=lambda each: each.due_s, default=None)
        if timer is not None:
            self.timers.remove(timer)
        return timer

    async def acquire(self, key: ModelKey, device: str = CPU) -> Lease[FakeSession]:
        self.now_s += 1
        return await self.pool.acquire(key, device)

    async def use(self, *keys: ModelKey) -> None:
        """Lease and release each; the last is the most recently used."""
        for key in keys:
            (await self.acquire(key)).release()
            await settle()

    async def waiting(self, key: ModelKey) -> asyncio.Task[Lease[FakeSession]]:
        """A caller that waits for `key`."""
        task = asyncio.create_task(self.acquire(key))
        await settle()
        return task

    @property
    def ready(self) -> set[ModelKey]:
        """The models that can be leased at once."""
        residents = {key: self.pool.get(key) for key in (A, B, C, D)}
        return {key for key, each in residents.items() if each and each.state is State.READY}

    @property
    def counted(self) -> tuple[int, int]:
        """Models and bytes that count against the CPU's budget."""
        return self.pool.counted(CPU)

    async def shut_down(self) -> None:
        """Let everything go on, close the pool; nothing may be left in memory."""
        loader = self.loader
        for gates in (loader.load_gates, loader.close_gates, loader.fill_gates):
            for gate in gates.values():
                gate.open()
        await settle()
        self.pool.check_integrity()
        assert self.observer.counted.get(CPU, (0, 0)) == self.counted
        await self.pool.close()
        assert self.counted == (0, 0), self.pool
        assert self.pool.warm() == [], self.pool
        assert self.warm.now == (0, 0), self.pool
        assert all(session.closed for session in self.loader.sessions), self.pool
