"""The sessions in memory: leases, loads, evictions.

    (absent) ──acquire──> LOADING ──> READY <──lease / release──┐
                             │          │ └─────────────────────┘
                             v          v  evicted or unloaded
                         (failed)    LEAVING ──leases gone──> CLOSING ──> (absent)

What may happen next is decided in synchronous sections on the event loop, so no
lock is needed; loading (`loads`) and closing (`closing`) happen in tasks of the pool's
own, which a caller that leaves does not take down. A session is counted (`books`)
against its device's budget from the decision to load it until its memory is free;
`lending` counts leases, `room` says who leaves for a newcomer, `idle_release` who was
not used for too long, `warm` what stays in RAM of what left a GPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition, Unavailable
from shoal_server.lifecycle import LoadReason, Unloading, UnloadReason
from shoal_server.residency.books import Books
from shoal_server.residency.closing import Closing
from shoal_server.residency.eviction import Budget
from shoal_server.residency.idle import IdleRules
from shoal_server.residency.idle_release import CallLater, IdleRelease, call_later
from shoal_server.residency.lending import Lending
from shoal_server.residency.loads import Gate, Loads
from shoal_server.residency.pool_view import PoolView
from shoal_server.residency.replacing import Replacing, not_in_memory
from shoal_server.residency.resident import (
    RAM,
    Lease,
    NobodyObserves,
    PoolObserver,
    PoolSettings,
    Resident,
    S,
    SessionLoader,
    State,
    WarmObserver,
)
from shoal_server.residency.room import RoomMaker
from shoal_server.residency.warm import WarmForms

log = structlog.get_logger(__name__)


class SessionPool(PoolView[S]):
    """Sessions by model version. Belongs to the event loop's thread."""

    def __init__(
        self,
        loader: SessionLoader[S],
        *,
        budgets: Mapping[str, Budget],
        settings: PoolSettings,
        observer: PoolObserver,
        clock: Callable[[], float],
        warm_observer: WarmObserver | None = None,
        pins: Mapping[ModelKey, bool] | None = None,
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
            warm_observer: Told of what stays warm in RAM; None: nobody.
            pins: Whether newcomers are pinned, where that is said here and not by those
                who load them; looked at each time.
            idle: How long sessions may be idle; None: for ever.
            later: Sets a timer of that clock.
        """
        self._clock = clock
        self._books: Books[S] = Books(budgets, observer, clock)
        self._warm = WarmForms(self._books, warm_observer or NobodyObserves())
        self._closing = Closing(self._books, self._warm)
        self._room = RoomMaker(self._books, self._closing, self._warm, settings.eviction_wait_s)
        self._loads = Loads(loader, self._books, self._room, self._closing, self._warm, settings)
        self._replacing = Replacing(self._books, self._loads, self._closing, self._room)
        self._idle = IdleRelease(
            self._books,
            self._closing,
            self._warm,
            idle or IdleRules(dict.fromkeys(budgets, 0.0)),
            later,
        )
        self._lending = Lending(self._books, self._room, self._idle, clock)
        self._books.fell_idle = self._idle.fell_idle
        self._warm.due_s = self._idle.warm_due_s
        self._warm.stays = self._idle.stays_warm
        self._pins: Mapping[ModelKey, bool] = {} if pins is None else pins
        self._closed = False

    # -- borrowing ---------------------------------------------------------------

    def lease_resident(self, key: ModelKey) -> Lease[S] | None:
        """Borrow `key` for a request if it is ready now; None when that would take waiting."""
        resident = self._books.residents.get(key)
        if resident is None or resident.state is not State.READY:
            return None
        return self._lending.lend(resident)

    def look_into(self, key: ModelKey) -> Lease[S] | None:
        """As `lease_resident`, but it counts as nobody's use."""
        resident = self._books.residents.get(key)
        if resident is None or resident.state is not State.READY:
            return None
        return self._lending.look_into(resident)

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
            why: For those who are told of its load. Only a request counts as a use.

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
                pinned = self._pins.get(key, pinned)
                resident = self._loads.start(key, device, pinned=pinned, why=why)
            if resident.state is State.READY:
                return self._lending.lend(resident, is_request=why is LoadReason.REQUEST)
            if resident.state is State.LOADING:
                resident.unasked = False
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

    # -- loading and unloading -----------------------------------------------------

    async def load(
        self,
        key: ModelKey,
        device: str,
        *,
        pin: bool | None = None,
        pinned: bool = False,
        why: LoadReason = LoadReason.ASKED,
    ) -> None:
        """Bring `key` into memory and forget earlier failures and sizes. Idempotent.

        Args:
            key: What to load.
            device: Where; it must be there already if it is resident.
            pin: Whether it may be evicted; None leaves that as it is.
            pinned: The same, when it must be loaded and `pin` is None.
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
        with await self.acquire(key, device, pinned=pinned, why=why):
            if pin is not None:
                self._books.residents[key].pinned = pin

    async def load_ahead(
        self, key: ModelKey, device: str, *, pinned: bool = False, hold_s: float, why: LoadReason
    ) -> None:
        """Bring `key` into memory that is free, though nobody asks for it; nobody leaves for it.

        Until somebody asks for it, it is the first to leave when room is needed. Does
        nothing for one that is in memory, or on its way.

        Args:
            key: What to load.
            device: Where.
            pinned: Whether it may be evicted.
            hold_s: It is not released for being idle before.
            why: For those who are told of it.

        Raises:
            Overloaded: There is no free memory.
            ShoalError: As `acquire`.
        """
        if self._closed:
            raise Unavailable("the server is shutting down")
        if key in self._books.residents:
            return
        pinned = self._pins.get(key, pinned)
        resident = self._loads.start(key, device, pinned=pinned, why=why)
        resident.unasked = True
        resident.held_until_s = self._clock() + hold_s
        assert resident.loaded is not None  # noqa: S101
        await asyncio.shield(resident.loaded)

    async def replace(
        self,
        key: ModelKey,
        device: str,
        swapped: Callable[[], None],
        *,
        pinned: bool | None = None,
    ) -> None:
        """Load `key` anew beside its session, and let the new one take that one's place.

        Requests are served by the one or the other all the while. Cancelling the caller
        leaves it going.

        Args:
            key: What is in memory.
            device: Where the new session is loaded.
            swapped: Called in the moment when the new session is the one that is lent.
            pinned: Whether it may not be evicted from then on, where nobody has said so
                otherwise; None: as it is by then.

        Raises:
            FailedPrecondition: It is not in memory, or is taken out of it meanwhile.
            ShoalError: It can not be loaded; what was there serves on.
        """
        if self._closed:
            raise Unavailable("the server is shutting down")
        resident = self._books.residents.get(key)
        if resident is not None and resident.state is State.LOADING:
            await self._wait_loaded(resident)
            resident = self._books.residents.get(key)
        if resident is None or resident.state is not State.READY:
            raise not_in_memory(key)

        def swap(old: Resident[S], new: Resident[S]) -> None:
            new.pinned = old.pinned if pinned is None else self._pins.get(key, pinned)
            swapped()

        await self._replacing.replace(resident, device, self._lending.came_back, swap)

    def forget_failure(self, key: ModelKey) -> None:
        """Try `key` again at once when it is asked for next."""
        self._loads.forget_failure(key)

    def pin(self, key: ModelKey, pinned: bool) -> None:
        """Keep `key` in memory whatever happens, or let it go again. Idempotent.

        Raises:
            FailedPrecondition: It is to be pinned and is not in memory.
        """
        resident = self._books.residents.get(key)
        if resident is None or resident.state in (State.LEAVING, State.CLOSING):
            if pinned:
                where = "not in memory" if resident is None else "being unloaded"
                raise FailedPrecondition(
                    f"model {key} is {where}; `shoal models load --pin` loads and pins it",
                    metadata={"model": key.name, "version": key.version},
                )
            return
        resident.pinned = pinned
        self._books.may_leave(resident)

    async def release_unused(self, device: str, unused_s: float, why: Unloading) -> ModelKey | None:
        """Let the least recently used warm form of `device` go, else close a session.

        The least recently used one, if nobody uses it.

        Args:
            device: Where.
            unused_s: Only a session that nobody used for so long.
            why: For those who are told of it.

        Returns:
            What was closed, once its memory is free; None when there was nothing to close.
        """
        warm = self._warm.release_next(device, why)
        if warm is not None:
            await warm.gone.wait()
            return warm.key
        resident = self._books.least_recently_used(device)
        if resident is None or resident.rank > self._clock() - unused_s:
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
                self._lending.came_back(resident)

    def refuse_loads(self, device: str, reason: str | None) -> None:
        """Begin no load on `device` from now on, for that reason; None: load again."""
        self._loads.refuse(device, reason)

    def memory_is_short(self, device: str, short: bool) -> None:
        """While it is, nothing stays warm there that leaves a GPU."""
        if device == RAM:
            self._warm.memory_is_short(short)

    def guard_loads(self, gate: Gate) -> None:
        """Ask before each load from now on; what `gate` raises, the load fails with."""
        self._loads.gate = gate

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

        Waits for its leases. A caller that stops waiting leaves it resident. Nothing of it
        stays warm.

        Args:
            key: What to unload.
            force_after_s: Fail what is left of its requests after so long; None
                waits for as long as the caller does.
            reason: For those who are told of it.
        """
        why = Unloading(reason)
        await self._closing.unload(key, why, force_after_s)
        warm = self._books.warm.get(key)
        if warm is not None and not warm.in_use:
            self._warm.release(warm, why)
            await warm.gone.wait()

    async def close(self) -> None:
        """Close every session, the last opened first. Leases must be back."""
        self._closed = True
        self._idle.stop()
        self._loads.cancel()
        await self._replacing.close()
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
        await self._warm.close()
