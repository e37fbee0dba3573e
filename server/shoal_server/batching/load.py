"""What has been coming and how much is inside, as the policy wants to know it."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Weight of the newest gap between arrivals in their running mean. Callers that wait for
# their answers come back in bursts; the mean is to span several of them.
_GAP_WEIGHT = 0.05
# By which share the peaks come down to what is inside, with every run that starts.
_FORGET = 0.05
# Over which time the rate is averaged: longer than any run, shorter than a deadline.
_RATE_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """What has been coming, and the most that was inside at once lately.

    Inside is what waits or runs. Callers that send again when they are answered make
    peaks as high as there are callers: what is not inside just now is on its way.
    """

    last_arrival_s: float = -math.inf
    """When the last request arrived."""
    gap_s: float = math.inf
    """Typical time between two requests; infinite when unknown."""
    items: float = 0.0
    """Peak of the items inside."""
    tokens: float = 0.0
    """Peak of the tokens inside, without padding."""


class LoadMeter:
    """Keeps the `Load` of one model. On the event loop."""

    def __init__(self) -> None:
        self._items = 0
        self._tokens = 0
        self._peak_items = 0.0
        self._peak_tokens = 0.0
        self._last_arrival_s = -math.inf
        self._gap_s = math.inf

    def arrived(self, now_s: float, items: int, tokens: int) -> None:
        """A request came in."""
        gap_s = now_s - self._last_arrival_s
        self._last_arrival_s = now_s
        known_s = self._gap_s
        self._gap_s = gap_s if math.isinf(known_s) else known_s + _GAP_WEIGHT * (gap_s - known_s)
        self._items += items
        self._tokens += tokens
        self._peak_items = max(self._peak_items, self._items)
        self._peak_tokens = max(self._peak_tokens, self._tokens)

    def started(self) -> None:
        """A run began."""
        self._peak_items -= _FORGET * (self._peak_items - self._items)
        self._peak_tokens -= _FORGET * (self._peak_tokens - self._tokens)

    def left(self, items: int, tokens: int) -> None:
        """Items were answered, or given up while they waited."""
        self._items -= items
        self._tokens -= tokens

    @property
    def load(self) -> Load:
        """As of now."""
        return Load(self._last_arrival_s, self._gap_s, self._peak_items, self._peak_tokens)

    def check_integrity(self, items: int, tokens: int) -> None:
        """Raise AssertionError unless this much is inside. For tests."""
        assert (self._items, self._tokens) == (items, tokens)  # noqa: S101


class DrainRate:
    """How fast the queue of one model gets shorter while there is one. On the event loop.

    Counts everything that costs time, not only the runs: other models on the same
    device, other processes on the machine, the event loop itself.
    """

    def __init__(self) -> None:
        self.tokens_per_s: float | None = None
        """None until a queue was seen."""
        self._since_s: float | None = None

    def ended(self, now_s: float, tokens: int, *, waiting: bool) -> None:
        """A run ended.

        Args:
            now_s: When.
            tokens: Of its items, without padding.
            waiting: Whether more items wait.
        """
        since_s, self._since_s = self._since_s, now_s if waiting else None
        if since_s is None or now_s <= since_s:
            return
        rate = tokens / (now_s - since_s)
        known = self.tokens_per_s
        weight = 1.0 - math.exp((since_s - now_s) / _RATE_S)
        self.tokens_per_s = rate if known is None else known + weight * (rate - known)
