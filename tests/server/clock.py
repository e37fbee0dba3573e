"""A clock that stands still unless a test moves it."""

from __future__ import annotations


class Clock:
    """Monotonic seconds, as much as the code under test can tell.

    Attributes:
        now_s: What it shows; tests change it.
    """

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """The time."""
        return self.now_s
