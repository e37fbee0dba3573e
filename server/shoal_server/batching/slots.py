"""Slots of one device: how many runs may go on at once, over all its models."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Slots:
    """Counts the runs on one device. Belongs to the event loop's thread.

    Models that want a slot while none is free are called in turn when one is, so
    a busy model can not keep the others out.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = count
        self._wanting: deque[Callable[[], None]] = deque()

    def __repr__(self) -> str:
        return f"Slots({self._free} of {self.count} free, {len(self._wanting)} wanting)"

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return self._free

    def reserve(self, when_free: Callable[[], None]) -> bool:
        """Take a slot, or be called once when there may be one.

        Args:
            when_free: Called when a slot was released; it may reserve again.

        Returns:
            Whether the slot is yours now.
        """
        if self._free:
            self._free -= 1
            return True
        if when_free not in self._wanting:
            self._wanting.append(when_free)
        return False

    def withdraw(self, when_free: Callable[[], None]) -> None:
        """Call `when_free` no more; it wants no slot any longer. Idempotent."""
        if when_free in self._wanting:
            self._wanting.remove(when_free)

    def take_rest(self) -> int:
        """Take every slot that is free, for one run on all of them; how many."""
        taken, self._free = self._free, 0
        return taken

    def release(self, slots: int = 1) -> None:
        """Give slots back and call whoever wanted one first."""
        assert self._free + slots <= self.count, repr(self)  # noqa: S101
        self._free += slots
        self.offer()

    def offer(self) -> None:
        """Call those who want a slot, first come first, while one is free."""
        while self._free and self._wanting:
            self._wanting.popleft()()
