"""The sessions in memory: leases, loads, evictions.

    (absent) ──acquire──> LOADING ──> READY <──lease / release──┐
                             │          │ └─────────────────────┘
                             v          v  evicted or unloaded
                         (failed)    LEAVING ──leases gone──> CLOSING ──> (absent)

What may happen next is decided in synchronous sections on the event loop, so no
lock is needed; loading (`loads`) and closing (`closing`) happen in tasks of the pool's
own, which a caller that leaves does not take down. A session is counted (`books`)
against its device's budget from the decision to load it until its memory is free;
`room` says who leaves for a newcomer, `idle_release` who was not used for too long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Generic

import structlog

from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition, Unavailable
from shoal_server.lifecycle import LoadReason, Unloading, UnloadReason
from shoal_server.residency.books import Books
from shoal_server.residency.closing import Closing
from shoal_server.residency.eviction import Budget
from shoal_server.residency.idle import IdleRules
from shoal_server.residency.idle_release import CallLater, IdleRelease, call_later
from shoal_server.residency.loads import Gate, Loads
from shoal_server.residency.resident import (
    Departure,
    Failure,
    Lease,
    PoolObserver,
    PoolSettings,
    Resident,
    S,
    SessionLoader,
    State,
)
from shoal_server.residency.room import RoomMaker

log = structlog.get_logger(__name__)


class SessionPool(Generic[S]):
    """Sessions by model version. Belongs to the event loop's thread."""

    def __init__(
        self,
        loader: SessionLoader[S],
        *,
        budgets: Mapping[str, Budget],
        settings: PoolSettings,
        observer: PoolObserver,
        clock: Callable[[], float],
        idle: IdleRules | None = None,
        later: CallLater = call_later,
    ) -> None:
        """Start empty.

        Args:
            loader: Opens sessions.
            budgets: By device; every device that is used has one.
            settings: Waits and back-off.
            observer: Told of loads, evictions and sizes.
            clock: Monotonic seconds.
            idle: How long sessions may be idle; None: for ever.
            later: Sets a timer of that clock.
        """
        self._clock = clock
        self._books: Books[S] = Books(budgets, observer, clock)
        self._closing = Closing(self._books)
        self._room = RoomMaker(self._books, self._closing, settings.eviction_wait_s)
        self._loads = Loads(loader, self._books, self._room, self._closing, settings)
        self._idle = IdleRelease(
            self._books,
            self._closing,
            idle or IdleRules(dict.fromkeys(budgets, 0.0)),
            later,
        )
        self._books.fell_idle = self._idle.fell_idle
        self._closed = False

    def __repr__(self) -> str:
        return f"SessionPool({self._books!r})"

    # -- looking ---------------------------------------------------------------

    def get(self, key: ModelKey) -> Resident[S] | None:
        """The resident of `key`, in whatever state; do not change it."""
        return self._books.residents.get(key)

    def failure(self, key: ModelKey) -> Failure | None:
        """How the last load of `key` failed, if it did."""
        return self._loads.failure(key)

    def residents(self) -> list[Resident[S]]:
        """All sessions, in whatever state, the least recently used first."""
        return sorted(self._books.residents.values(), key=lambda each: each.last_used_s)

    def departures(self) -> Mapping[ModelKey, Departure]:
        """Why and when each left memory last that was there before."""
        return self._books.departures

    def departure(self, key: ModelKey) -> Departure | None:
        """Why and when `key` left memory last, if it was there before."""
        return self._books.departures.get(key)

    def idle_left_s(self, resident: Resident[S]) -> float | None:
        """Seconds until `resident` is released, if no request comes; None: never."""
        return self._idle.left_s(resident)

    def counted(self, device: str) -> tuple[int, int]:
        """Models and bytes that count against the budget of `device`."""
        return self._books.counted(device)

    def budget(self, device: str) -> Budget:
        """What `device` may hold."""
        return self._books.budgets[device]

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not balance. For tests."""
        self._books.check_integrity()

    # -- borrowing ---------------------------------------------------------------

    def lease_resident(self, key: ModelKey) -> Lease[S] | None:
        """Borrow `key` if it is ready now; None when that would take waiting."""
        resident = self._books.residents.get(key)
        if resident is None or resident.state is not State.READY:
            return None
        return self._lend(resident)

    async def acquire(
        self,
        key: ModelKey,
        device: str,
        *,
        pinned: bool = False,
        why: LoadReason = LoadReason.REQUEST,
    ) -> Lease[S]:
        """Borrow `key`, loading it first where needed.

        However many callers wait, it is loaded once; a failure is shared by all of
        them and remembered. Cancelling a caller leaves the load going.

        Args:
            key: What to borrow.
            device: Where to load it, when it must be loaded.
            pinned: Whether it may not be evicted, when it must be loaded.
            why: For those who are told of its load.

        Raises:
            ModelLoadFailed: It can not be loaded, or could not a short while ago.
            Overloaded: There is no memory for it and none came free in time, or nothing
                is loaded just now.
            Unavailable: The pool is closed.
        """
        while True:
            if self._closed:
                raise Unavailable("the server is shutting down")
            resident = self._books.residents.get(key)
            if resident is None:
                resident = self._loads.start(key, device, pinned=pinned, why=why)
            if resident.state is State.READY:
                return self._lend(resident)
            if resident.state is State.LOADING:
                await self._wait_loaded(resident)
            else:
                await resident.gone.wait()

    async def _wait_loaded(self, resident: Resident[S]) -> None:
        """Wait for the load; nobody evicts `resident` before the caller has had its turn."""
        assert resident.loaded is not None  # noqa: S101
        resident.waiters += 1
        try:
            await asyncio.shield(resident.loaded)
        finally:
            resident.waiters -= 1
            self._books.may_leave(resident)  # the caller may have left

    def _lend(self, resident: Resident[S]) -> Lease[S]:
        assert resident.session is not None  # noqa: S101
        resident.uses += 1
        resident.leases += 1
        resident.last_used_s = self._clock()
        self._idle.lent(resident)
        return Lease(resident, resident.session, self._release)

    def _release(self, resident: Resident[S]) -> None:
        resident.leases -= 1
        resident.last_used_s = self._clock()
        if resident.state is State.READY and resident.session is not None:
            resident.session.lease_ended()
        self._unused(resident)

    def _unused(self, resident: Resident[S]) -> None:
        """A lease is back: tell those who wait for the last one."""
        if resident.leases == 0:
            resident.unused.set()
            self._books.may_leave(resident)
            if resident.device in self._books.overfull:
                self._room.evict_excess(resident.device)

    # -- loading and unloading -----------------------------------------------------

    async def load(
        self,
        key: ModelKey,
        device: str,
        *,
        pin: bool | None = None,
        why: LoadReason = LoadReason.ASKED,
    ) -> None:
        """Bring `key` into memory and forget earlier failures and sizes. Idempotent.

        Args:
            key: What to load.
            device: Where; it must be there already if it is resident.
            pin: Whether it may be evicted; None leaves that as it is.
            why: For those who are told of it.

        Raises:
            FailedPrecondition: It is resident on another device.
            ShoalError: As `acquire`.
        """
        self._loads.forget(key, device)
        resident = self._books.residents.get(key)
        if resident is not None and resident.device != device:
            raise FailedPrecondition(
                f"model {key} is in memory on {resident.device}; unload it to move it to {device}"
            )
        with await self.acquire(key, device, why=why):
            if pin is not None:
                self._books.residents[key].pinned = pin

    def pin(self, key: ModelKey, pinned: bool) -> None:
        """Keep `key` in memory whatever happens, or let it go again. Idempotent.

        Raises:
            FailedPrecondition: It is to be pinned and is not in memory.
        """
        resident = self._books.residents.get(key)
        if resident is None:
            if pinned:
                raise FailedPrecondition(
                    f"model {key} is not in memory; LoadModel with pin loads and pins it",
                    metadata={"model": key.name, "version": key.version},
                )
            return
        resident.pinned = pinned
        self._books.may_leave(resident)

    async def release_unused(self, device: str, unused_s: float, why: Unloading) -> ModelKey | None:
        """Close the least recently used session of `device`, if nobody uses it.

        Args:
            device: Where.
            unused_s: Only one that nobody used for so long.
            why: For those who are told of it.

        Returns:
            What was closed, once its memory is free; None when there was nothing to close.
        """
        resident = self._books.least_recently_used(device)
        if resident is None or resident.last_used_s > self._clock() - unused_s:
            return None
        self._closing.start(resident, why)
        await resident.gone.wait()
        return resident.key

    async def shrink(self, device: str) -> None:
        """Let the sessions of `device` give back what only runs need; counts as nobody's use."""
        for resident in self._books.on(device):
            if resident.state is not State.READY or resident.session is None:
                continue
            resident.leases += 1  # it is not closed meanwhile
            try:
                await resident.session.shrink()
            except Exception:
                log.exception("shrink_failed", model=str(resident.key))
            finally:
                resident.leases -= 1
                self._unused(resident)

    def refuse_loads(self, device: str, reason: str | None) -> None:
        """Begin no load on `device` from now on, for that reason; None: load again."""
        self._loads.refuse(device, reason)

    def guard_loads(self, gate: Gate) -> None:
        """Ask before each load from now on; what `gate` raises, the load fails with."""
        self._loads.gate = gate

    def loading_bytes(self, device: str) -> int:
        """Bytes that the loads that go on take on `device`, at most."""
        return self._books.loading_bytes(device)

    def evictable_bytes(self, device: str) -> int:
        """Bytes of the sessions on `device` that nobody uses and that may go."""
        return self._books.evictable_bytes(device)

    def change_idle(self, rules: IdleRules) -> None:
        """Keep sessions by other rules from now on."""
        self._idle.change(rules)

    async def unload(
        self,
        key: ModelKey,
        *,
        force_after_s: float | None = None,
        reason: UnloadReason = UnloadReason.ASKED,
    ) -> None:
        """Take `key` out of memory; returns when the memory is free. Idempotent.

        Waits for its leases. A caller that stops waiting leaves it resident.

        Args:
            key: What to unload.
            force_after_s: Fail what is left of its requests after so long; None
                waits for as long as the caller does.
            reason: For those who are told of it.
        """
        await self._closing.unload(key, Unloading(reason), force_after_s)

    async def close(self) -> None:
        """Close every session, the last opened first. Leases must be back."""
        self._closed = True
        self._idle.stop()
        self._loads.cancel()
        await self._loads.ended()
        await self._closing.ended()
        newest_first = sorted(self._books.residents.values(), key=lambda each: -each.order)
        for resident in newest_first:
            if resident.state is State.LOADING:
                self._loads.give_up(resident)
            elif resident.state is State.CLOSING:  # an unload was faster
                await resident.gone.wait()
            else:
                await self._closing.now(resident, Unloading(UnloadReason.SHUTDOWN))
