"""What stays in RAM of sessions that left a GPU, so that they are back sooner.

                                      ┌──────────── failed ───────────┐
                                      v                               │
    session on a GPU ──> filling ──> filled ──a request wants it──> in use ──> session
      idle, evicted,        │          │
      memory short          v          v  idle in RAM, room or memory wanted there, unloaded
                        (absent)    (absent)

A warm form counts against the CPU's budget from the decision to keep it until its memory
is free. Older ones may go for it, sessions never, and where memory is short none is kept.
One that is still being filled is not waited for: the files are as near.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Generic

import structlog

from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition, ShoalError
from shoal_server.lifecycle import Unloading, UnloadReason, WarmRelease
from shoal_server.residency.books import Books
from shoal_server.residency.eviction import Budget, Room, make_room
from shoal_server.residency.resident import (
    RAM,
    Resident,
    S,
    Warm,
    WarmForm,
    WarmObserver,
)
from shoal_server.residency.tasks import Tasks

log = structlog.get_logger(__name__)

# Who is asked to go, and what a server's end takes, goes wholly.
_STAY = (UnloadReason.EVICTED, UnloadReason.IDLE, UnloadReason.PRESSURE)


class WarmForms(Generic[S]):
    """The warm forms of one pool. Belongs to the event loop's thread."""

    def __init__(self, books: Books[S], observer: WarmObserver) -> None:
        """Keep none yet.

        Args:
            books: Of the pool.
            observer: Told of them.
        """
        self._books = books
        self._observer = observer
        self._tasks = Tasks()
        self._is_short = False
        self.due_s: Callable[[Warm[S]], float] = lambda warm: math.inf
        """When one has been idle for long enough."""
        self.stays: Callable[[Warm[S]], None] = lambda warm: None
        """Told of one that may go from now on, when it is due."""

    def memory_is_short(self, short: bool) -> None:
        """Keep no more of them while RAM is short; those that there are stay."""
        self._is_short = short

    # -- coming ------------------------------------------------------------------

    def form_of(self, resident: Resident[S]) -> WarmForm[S] | None:
        """What would stay of a session on its way out; None: it goes wholly."""
        why = resident.why_unloading
        if resident.session is None or why is None or why.reason not in _STAY:
            return None
        return resident.session.warm_form()

    def keep(self, resident: Resident[S], form: WarmForm[S]) -> bool:
        """Begin to fill `form`, unless that is not worth it or there is no room."""
        books = self._books
        warm = Warm(resident.key, form, resident.last_used_s, resident.keep_alive_s)
        if self._is_short or resident.key in books.warm or self.due_s(warm) <= books.clock():
            return False
        if not self._make_room(warm):
            return False
        books.warm[warm.key] = warm
        self._changed()
        self._tasks.spawn(self._fill(warm))
        return True

    def _make_room(self, warm: Warm[S]) -> bool:
        books = self._books
        # What leaves later, or not for this, leaves no room now.
        occupants = [
            replace(each, leaving=False, evictable=each.warm and books.warm[each.key].may_go_now)
            for each in books.occupants(RAM)
        ]
        budget = Budget(max_bytes=books.budgets[RAM].max_bytes)
        plan = make_room(occupants, warm.form.size_bytes, budget)
        if plan.room not in (Room.FITS, Room.EVICT):
            return False
        for key in plan.warm_victims:
            self.release(books.warm[key], Unloading(UnloadReason.EVICTED, warm.key))
        return True

    async def _fill(self, warm: Warm[S]) -> None:
        problem = ""
        try:
            await warm.form.fill()
        except ShoalError as error:
            problem = error.message
        except Exception as error:
            log.exception("warm_form_failed", model=str(warm.key))
            problem = f"it could not be read: {type(error).__name__}"
        warm.filled = True
        if warm.dropped:
            self._strike(warm)
        elif problem:
            self._give_up(warm, problem)
        else:
            self._books.room_changed.set()
            self.stays(warm)
        self._books.end_coming()

    # -- being loaded --------------------------------------------------------------

    def take(self, key: ModelKey, device: str) -> Warm[S] | None:
        """The warm form for a load of `key` that begins, held until the load has ended.

        None where there is none that helps; the one that does not goes.
        """
        warm = self._books.warm.get(key)
        if warm is None or warm.dropped:
            return None
        if device == RAM or not warm.filled:
            self._drop(warm)
            return None
        warm.in_use = True
        return warm

    async def check(self, warm: Warm[S]) -> bool:
        """Whether it is still what its files are; otherwise it goes."""
        if await warm.form.is_current():
            return True
        self._give_up(warm, "its files were changed")
        return False

    def loaded(self, warm: Warm[S]) -> None:
        """It is a session again."""
        self._strike(warm)
        self._observer.warm_loaded(warm.key)

    def load_failed(self, warm: Warm[S], error: ShoalError) -> None:
        """It stays for the next try, unless the failure is one that is remembered."""
        warm.in_use = False
        if isinstance(error, FailedPrecondition):
            self._give_up(warm, error.message)
        else:
            self._books.room_changed.set()
            self.stays(warm)

    # -- going -------------------------------------------------------------------

    def release(self, warm: Warm[S], why: Unloading) -> None:
        """Let it go, unless a load needs it."""
        if not warm.in_use and not warm.dropped:
            size_bytes = warm.form.size_bytes
            self._drop(warm)
            self._observer.warm_released(WarmRelease(warm.key, size_bytes, why))

    def release_next(self, device: str, why: Unloading) -> Warm[S] | None:
        """Let the least recently used one on `device` go; None: there is none that can."""
        for warm in self._books.warm_on(device):
            if warm.evictable:
                self.release(warm, why)
                return warm
        return None

    async def close(self) -> None:
        """Let all go; no load goes on."""
        self._is_short = True
        for warm in list(self._books.warm.values()):
            self.release(warm, Unloading(UnloadReason.SHUTDOWN))
        await self._tasks.ended()

    def _give_up(self, warm: Warm[S], problem: str) -> None:
        size_bytes = warm.form.size_bytes
        self._strike(warm)
        self._observer.warm_released(WarmRelease(warm.key, size_bytes, None, problem))

    def _drop(self, warm: Warm[S]) -> None:
        if warm.filled:
            self._strike(warm)
        else:
            warm.dropped = True

    def _strike(self, warm: Warm[S]) -> None:
        """Its memory is free with the last reference."""
        del self._books.warm[warm.key]
        warm.gone.set()
        self._changed()

    def _changed(self) -> None:
        self._books.counts_changed()
        self._observer.warm_changed(len(self._books.warm), self._books.warm_bytes(RAM))
