"""Sessions without models, and a loader that waits until a test lets it go on."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from shoal_server.core import ModelKey
from shoal_server.errors import ShoalError, Unavailable
from shoal_server.residency.eviction import Budget
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import Lease, PoolSettings, SessionLoader, State
from tests.server.batching.fakes import settle

CPU = "cpu"
A, B, C, D = (ModelKey(name, "1") for name in "abcd")


class Gate:
    """Lets everybody through while open; a test closes and opens it."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = 0

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1


class FakeSession:
    """Takes memory from being made until `close` has returned."""

    def __init__(self, key: ModelKey, size_bytes: int, loader: FakeLoader) -> None:
        self.key = key
        self.size_bytes = size_bytes
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

    def abort(self, reason: Unavailable) -> None:
        self.aborted = reason

    def lease_ended(self) -> None:
        assert not self.closing
        self.leases_ended += 1


class FakeLoader:
    """Loads at once, unless a gate is closed or an error waits to be raised."""

    def __init__(self) -> None:
        self.predicted: defaultdict[ModelKey, int] = defaultdict(lambda: 10)
        self.measured: dict[ModelKey, int] = {}
        self.load_gates: defaultdict[ModelKey, Gate] = defaultdict(Gate)
        self.close_gates: defaultdict[ModelKey, Gate] = defaultdict(Gate)
        self.errors: defaultdict[ModelKey, list[Exception]] = defaultdict(list)
        """Raised by the next loads, in this order."""
        self.close_errors: dict[ModelKey, Exception] = {}
        self.loads: list[ModelKey] = []
        """Every call of `load`, in order."""
        self.sessions: list[FakeSession] = []
        self.closed: list[ModelKey] = []

    def predict_bytes(self, key: ModelKey, device: str) -> int:
        return self.predicted[key]

    async def load(self, key: ModelKey, device: str) -> FakeSession:
        self.loads.append(key)
        await self.load_gates[key].passed()
        if self.errors[key]:
            raise self.errors[key].pop(0)
        size_bytes = self.measured.get(key, self.predicted[key])
        self.sessions.append(FakeSession(key, size_bytes, self))
        return self.sessions[-1]


@dataclass
class RecordingObserver:
    """Remembers what the pool told it."""

    counted: dict[str, tuple[int, int]] = field(default_factory=dict)
    ended: list[tuple[ModelKey, str | None]] = field(default_factory=list)
    """Key and, for a failure, its reason."""
    gone: list[tuple[ModelKey, bool]] = field(default_factory=list)
    """Key and whether it was evicted."""

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        self.counted[device] = (models, size_bytes)

    def load_ended(self, key: ModelKey, seconds: float, error: ShoalError | None) -> None:
        self.ended.append((key, error.reason if error else None))

    def unloaded(self, key: ModelKey, evicted: bool) -> None:
        self.gone.append((key, evicted))

    @property
    def evicted(self) -> list[ModelKey]:
        return [key for key, evicted in self.gone if evicted]


class Bench:
    """A pool with its surroundings, all in a test's hands. Time passes when told to."""

    def __init__(
        self,
        *,
        models: int | None = None,
        size_bytes: int | None = None,
        eviction_wait_s: float = 60.0,
    ) -> None:
        self.loader = FakeLoader()
        self.observer = RecordingObserver()
        self.now_s = 1000.0
        loader: SessionLoader[FakeSession] = self.loader
        self.pool = SessionPool(
            loader,
            budgets={CPU: Budget(models, size_bytes), "cuda:0": Budget(models, size_bytes)},
            settings=PoolSettings(eviction_wait_s, load_backoff_s=5.0, load_backoff_max_s=60.0),
            observer=self.observer,
            clock=lambda: self.now_s,
        )

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
        for gates in (self.loader.load_gates, self.loader.close_gates):
            for gate in gates.values():
                gate.open()
        await settle()
        self.pool.check_integrity()
        assert self.observer.counted.get(CPU, (0, 0)) == self.counted
        await self.pool.close()
        assert self.counted == (0, 0), self.pool
        assert all(session.closed for session in self.loader.sessions), self.pool
