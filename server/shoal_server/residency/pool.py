"""The sessions in memory: leases, loads, evictions.

    (absent) ──acquire──> LOADING ──> READY <──lease / release──┐
                             │          │ └─────────────────────┘
                             v          v  evicted or unloaded
                         (failed)    LEAVING ──leases gone──> CLOSING ──> (absent)

What may happen next is decided in synchronous sections on the event loop, so no
lock is needed; loading and closing happen in tasks of the pool's own, which a
caller that leaves does not take down. A session is counted against its device's
budget from the decision to load it until its memory is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Generic

import structlog

from shoal_server.core import ModelKey
from shoal_server.errors import (
    AllocationFailed,
    FailedPrecondition,
    ModelLoadFailed,
    Overloaded,
    ShoalError,
    Unavailable,
)
from shoal_server.residency.eviction import Budget, Occupant, Plan, Room, make_room
from shoal_server.residency.resident import (
    Failure,
    Lease,
    PoolObserver,
    PoolSettings,
    Resident,
    S,
    SessionLoader,
    State,
)

log = structlog.get_logger(__name__)

# After the memory that a victim frees, the first retry has a chance.
_RETRY_WHEN_BUSY_S = 1.0


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
    ) -> None:
        """Start empty.

        Args:
            loader: Opens sessions.
            budgets: By device; every device that is used has one.
            settings: Waits and back-off.
            observer: Told of loads, evictions and sizes.
            clock: Monotonic seconds.
        """
        self._loader = loader
        self._budgets = budgets
        self._settings = settings
        self._observer = observer
        self._clock = clock
        self._residents: dict[ModelKey, Resident[S]] = {}
        self._failures: dict[ModelKey, Failure] = {}
        self._measured: dict[tuple[ModelKey, str], int] = {}
        self._overfull: set[str] = set()
        self._loads: set[asyncio.Task[None]] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self._room_changed = asyncio.Event()
        self._opened = 0
        self._closed = False

    def __repr__(self) -> str:
        return "SessionPool(" + "; ".join(map(repr, self._residents.values())) + ")"

    # -- looking ---------------------------------------------------------------

    def get(self, key: ModelKey) -> Resident[S] | None:
        """The resident of `key`, in whatever state; do not change it."""
        return self._residents.get(key)

    def failure(self, key: ModelKey) -> Failure | None:
        """How the last load of `key` failed, if it did."""
        return self._failures.get(key)

    def counted(self, device: str) -> tuple[int, int]:
        """Models and bytes that count against the budget of `device`."""
        sizes = [
            each.size_bytes
            for each in self._residents.values()
            if each.counted and each.device == device
        ]
        return len(sizes), sum(sizes)

    def budget(self, device: str) -> Budget:
        """What `device` may hold."""
        return self._budgets[device]

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not balance. For tests."""
        for each in self._residents.values():
            assert each.leases >= 0, repr(self)  # noqa: S101
            assert (each.session is not None) == (each.state is not State.LOADING), repr(self)  # noqa: S101
            assert each.counted or each.state is State.LOADING, repr(self)  # noqa: S101
        for device, budget in self._budgets.items():
            models, size_bytes = self.counted(device)
            assert budget.max_models is None or models <= budget.max_models, repr(self)  # noqa: S101
            if budget.max_bytes is not None and device not in self._overfull:
                assert size_bytes <= budget.max_bytes, repr(self)  # noqa: S101

    # -- borrowing ---------------------------------------------------------------

    def lease_resident(self, key: ModelKey) -> Lease[S] | None:
        """Borrow `key` if it is ready now; None when that would take waiting."""
        resident = self._residents.get(key)
        if resident is None or resident.state is not State.READY:
            return None
        return self._lend(resident)

    async def acquire(self, key: ModelKey, device: str, *, pinned: bool = False) -> Lease[S]:
        """Borrow `key`, loading it first where needed.

        However many callers wait, it is loaded once; a failure is shared by all of
        them and remembered. Cancelling a caller leaves the load going.

        Args:
            key: What to borrow.
            device: Where to load it, when it must be loaded.
            pinned: Whether it may not be evicted, when it must be loaded.

        Raises:
            ModelLoadFailed: It can not be loaded, or could not a short while ago.
            Overloaded: There is no memory for it and none came free in time.
            Unavailable: The pool is closed.
        """
        while True:
            if self._closed:
                raise Unavailable("the server is shutting down")
            resident = self._residents.get(key)
            if resident is None:
                self._raise_remembered(key)
                resident = self._start_loading(key, device, pinned)
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
            self._room_changed.set()  # for those who wait for room: the caller may have left

    def _lend(self, resident: Resident[S]) -> Lease[S]:
        assert resident.session is not None  # noqa: S101
        resident.leases += 1
        resident.last_used_s = self._clock()
        return Lease(resident, resident.session, self._release)

    def _release(self, resident: Resident[S]) -> None:
        resident.leases -= 1
        resident.last_used_s = self._clock()
        if resident.state is State.READY and resident.session is not None:
            resident.session.lease_ended()
        if resident.leases == 0:
            resident.unused.set()
            self._room_changed.set()
            if resident.device in self._overfull:
                self._evict_excess(resident.device)

    # -- loading ---------------------------------------------------------------

    async def load(self, key: ModelKey, device: str, *, pin: bool | None = None) -> None:
        """Bring `key` into memory and forget earlier failures and sizes. Idempotent.

        Args:
            key: What to load.
            device: Where; it must be there already if it is resident.
            pin: Whether it may be evicted; None leaves that as it is.

        Raises:
            FailedPrecondition: It is resident on another device.
            ShoalError: As `acquire`.
        """
        self._failures.pop(key, None)
        # It was measured beside others' work: too large by that need not be too large.
        self._measured.pop((key, device), None)
        resident = self._residents.get(key)
        if resident is not None and resident.device != device:
            raise FailedPrecondition(
                f"model {key} is in memory on {resident.device}; unload it to move it to {device}"
            )
        with await self.acquire(key, device):
            if pin is not None:
                self._residents[key].pinned = pin

    def _raise_remembered(self, key: ModelKey) -> None:
        failure = self._failures.get(key)
        if failure is None:
            return
        left_s = failure.until_s - self._clock()
        if left_s > 0:
            error = failure.error
            kind = type(error) if isinstance(error, ModelLoadFailed) else ModelLoadFailed
            raise kind(
                f"model {key} could not be loaded: {error.message}",
                retry_after_s=left_s,
                metadata=error.metadata,
            ) from error

    def _start_loading(self, key: ModelKey, device: str, pinned: bool) -> Resident[S]:
        resident: Resident[S] = Resident(
            key=key,
            device=device,
            state=State.LOADING,
            size_bytes=0,
            last_used_s=self._clock(),
            pinned=pinned,
            loaded=asyncio.get_running_loop().create_future(),
        )
        # Waiters may all have left when a load fails.
        resident.loaded.add_done_callback(lambda done: done.cancelled() or done.exception())  # type: ignore[union-attr]
        self._residents[key] = resident
        _spawn(self._load(resident), self._loads)
        return resident

    async def _load(self, resident: Resident[S]) -> None:
        assert resident.loaded is not None  # noqa: S101
        began_s = self._clock()
        try:
            resident.size_bytes = self._expect_bytes(resident)
            await self._let_in(resident)
            session = await self._load_retrying(resident)
        except BaseException as error:
            failure = self._fail(resident, error)
            self._observer.load_ended(resident.key, self._clock() - began_s, failure)
            if not isinstance(error, Exception):
                raise
            return
        self._failures.pop(resident.key, None)
        self._opened += 1
        resident.order = self._opened
        resident.session = session
        resident.size_bytes = session.size_bytes
        self._measured[resident.key, resident.device] = session.size_bytes
        resident.state = State.READY
        resident.loaded_at_s = resident.last_used_s = self._clock()
        resident.load_s = resident.loaded_at_s - began_s
        resident.loaded.set_result(None)
        self._counts_changed()
        self._observer.load_ended(resident.key, resident.load_s, None)
        self._evict_excess(resident.device)

    async def _load_retrying(self, resident: Resident[S]) -> S:
        try:
            return await self._loader.load(resident.key, resident.device)
        except AllocationFailed:
            victim = self._least_recently_used(resident.device)
            if victim is None:
                raise
            log.warning("load_out_of_memory", model=str(resident.key), evicting=str(victim.key))
            self._start_closing(victim, evicted=True)
            await victim.gone.wait()
            return await self._loader.load(resident.key, resident.device)

    def _fail(self, resident: Resident[S], error: BaseException) -> ShoalError:
        del self._residents[resident.key]
        resident.gone.set()
        if isinstance(error, ShoalError):
            failure = error
        elif isinstance(error, asyncio.CancelledError):
            failure = Unavailable("the server is shutting down")
        else:
            log.error("load_failed", model=str(resident.key), exc_info=error)
            failure = ModelLoadFailed("loading failed; the server's log says why")
        if isinstance(failure, FailedPrecondition):
            self._remember(resident.key, failure)
        assert resident.loaded is not None  # noqa: S101
        resident.loaded.set_exception(failure)
        self._counts_changed()
        return failure

    def _remember(self, key: ModelKey, error: ShoalError) -> None:
        earlier = self._failures.get(key)
        times = earlier.times + 1 if earlier else 1
        backoff_s = min(
            self._settings.load_backoff_s * 2 ** (times - 1), self._settings.load_backoff_max_s
        )
        self._failures[key] = Failure(error, self._clock() + backoff_s, times)

    # -- making room -------------------------------------------------------------

    async def _let_in(self, resident: Resident[S]) -> None:
        """Count `resident` against its device's budget, evicting for it where needed."""
        deadline_s = self._clock() + self._settings.eviction_wait_s
        while True:
            self._room_changed.clear()
            plan = make_room(
                self._occupants(resident.device), resident.size_bytes, self.budget(resident.device)
            )
            match plan.room:
                case Room.FITS:
                    resident.counted = True
                    self._counts_changed()
                    return
                case Room.NEVER:
                    raise self._too_large(resident)
                case Room.EVICT:
                    for key in plan.victims:
                        self._start_closing(self._residents[key], evicted=True)
                case Room.BUSY | Room.WAIT:
                    pass
            try:
                async with asyncio.timeout(self._patience_s(resident.device, plan, deadline_s)):
                    await self._room_changed.wait()
            except TimeoutError:
                raise self._no_room(resident) from None

    def _patience_s(self, device: str, plan: Plan, deadline_s: float) -> float | None:
        """How long to wait for a change: what closes is soon gone, what is in use may not be."""
        closing = any(
            each.device == device and each.state is State.CLOSING
            for each in self._residents.values()
        )
        if closing and plan.room is not Room.BUSY:
            return None
        return deadline_s - self._clock()

    def _occupants(self, device: str) -> list[Occupant]:
        return [
            Occupant(
                key=each.key,
                size_bytes=each.size_bytes,
                last_used_s=each.last_used_s,
                evictable=each.evictable,
                leaving=each.state in (State.LEAVING, State.CLOSING),
            )
            for each in self._residents.values()
            if each.counted and each.device == device
        ]

    def _too_large(self, resident: Resident[S]) -> ShoalError:
        budget = self.budget(resident.device).max_bytes
        return FailedPrecondition(
            f"model {resident.key} needs about {resident.size_bytes} bytes, "
            f"the memory budget of {resident.device} is {budget}",
            metadata={"limit": budget, "value": resident.size_bytes},
        )

    def _no_room(self, resident: Resident[S]) -> ShoalError:
        return Overloaded(
            f"no memory on {resident.device} for model {resident.key}: every model there is in "
            f"use or pinned, and none was released within {self._settings.eviction_wait_s:g} s",
            retry_after_s=_RETRY_WHEN_BUSY_S,
        )

    def _least_recently_used(self, device: str) -> Resident[S] | None:
        evictable = [each.key for each in self._occupants(device) if each.evictable]
        residents = (self._residents[key] for key in evictable)
        return min(residents, key=lambda each: each.last_used_s, default=None)

    def _evict_excess(self, device: str) -> None:
        """Measured larger than predicted, a session may have pushed `device` over its budget.

        What can not leave now is tried again when its leases are back. The last session
        stays: nobody would gain by loading it again for every request.
        """
        self._overfull.discard(device)
        budget = self.budget(device).max_bytes
        while budget is not None and self._staying_bytes(device) > budget:
            victim = self._least_recently_used(device)
            if victim is None or self._is_alone(victim):
                self._overfull.add(device)
                return
            self._start_closing(victim, evicted=True)

    def _is_alone(self, resident: Resident[S]) -> bool:
        return all(
            each is resident or each.device != resident.device or each.state is not State.READY
            for each in self._residents.values()
        )

    def _expect_bytes(self, resident: Resident[S]) -> int:
        """Size to make room for: measured at an earlier load, else predicted.

        A measurement holds what else happened meanwhile; alone it shuts nobody out.
        """
        predicted = self._loader.predict_bytes(resident.key, resident.device)
        measured = self._measured.get((resident.key, resident.device), predicted)
        budget = self.budget(resident.device).max_bytes
        return measured if budget is None or predicted > budget else min(measured, budget)

    def _staying_bytes(self, device: str) -> int:
        return sum(each.size_bytes for each in self._occupants(device) if not each.leaving)

    # -- unloading ---------------------------------------------------------------

    async def unload(self, key: ModelKey, *, force_after_s: float | None = None) -> None:
        """Take `key` out of memory; returns when the memory is free. Idempotent.

        Waits for its leases. A caller that stops waiting leaves it resident.

        Args:
            key: What to unload.
            force_after_s: Fail what is left of its requests after so long; None
                waits for as long as the caller does.
        """
        while (resident := self._residents.get(key)) and resident.state is State.LOADING:
            assert resident.loaded is not None  # noqa: S101
            with suppress(ShoalError):
                await asyncio.shield(resident.loaded)
        if resident is None:
            return
        if resident.state is not State.CLOSING:
            await self._leave(resident, force_after_s)
        await resident.gone.wait()

    async def _leave(self, resident: Resident[S], force_after_s: float | None) -> None:
        """Lend `resident` no more, and start to close it when nobody uses it, or by force."""
        assert resident.session is not None  # noqa: S101
        resident.state = State.LEAVING
        resident.unloads += 1
        try:
            async with asyncio.timeout(force_after_s):
                await self._wait_unused(resident)
        except TimeoutError:
            resident.session.abort(Unavailable(f"model {resident.key} was unloaded by force"))
        except asyncio.CancelledError:
            if resident.state is State.LEAVING and resident.unloads == 1:
                self._stay(resident)
            raise
        finally:
            resident.unloads -= 1
        if resident.state is State.LEAVING:
            self._start_closing(resident, evicted=False)

    def _stay(self, resident: Resident[S]) -> None:
        """Undo leaving; whoever waited for it to be gone finds it ready."""
        resident.state = State.READY
        resident.gone.set()
        resident.gone = asyncio.Event()

    async def _wait_unused(self, resident: Resident[S]) -> None:
        while resident.leases:
            resident.unused.clear()
            await resident.unused.wait()

    def _start_closing(self, resident: Resident[S], *, evicted: bool) -> None:
        """The point of no return: the pool's own task closes it, whoever asked for it."""
        resident.state = State.CLOSING
        _spawn(self._close(resident, evicted=evicted), self._closings)

    async def _close(self, resident: Resident[S], *, evicted: bool) -> None:
        await self._wait_unused(resident)  # only what leaves by force is still in use
        await self._free(resident, evicted=evicted)

    async def _free(self, resident: Resident[S], *, evicted: bool) -> None:
        resident.state = State.CLOSING
        assert resident.session is not None  # noqa: S101
        try:
            await resident.session.close()
        except Exception:
            log.exception("close_failed", model=str(resident.key))
        finally:
            # Only now is the memory free, and only now does it stop to count.
            del self._residents[resident.key]
            resident.gone.set()
            self._counts_changed()
            self._observer.unloaded(resident.key, evicted)

    async def close(self) -> None:
        """Close every session, the last opened first. Leases must be back."""
        self._closed = True
        for task in self._loads:
            task.cancel()
        await asyncio.gather(*self._loads, *self._closings, return_exceptions=True)
        newest_first = sorted(self._residents.values(), key=lambda each: -each.order)
        for resident in newest_first:
            if resident.state is State.LOADING:  # cancelled before its task had begun
                self._fail(resident, asyncio.CancelledError())
            elif resident.state is State.CLOSING:  # an unload was faster
                await resident.gone.wait()
            else:
                await self._free(resident, evicted=False)

    # -- bookkeeping ---------------------------------------------------------------

    def _counts_changed(self) -> None:
        self._room_changed.set()
        for device in self._budgets:
            self._observer.resident_changed(device, *self.counted(device))


def _spawn(work: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
    """Start `work` and hold on to its task until it is done."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
