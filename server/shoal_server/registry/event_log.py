"""The last events, numbered, and those who watch them.

    publish ──> ring of the last `history` events <── watchers, each at a place of its own

A watcher keeps a number, not events: one that does not read costs nothing and holds
nobody up. When the next event that it should see has left the ring, it is cut off.
Belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from shoal_server.errors import EventsOutOfRange
from shoal_server.registry.events import Event


@dataclass(frozen=True, slots=True)
class Entry:
    """An event with its place in the log."""

    sequence: int
    """Counts from 1, without gaps."""
    at_s: float
    """Seconds since the epoch."""
    event: Event


class Publisher(Protocol):
    """What those need who only tell."""

    def publish(self, event: Event) -> None:
        """Tell everyone who watches."""


class EventLogObserver(Protocol):
    """Is told what the log does, on the event loop."""

    def event_published(self, kind: str) -> None:
        """One more of this kind."""

    def watchers_changed(self, watchers: int) -> None:
        """So many watch now."""


class EventLog:
    """Numbers events, keeps the last ones and wakes those who watch."""

    def __init__(
        self, history: int, *, wall_clock: Callable[[], float], observer: EventLogObserver
    ) -> None:
        """Start empty.

        Args:
            history: Events that are kept.
            wall_clock: Seconds since the epoch.
            observer: Told of events and watchers.
        """
        self.instance_id = secrets.token_hex(8)
        """Of this log: numbers of another one mean other events."""
        self.newest = 0
        """The last number given."""
        self.history = history
        """Events that are kept."""
        self._wall_clock = wall_clock
        self._observer = observer
        self._ring: list[Entry] = []
        self._watchers: set[Watcher] = set()

    @property
    def oldest(self) -> int:
        """The number of the first event that is still here, or of the one to come."""
        return self.newest - len(self._ring) + 1

    def publish(self, event: Event) -> None:
        """Number and keep an event; never waits."""
        self.newest += 1
        entry = Entry(self.newest, self._wall_clock(), event)
        if len(self._ring) < self.history:
            self._ring.append(entry)
        else:
            self._ring[self._place(self.newest)] = entry
        self._observer.event_published(event.kind)
        for watcher in self._watchers:
            watcher.wake()

    def entry(self, sequence: int) -> Entry:
        """One event from `oldest` to `newest`."""
        return self._ring[self._place(sequence)]

    def _place(self, sequence: int) -> int:
        return (sequence - 1) % self.history

    @contextmanager
    def watch(
        self,
        *,
        after: int | None = None,
        subjects: Set[str] = frozenset(),
        kinds: Set[str] = frozenset(),
    ) -> Iterator[Watcher]:
        """Follow the log.

        Args:
            after: Begin behind this number; 0: with all that is still here; None: with
                the next one.
            subjects: Only events about one of these; empty: all.
            kinds: Only of these; empty: all.

        Raises:
            EventsOutOfRange: What follows `after` is gone, or never was.
        """
        if after == 0:
            after = self.oldest - 1
        watcher = Watcher(self, self.newest if after is None else after, subjects, kinds)
        watcher.check()
        self._watchers.add(watcher)
        self._observer.watchers_changed(len(self._watchers))
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            self._observer.watchers_changed(len(self._watchers))


class Watcher:
    """A place in the log, and what is wanted from there on. One task reads."""

    def __init__(self, log: EventLog, position: int, subjects: Set[str], kinds: Set[str]) -> None:
        """Stand behind `position`."""
        self.position = position
        """Up to here all was read, or was not wanted."""
        self.cut_off = asyncio.Event()
        """Set once the reader is so far behind that `read` can only fail."""
        self._log = log
        self._subjects = subjects
        self._kinds = kinds
        self._news = asyncio.Event()

    def check(self) -> None:
        """See to it that the next event can be read, now or once it is there.

        Raises:
            EventsOutOfRange: It is gone, or the log has never been where the reader is.
        """
        log = self._log
        if log.oldest - 1 <= self.position <= log.newest:
            return
        if self.position > log.newest:
            why = f"event {self.position} has not been: the newest is {log.newest}"
        else:
            why = f"event {self.position + 1} is no longer kept: the oldest is {log.oldest}"
        raise EventsOutOfRange(why, resume_after=log.oldest - 1, instance_id=log.instance_id)

    def wake(self) -> None:
        """The log has grown."""
        self._news.set()
        if self.position < self._log.oldest - 1:
            self.cut_off.set()

    async def read(self, *, at_most: int | None = None) -> Entry | None:
        """Wait for the next event that is wanted.

        Args:
            at_most: Return after so many that are not, so that the caller can tell how
                far it is; None: never.

        Returns:
            It; None when `at_most` was reached.

        Raises:
            EventsOutOfRange: The reader was too slow.
        """
        passed = 0
        while True:
            self.check()
            while self.position < self._log.newest:
                self.position += 1
                entry = self._log.entry(self.position)
                if self._wants(entry.event):
                    return entry
                passed += 1
                if passed == at_most:
                    return None
            self._news.clear()
            await self._news.wait()

    def _wants(self, event: Event) -> bool:
        return (not self._kinds or event.kind in self._kinds) and (
            not self._subjects or not self._subjects.isdisjoint(event.subjects)
        )
