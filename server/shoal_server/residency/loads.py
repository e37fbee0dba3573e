"""How a session comes into memory: once for all who wait, and failures are remembered."""

from __future__ import annotations

import asyncio
import traceback
from typing import Generic, Protocol

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
from shoal_server.lifecycle import Load, LoadReason, Unloading, UnloadReason
from shoal_server.residency.books import Books
from shoal_server.residency.closing import Closing
from shoal_server.residency.resident import (
    Failure,
    PoolSettings,
    Resident,
    S,
    SessionLoader,
    State,
)
from shoal_server.residency.room import RoomMaker
from shoal_server.residency.tasks import Tasks
from shoal_server.residency.warm import WarmForms

log = structlog.get_logger(__name__)

# By then the sessions that go first have given their memory back.
_RETRY_WHEN_REFUSED_S = 2.0
# Beyond any bound of the wait; a float holds no power of two above 1023.
_MAX_DOUBLINGS = 60


class Gate(Protocol):
    """Asked before each load."""

    async def __call__(self, device: str, peak_bytes: int, *, unasked: bool) -> bool:
        """Whether a load may begin; False: when another one has ended, perhaps.

        Args:
            device: Where.
            peak_bytes: What it takes at most.
            unasked: Whether nobody asks for it: then nothing leaves memory for it.

        Raises:
            ShoalError: What the load fails with.
        """


async def _let_all_in(device: str, peak_bytes: int, *, unasked: bool) -> bool:
    """Where nobody looks at memory."""
    return True


class Loads(Generic[S]):
    """Loads the sessions of one pool. Belongs to the event loop's thread."""

    def __init__(
        self,
        loader: SessionLoader[S],
        books: Books[S],
        room: RoomMaker[S],
        closing: Closing[S],
        warm: WarmForms[S],
        settings: PoolSettings,
    ) -> None:
        self._loader = loader
        self._books = books
        self._room = room
        self._closing = closing
        self._warm = warm
        self._settings = settings
        self._failures: dict[ModelKey, Failure] = {}
        self._measured: dict[tuple[ModelKey, str], int] = {}
        self._refusals: dict[str, str] = {}
        self.gate: Gate = _let_all_in
        """Asked before each load; raises what the load fails with."""
        self._tasks = Tasks()
        self._opened = 0

    def failure(self, key: ModelKey) -> Failure | None:
        """How the last load of `key` failed, if it did."""
        return self._failures.get(key)

    def forget_failure(self, key: ModelKey) -> None:
        """Try it again at once."""
        self._failures.pop(key, None)

    def forget(self, key: ModelKey, device: str) -> None:
        """Try it again at once, and measure it anew."""
        self.forget_failure(key)
        # It was measured beside others' work: too large by that need not be too large.
        self._measured.pop((key, device), None)

    def start(self, key: ModelKey, device: str, *, pinned: bool, why: LoadReason) -> Resident[S]:
        """Begin to load `key` in a task of its own.

        Raises:
            ModelLoadFailed: It could not be loaded a short while ago.
            Overloaded: Nothing is loaded on the device just now.
        """
        self._raise_remembered(key)
        self._raise_refused(key, device)
        resident: Resident[S] = Resident(
            key=key,
            device=device,
            state=State.LOADING,
            size_bytes=0,
            last_used_s=self._books.clock(),
            why_loaded=why,
            pinned=pinned,
            loaded=asyncio.get_running_loop().create_future(),
            warm=self._warm.take(key, device),
        )
        # Waiters may all have left when a load fails.
        resident.loaded.add_done_callback(lambda done: done.cancelled() or done.exception())  # type: ignore[union-attr]
        self._books.residents[key] = resident
        self._books.observer.load_began(key, why)
        self._tasks.spawn(self._load(resident))
        return resident

    def refuse(self, device: str, reason: str | None) -> None:
        """Begin no load on `device`, for that reason; None: load again."""
        if reason is None:
            self._refusals.pop(device, None)
        else:
            self._refusals[device] = reason

    def give_up(self, resident: Resident[S]) -> None:
        """Fail a load that was cancelled before its task had begun."""
        self._fail(resident, asyncio.CancelledError())

    def cancel(self) -> None:
        """Give up all loads that go on."""
        self._tasks.cancel()

    async def ended(self) -> None:
        """Return when the loads that go on now have ended."""
        await self._tasks.ended()

    def _raise_remembered(self, key: ModelKey) -> None:
        failure = self._failures.get(key)
        if failure is None:
            return
        left_s = failure.until_s - self._books.clock()
        if left_s > 0:
            error = failure.error
            kind = type(error) if isinstance(error, ModelLoadFailed) else ModelLoadFailed
            raise kind(
                f"model {key} could not be loaded: {error.message}",
                retry_after_s=left_s,
                metadata=error.metadata,
            ) from error

    def _raise_refused(self, key: ModelKey, device: str) -> None:
        reason = self._refusals.get(device)
        if reason is not None:
            raise Overloaded(
                f"model {key} is not loaded now: {reason}", retry_after_s=_RETRY_WHEN_REFUSED_S
            )

    async def _load(self, resident: Resident[S]) -> None:
        assert resident.loaded is not None  # noqa: S101
        books = self._books
        began_s = books.clock()
        try:
            session = await self.bring_in(resident)
        except BaseException as error:
            failure = self._fail(resident, error)
            books.observer.load_ended(_load_of(resident, books.clock() - began_s, failure))
            if not isinstance(error, Exception):
                raise
            return
        self.opened(resident, session, began_s)
        if resident.warm is not None:
            resident.from_warm = True
            self._warm.loaded(resident.warm)
            resident.warm = None
        resident.loaded.set_result(None)
        books.counts_changed()
        books.observer.load_ended(_load_of(resident, resident.load_s))
        self._room.evict_excess(resident.device, resident.key)
        books.fell_idle(resident)

    async def bring_in(self, resident: Resident[S]) -> S:
        """Make room for `resident`, wait for its turn, and load its session.

        Raises:
            ShoalError: There is no room, or it can not be loaded.
        """
        try:
            self._raise_refused(resident.key, resident.device)
            resident.size_bytes = self.expect_bytes(resident)
            resident.peak_bytes = self._loader.predict_peak_bytes(resident.key, resident.device)
            await self._room.let_in(resident)
            self._raise_refused(resident.key, resident.device)  # it may have waited
            await self._begin(resident)
            return await self._load_retrying(resident)
        finally:
            resident.begun = False
            self._books.end_coming()

    def opened(self, resident: Resident[S], session: S, began_s: float) -> None:
        """Note that `resident` has its session, and can be lent."""
        self._failures.pop(resident.key, None)
        self._opened += 1
        resident.order = self._opened
        resident.session = session
        resident.size_bytes = session.size_bytes
        self._measured[resident.key, resident.device] = session.size_bytes
        resident.state = State.READY
        resident.loaded_at_s = resident.last_used_s = self._books.clock()
        resident.load_s = resident.loaded_at_s - began_s

    async def _begin(self, resident: Resident[S]) -> None:
        """Wait for the gate, and from then on count what loading takes."""
        deadline_s = asyncio.get_running_loop().time() + self._settings.eviction_wait_s
        while True:
            ended, unasked = self._books.coming_ended, resident.unasked
            try:
                if await self.gate(resident.device, resident.peak_bytes, unasked=unasked):
                    break
            except Overloaded:
                if unasked and not resident.unasked:
                    continue  # a request has come for it meanwhile
                raise
            try:
                async with asyncio.timeout_at(deadline_s):
                    await ended.wait()
            except TimeoutError:
                raise Overloaded(
                    f"no memory on {resident.device} for model {resident.key} beside the models "
                    "that are being loaded",
                    retry_after_s=_RETRY_WHEN_REFUSED_S,
                ) from None
        resident.begun = True

    async def _load_retrying(self, resident: Resident[S]) -> S:
        try:
            return await self._load_session(resident)
        except AllocationFailed as error:
            if resident.unasked:
                # Not to be remembered: a request may have others leave for it.
                raise Overloaded(error.message, retry_after_s=_RETRY_WHEN_REFUSED_S) from error
            victim = self._books.least_recently_used(resident.device)
            if victim is None:
                raise
            log.warning("load_out_of_memory", model=str(resident.key), evicting=str(victim.key))
            self._closing.start(victim, Unloading(UnloadReason.EVICTED, resident.key))
            await victim.gone.wait()
            return await self._load_session(resident)

    async def _load_session(self, resident: Resident[S]) -> S:
        if resident.warm is not None and not await self._warm.check(resident.warm):
            resident.warm = None
        if resident.warm is None:
            return await self._loader.load(resident.key, resident.device)
        return await resident.warm.form.load(resident.device)

    def _fail(self, resident: Resident[S], error: BaseException) -> ShoalError:
        del self._books.residents[resident.key]
        resident.gone.set()
        failure = failure_of(resident.key, error)
        if isinstance(failure, FailedPrecondition):
            self._remember(resident.key, failure)
        if resident.warm is not None:
            self._warm.load_failed(resident.warm, failure)
            resident.warm = None
        assert resident.loaded is not None  # noqa: S101
        resident.loaded.set_exception(failure)
        self._books.counts_changed()
        return failure

    def _remember(self, key: ModelKey, error: ShoalError) -> None:
        release_locals(error)
        earlier = self._failures.get(key)
        times = earlier.times + 1 if earlier else 1
        backoff_s = min(
            self._settings.load_backoff_s * 2 ** min(times - 1, _MAX_DOUBLINGS),
            self._settings.load_backoff_max_s,
        )
        self._failures[key] = Failure(error, self._books.clock() + backoff_s, times)

    def expect_bytes(self, resident: Resident[S]) -> int:
        """Size to make room for: measured at an earlier load, else predicted.

        A measurement holds what else happened meanwhile; alone it shuts nobody out.
        """
        predicted = self._loader.predict_bytes(resident.key, resident.device)
        measured = self._measured.get((resident.key, resident.device), predicted)
        budget = self._books.budgets[resident.device].max_bytes
        return measured if budget is None or predicted > budget else min(measured, budget)


def release_locals(error: BaseException | None) -> None:
    """With a failure's traceback, what was opened before it would stay in memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def failure_of(key: ModelKey, error: BaseException) -> ShoalError:
    """What those who wait for a load are told of how it ended."""
    if isinstance(error, ShoalError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return Unavailable("the server is shutting down")
    log.error("load_failed", model=str(key), exc_info=error)
    return ModelLoadFailed("loading failed; the server's log says why")


def _load_of(resident: Resident[S], seconds: float, error: ShoalError | None = None) -> Load:
    return Load(
        key=resident.key,
        device=resident.device,
        why=resident.why_loaded,
        seconds=seconds,
        size_bytes=resident.size_bytes,
        error=error,
        from_warm=resident.from_warm,
    )
