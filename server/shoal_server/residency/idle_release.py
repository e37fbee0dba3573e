"""Releases sessions that nobody uses: one timer, set for the next that is due."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import Context
from typing import Generic, Protocol

from shoal_server.core import ModelKey
from shoal_server.lifecycle import Unloading, UnloadReason
from shoal_server.residency.books import Books
from shoal_server.residency.closing import Closing
from shoal_server.residency.idle import IdleRules, Rhythm, idle_limit_s
from shoal_server.residency.resident import RAM, Resident, S, Warm
from shoal_server.residency.warm import WarmForms


class Timer(Protocol):
    """A call that will be made, unless it is cancelled."""

    def cancel(self) -> None:
        """Do not make it."""


CallLater = Callable[[float, Callable[[], None]], Timer]
"""Make a call so many seconds from now, on the event loop."""


def call_later(delay_s: float, call: Callable[[], None]) -> Timer:
    """The running event loop's; what the call logs belongs to no request."""
    return asyncio.get_running_loop().call_later(delay_s, call, context=Context())


class IdleRelease(Generic[S]):
    """Closes the idle sessions of one pool. Belongs to the event loop's thread.

    The timer is set when a session falls idle before the one it was set for, and not
    moved when that one is used again: when it fires, it looks at all of them anew. So a
    request costs a comparison.
    """

    def __init__(
        self,
        books: Books[S],
        closing: Closing[S],
        warm: WarmForms[S],
        rules: IdleRules,
        later: CallLater,
    ) -> None:
        """Wait for sessions to fall idle.

        Args:
            books: Of the pool.
            closing: Closes what is due.
            warm: Lets go what is due in RAM.
            rules: For sessions that have none of their own.
            later: Sets a timer.
        """
        self._books = books
        self._closing = closing
        self._warm = warm
        self._rules = rules
        self._later = later
        self._rhythms: dict[ModelKey, Rhythm] = {}
        self._timer: Timer | None = None
        self._next_s = math.inf

    def change(self, rules: IdleRules) -> None:
        """Go by other rules from now on."""
        self._rules = rules
        self._release_due()

    def lent(self, resident: Resident[S]) -> None:
        """Somebody uses it."""
        if not self._rules.adaptive:
            return
        now_s = self._books.clock()
        rhythm = self._rhythms.get(resident.key)
        if rhythm is None:
            self._rhythms[resident.key] = Rhythm(now_s)
        else:
            rhythm.used(now_s, self._timeout_s(resident))

    def fell_idle(self, resident: Resident[S]) -> None:
        """Nobody uses it from now on, or other rules hold for it."""
        due_s = self._due_s(resident)
        if due_s < self._next_s:
            self._arm(due_s)

    def stays_warm(self, warm: Warm[S]) -> None:
        """It is in RAM from now on, and nobody uses it."""
        due_s = self.warm_due_s(warm)
        if due_s < self._next_s:
            self._arm(due_s)

    def warm_due_s(self, warm: Warm[S]) -> float:
        """When it was not used for so long that it goes; infinity: never."""
        own_s = warm.form.idle_s
        timeout_s = self._rules.timeouts_s[RAM] if own_s is None else own_s
        limit_s = idle_limit_s(timeout_s, warm.keep_alive_s, self._mean_gap_s(warm.key))
        return math.inf if limit_s is None else warm.last_used_s + limit_s

    def warm_left_s(self, warm: Warm[S]) -> float | None:
        """Seconds until it goes, if no request comes; None: never."""
        due_s = self.warm_due_s(warm)
        return None if due_s == math.inf else max(0.0, due_s - self._books.clock())

    def left_s(self, resident: Resident[S]) -> float | None:
        """Seconds until it is released, if no request comes; None: never."""
        limit_s = self._limit_s(resident)
        if resident.pinned or limit_s is None:
            return None
        idle_s = 0.0 if resident.leases else self._books.clock() - resident.last_used_s
        held_s = resident.held_until_s - self._books.clock() if resident.unasked else 0.0
        return max(0.0, limit_s - idle_s, held_s)

    def stop(self) -> None:
        """Release nothing any longer."""
        self._next_s = -math.inf
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_s = due_s
        self._timer = self._later(max(0.0, due_s - self._books.clock()), self._release_due)

    def _release_due(self) -> None:
        now_s = self._books.clock()
        next_s = math.inf
        for resident in list(self._books.residents.values()):
            due_s = self._due_s(resident)
            if due_s > now_s:
                next_s = min(next_s, due_s)
            else:
                self._closing.start(resident, Unloading(_reason(resident)))
        for warm in list(self._books.warm.values()):
            due_s = self.warm_due_s(warm) if warm.evictable else math.inf
            if due_s > now_s:
                next_s = min(next_s, due_s)
            else:
                self._warm.release(warm, Unloading(_reason(warm)))
        self._next_s = math.inf
        if next_s < math.inf:
            self._arm(next_s)

    def _due_s(self, resident: Resident[S]) -> float:
        limit_s = self._limit_s(resident) if resident.evictable else None
        if limit_s is None:
            return math.inf
        due_s = resident.last_used_s + limit_s
        return max(due_s, resident.held_until_s) if resident.unasked else due_s

    def _limit_s(self, resident: Resident[S]) -> float | None:
        return idle_limit_s(
            self._timeout_s(resident), resident.keep_alive_s, self._mean_gap_s(resident.key)
        )

    def _mean_gap_s(self, key: ModelKey) -> float | None:
        rhythm = self._rhythms.get(key) if self._rules.adaptive else None
        return rhythm.mean_gap_s if rhythm else None

    def _timeout_s(self, resident: Resident[S]) -> float:
        own_s = resident.session.idle_s if resident.session is not None else None
        return self._rules.timeouts_s[resident.device] if own_s is None else own_s


def _reason(idle: Resident[S] | Warm[S]) -> UnloadReason:
    return UnloadReason.IDLE if idle.keep_alive_s is None else UnloadReason.KEEP_ALIVE
