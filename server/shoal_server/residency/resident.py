"""What the pool holds and lends, and what it asks of its neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, Protocol, Self, TypeVar

from shoal_server.core import ModelKey
from shoal_server.errors import ShoalError, Unavailable
from shoal_server.lifecycle import Load, LoadReason, Unloading, WarmRelease

# The device whose memory warm forms take.
RAM = "cpu"


class Session(Protocol):
    """What the pool holds: anything with a size that can be closed."""

    @property
    def size_bytes(self) -> int:
        """Measured once loaded."""

    @property
    def idle_s(self) -> float | None:
        """How long it may be idle before it is released; 0: for ever; None: as others."""

    def lease_ended(self) -> None:
        """One that borrowed it is done, and it stays: what can wait for that may begin."""

    def warm_form(self) -> WarmForm[Self] | None:
        """What would stay in RAM once it is closed, not filled yet; None: nothing."""

    async def shrink(self) -> None:
        """Give back memory that only runs need; it may be in use, and is not closed meanwhile."""

    async def close(self) -> None:
        """Free the memory; returns when it is free. Nobody holds a lease."""

    def abort(self, reason: Unavailable) -> None:
        """Fail whatever is still going on, so that the leases come back."""


S = TypeVar("S", bound=Session)
S_co = TypeVar("S_co", bound=Session, covariant=True)


class WarmForm(Protocol[S_co]):
    """What stays in RAM of a session that left its GPU."""

    @property
    def size_bytes(self) -> int:
        """What it takes when it is filled."""

    @property
    def idle_s(self) -> float | None:
        """How long after its last use it goes; as `Session.idle_s`."""

    async def fill(self) -> None:
        """Bring it into RAM, off the event loop; once.

        Raises:
            ShoalError: That can not be done; says why.
        """

    async def is_current(self) -> bool:
        """Whether a load from the files would give the same session."""

    async def load(self, device: str) -> S_co:
        """Make a session of it; as `SessionLoader.load`."""


class SessionLoader(Protocol[S_co]):
    """Brings one model into memory."""

    def predict_bytes(self, key: ModelKey, device: str) -> int:
        """Size before it is loaded, from its files.

        Raises:
            ShoalError: It can not be loaded at all.
        """

    def predict_peak_bytes(self, key: ModelKey, device: str) -> int:
        """The most that it takes while it is being loaded; at least its size.

        Raises:
            ShoalError: It can not be loaded at all.
        """

    async def load(self, key: ModelKey, device: str) -> S_co:
        """Load it, off the event loop.

        Raises:
            AllocationFailed: There was not enough memory.
            ShoalError: Anything else that went wrong.
        """


class State(Enum):
    """Where a session is in its life."""

    LOADING = auto()
    READY = auto()
    LEAVING = auto()
    CLOSING = auto()


@dataclass(eq=False, slots=True)
class Resident(Generic[S]):
    """A session in the pool. Changed by the pool only."""

    key: ModelKey
    device: str
    state: State
    size_bytes: int
    last_used_s: float
    order: int = 0
    """Counts the sessions opened; the last opened is closed first."""
    session: S | None = None
    why_loaded: LoadReason = LoadReason.REQUEST
    why_unloading: Unloading | None = None
    """Set while it is on its way out."""
    pinned: bool = False
    keep_alive_s: float | None = None
    """What a request said last of how long it may be idle; negative: for ever."""
    peak_bytes: int = 0
    """What loading it takes, at most."""
    begun: bool = False
    """Whether its load takes memory already."""
    uses: int = 0
    """Requests that it was lent to since it was loaded."""
    leases: int = 0
    waiters: int = 0
    """Callers that wait for its load; they get it before it may be evicted."""
    unloads: int = 0
    """Callers that wait for it to leave."""
    loaded_at_s: float = 0.0
    load_s: float = 0.0
    counted: bool = False
    """Whether it has been let into the budget."""
    warm: Warm[S] | None = None
    """What its load makes it of, while that goes on; None: of its files."""
    from_warm: bool = False
    """Whether it was made of a warm form."""
    unasked: bool = False
    """Whether it came into free memory, and nobody has asked for it yet."""
    held_until_s: float = 0.0
    """While nobody has, it is not released for being idle before."""
    loaded: asyncio.Future[None] | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def evictable(self) -> bool:
        """Whether it may be closed to make room."""
        return (
            self.state is State.READY and not self.leases and not self.waiters and not self.pinned
        )

    @property
    def rank(self) -> float:
        """The least one leaves first: by the last use, but before all those what came unasked.

        Of these the last one, which was the least wanted.
        """
        return -float(self.order) if self.unasked else self.last_used_s

    @property
    def leaving(self) -> bool:
        """Whether it is on its way out; it counts until its memory is free."""
        return self.state in (State.LEAVING, State.CLOSING)

    def __repr__(self) -> str:
        pin = ", pinned" if self.pinned else ""
        return (
            f"{self.key} on {self.device}: {self.state.name.lower()}, {self.leases} leases, "
            f"{self.size_bytes} bytes{pin}"
        )


@dataclass(eq=False, slots=True)
class Warm(Generic[S]):
    """A warm form in RAM. Changed by the pool only."""

    key: ModelKey
    form: WarmForm[S]
    last_used_s: float
    """Of the session that it was."""
    keep_alive_s: float | None
    """As `Resident.keep_alive_s`."""
    filled: bool = False
    in_use: bool = False
    """Whether a session is being made of it."""
    dropped: bool = False
    """Whether it goes as soon as it is filled: what fills it can not be stopped."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def evictable(self) -> bool:
        """Whether it may go to make room."""
        return not self.in_use and not self.dropped

    @property
    def may_go_now(self) -> bool:
        """Whether its memory would be free at once."""
        return self.evictable and self.filled

    def __repr__(self) -> str:
        state = "in use" if self.in_use else "filled" if self.filled else "filling"
        return f"{self.key} warm: {state}, {self.form.size_bytes} bytes"


@dataclass(frozen=True, slots=True)
class Departure:
    """Why and when a session left memory last."""

    why: Unloading
    at_s: float
    """On the pool's clock."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed load, remembered so that it is not tried at every request."""

    error: ShoalError
    until_s: float
    times: int


class Lease(Generic[S]):
    """A borrow of a session that forbids its eviction. Release it exactly once."""

    __slots__ = ("_release", "_resident", "session")

    def __init__(
        self, resident: Resident[S], session: S, release: Callable[[Resident[S]], None]
    ) -> None:
        self.session = session
        self._resident: Resident[S] | None = resident
        self._release = release

    def keep_alive(self, seconds: float) -> None:
        """Say how long the session may be idle; negative: for ever. While it is borrowed."""
        if self._resident is not None:
            self._resident.keep_alive_s = seconds

    def release(self) -> None:
        """Give the borrow back. Idempotent."""
        if self._resident is not None:
            resident, self._resident = self._resident, None
            self._release(resident)

    def __enter__(self) -> Lease[S]:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class PoolObserver(Protocol):
    """Is told what happened, on the event loop."""

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        """So much is counted on the device now."""

    def load_began(self, key: ModelKey, why: LoadReason) -> None:
        """A model is on its way into memory."""

    def load_ended(self, load: Load) -> None:
        """A load ended, well or not."""

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        """A session is lent no more."""

    def stayed(self, key: ModelKey) -> None:
        """A session that was to leave is lent again: nobody waits for it to leave."""

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        """A session left memory."""


class WarmObserver(Protocol):
    """Is told what becomes of warm forms, on the event loop."""

    def warm_changed(self, models: int, size_bytes: int) -> None:
        """So many there are now, and so much they take."""

    def warm_loaded(self, key: ModelKey) -> None:
        """One is a session again."""

    def warm_released(self, release: WarmRelease) -> None:
        """One left RAM without having been loaded."""


class NobodyObserves:
    """A `WarmObserver` that does nothing."""

    def warm_changed(self, models: int, size_bytes: int) -> None:
        """See `WarmObserver`."""

    def warm_loaded(self, key: ModelKey) -> None:
        """See `WarmObserver`."""

    def warm_released(self, release: WarmRelease) -> None:
        """See `WarmObserver`."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How the pool waits and forgets."""

    eviction_wait_s: float
    load_backoff_s: float
    load_backoff_max_s: float
