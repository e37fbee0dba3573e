"""What has been coming and how much is inside, as the policy wants to know it."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Weight of the newest gap between arrivals in their running mean. Callers that wait for
# their answers come back in bursts; the mean is to span several of them. A gap counts as
# no more than the longest that matters, so that a quiet hour is soon forgotten.
_GAP_WEIGHT = 0.05
_GAP_MAX_S = 0.1
# Over which time the mean of what is missing is taken.
_MISSING_S = 0.5
# By which share the peaks come down to what is inside, with every run that starts.
_FORGET = 0.05
# Over which time the rate is averaged: longer than any run, shorter than a deadline.
_RATE_S = 1.0
# For how much time the guess counts: until a queue was seen for longer than that.
_RATE_GUESS_S = 0.02


@dataclass(frozen=True, slots=True)
class Load:
    """What has been coming, and the most that was inside at once lately.

    Inside is what waits or runs. Callers that send again when they are answered make
    peaks as high as there are callers: what is not inside just now is on its way.
    """

    last_arrival_s: float = -math.inf
    """When the last request arrived."""
    next_s: float = _GAP_MAX_S
    """In how much time the next request is to be expected; long while nothing is known."""
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
        self._gap_s = _GAP_MAX_S
        # Of what was missing to the peak, decaying with time: its integral, and the time.
        self._missing_items_s = 0.0
        self._missing_s = 0.0
        self._counted_s = -math.inf

    def arrived(self, now_s: float, items: int, tokens: int) -> None:
        """A request came in."""
        self._count_missing(now_s)
        gap_s = min(now_s - self._last_arrival_s, _GAP_MAX_S)
        self._last_arrival_s = now_s
        self._gap_s += _GAP_WEIGHT * (gap_s - self._gap_s)
        self._items += items
        self._tokens += tokens
        self._peak_items = max(self._peak_items, self._items)
        self._peak_tokens = max(self._peak_tokens, self._tokens)

    def started(self) -> None:
        """A run began."""
        self._peak_items -= _FORGET * (self._peak_items - self._items)
        self._peak_tokens -= _FORGET * (self._peak_tokens - self._tokens)

    def left(self, now_s: float, items: int, tokens: int) -> None:
        """Items were answered, or given up while they waited."""
        self._count_missing(now_s)
        self._items -= items
        self._tokens -= tokens

    @property
    def load(self) -> Load:
        """As of now."""
        return Load(self._last_arrival_s, self._next_s(), self._peak_items, self._peak_tokens)

    def _next_s(self) -> float:
        """Little's law: who is missing now comes back as soon as who was missing on average.

        Of callers in a loop that come back in bursts after each batch, the mean gap
        between requests would say nothing about the next one.
        """
        missing = self._peak_items - self._items
        if missing <= 0 or not self._missing_s:
            return self._gap_s
        mean_missing = self._missing_items_s / self._missing_s
        return min(self._gap_s, mean_missing * self._gap_s / missing)

    def _count_missing(self, now_s: float) -> None:
        passed_s = min(max(0.0, now_s - self._counted_s), _MISSING_S)
        kept = math.exp(-passed_s / _MISSING_S)
        missing = max(0.0, self._peak_items - self._items)
        self._missing_items_s = kept * self._missing_items_s + missing * passed_s
        self._missing_s = kept * self._missing_s + passed_s
        self._counted_s = now_s

    def check_integrity(self, items: int, tokens: int) -> None:
        """Raise AssertionError unless this much is inside. For tests."""
        assert (self._items, self._tokens) == (items, tokens)  # noqa: S101


class DrainRate:
    """How fast the queue of one model gets shorter while there is one. On the event loop.

    Counts everything that costs time, not only the runs: other models on the same
    device, other processes on the machine, the event loop itself.
    """

    def __init__(self) -> None:
        # Both decay with time.
        self._tokens = 0.0
        self._queued_s = 0.0
        self._updated_s = -math.inf
        self._queued_since_s: float | None = None

    def ended(self, now_s: float, tokens: int, *, waiting: bool) -> None:
        """A run ended.

        Args:
            now_s: When.
            tokens: Of its items, without padding.
            waiting: Whether more items wait.
        """
        since_s, self._queued_since_s = self._queued_since_s, now_s if waiting else None
        kept = math.exp(min(0.0, self._updated_s - now_s) / _RATE_S)
        self._tokens *= kept
        self._queued_s *= kept
        self._updated_s = now_s
        if since_s is not None:
            self._tokens += tokens
            self._queued_s += now_s - since_s

    def tokens_per_s(self, guess: float) -> float:
        """How many are run in a second while others wait.

        Args:
            guess: For as long as no queue was seen lately.
        """
        return (self._tokens + guess * _RATE_GUESS_S) / (self._queued_s + _RATE_GUESS_S)
