"""Counts of the last minute and of all time, with one addition for each event.

Events are counted into the newest of a few parts of the window; a part that grows too
old is added to the past. That happens when the next event comes or somebody asks:
nothing ticks.

    past │ part │ part │ … │ newest
         └────── window ──────┘        since start = past + all parts
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, Self, TypeVar

PARTS = 12
"""Of a window: it slides in steps of a twelfth of its length."""


class Addable(Protocol):
    """Counts that can be added up."""

    def add(self, other: Self, /) -> None:
        """Count what `other` counted, too; it is not used any more afterwards."""


T = TypeVar("T", bound=Addable)


class SlidingWindow(Generic[T]):
    """Counts by time. Belongs to the event loop's thread."""

    def __init__(self, window_s: float, make: Callable[[], T], clock: Callable[[], float]) -> None:
        """Begin to count.

        Args:
            window_s: Length of the window.
            make: Makes counts that are 0.
            clock: Monotonic seconds.
        """
        self._step_s = window_s / PARTS
        self._make = make
        self._clock = clock
        self._began_s = clock()
        self._past = make()
        self._newest = make()
        # Parts by number, oldest first; the newest is the last one.
        self._parts: deque[tuple[int, T]] = deque([(0, self._newest)])
        self._newest_ends_s = self._began_s + self._step_s

    def newest(self) -> T:
        """Where to count what happens now."""
        if self._clock() >= self._newest_ends_s:
            self._advance()
        return self._newest

    def recent(self) -> Iterator[T]:
        """The parts of the window, oldest first; empty stretches of time have none."""
        self.newest()
        return (part for _, part in self._parts)

    def all(self) -> Iterator[T]:
        """What lies before the window, and the parts of the window."""
        self.newest()
        yield self._past
        yield from (part for _, part in self._parts)

    def recent_s(self) -> float:
        """Length of the time that `recent` covers: up to one step less than the window."""
        self.newest()
        number, _ = self._parts[-1]
        first_s = self._began_s + max(0, number - PARTS + 1) * self._step_s
        return self._clock() - first_s

    def since_start_s(self) -> float:
        """Length of the time that `all` covers."""
        return self._clock() - self._began_s

    def _advance(self) -> None:
        last, _ = self._parts[-1]
        # At least the next one: the division may round down at its very beginning.
        number = max(last + 1, int((self._clock() - self._began_s) / self._step_s))
        while self._parts and self._parts[0][0] <= number - PARTS:
            self._past.add(self._parts.popleft()[1])
        self._newest = self._make()
        self._parts.append((number, self._newest))
        self._newest_ends_s = self._began_s + (number + 1) * self._step_s
