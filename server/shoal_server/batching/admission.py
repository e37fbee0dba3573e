"""The permit to wait: a bound on what the server has taken on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from shoal_server.errors import Overloaded

# Weight of the newest request in the running mean of time per item.
_RATE_WEIGHT = 0.05
_RETRY_MIN_S = 0.05
_RETRY_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What may be in flight at once."""

    items: int
    items_per_model: int
    bytes: int


@dataclass(slots=True)
class Permit:
    """The right of one request to be in flight."""

    model: str
    items: int
    size_bytes: int
    since_s: float
    in_flight: int
    """Items in flight when it was given, its own included."""


class Admission:
    """Hands out permits by items and bytes. Belongs to the event loop's thread.

    A request above a limit is refused at once rather than queued: the caller learns
    that the server is full while it can still go elsewhere.
    """

    def __init__(
        self,
        limits: AdmissionLimits,
        *,
        clock: Callable[[], float],
        changed: Callable[[int, int], None],
        rejected: Callable[[str], None],
    ) -> None:
        """Bound what is in flight.

        Args:
            limits: What may be in flight.
            clock: Monotonic seconds.
            changed: Told items and bytes in flight whenever they change.
            rejected: Told the name of the limit that a refused request ran into.
        """
        self._limits = limits
        self._clock = clock
        self._changed = changed
        self._rejected = rejected
        self._by_model: Counter[str] = Counter()
        self._seconds_per_item = 0.0
        self.items = 0
        self.bytes = 0
        self.requests = 0

    def __repr__(self) -> str:
        return f"Admission({self.requests} requests, {self.items} items, {self.bytes} bytes)"

    def change(self, limits: AdmissionLimits) -> None:
        """Go by other limits from now on; what is in flight stays."""
        self._limits = limits

    def admit(self, model: str, items: int, size_bytes: int) -> Permit:
        """Give a permit for one request; whoever gets one releases it.

        Raises:
            Overloaded: There is no room.
        """
        self._check(model, items, size_bytes)
        self._change(model, items, size_bytes, +1)
        return Permit(model, items, size_bytes, self._clock(), self.items)

    def release(self, permit: Permit) -> None:
        """Take a permit back."""
        # What a request waited, over what was in flight with it: time per item.
        sample = (self._clock() - permit.since_s) / permit.in_flight
        known = self._seconds_per_item
        self._seconds_per_item += (_RATE_WEIGHT if known else 1.0) * (sample - known)
        self._change(permit.model, -permit.items, -permit.size_bytes, -1)

    def _check(self, model: str, items: int, size_bytes: int) -> None:
        limits = self._limits
        for name, used, asked, limit in (
            ("max_waiting_items", self.items, items, limits.items),
            (
                "max_waiting_items_per_model",
                self._by_model[model],
                items,
                limits.items_per_model,
            ),
            ("max_inflight_bytes", self.bytes, size_bytes, limits.bytes),
        ):
            # A lone request above the limit would never fit; it is let in alone.
            if used + asked > limit and used > 0:
                self._rejected(name)
                raise Overloaded(
                    f"{name} is {limit}: {used} in flight, {asked} more asked for",
                    retry_after_s=self.retry_after_s(),
                    metadata={"limit": name, "value": limit, "in_flight": used, "asked": asked},
                )

    def retry_after_s(self) -> float:
        """When half of what is in flight will probably be done."""
        expected = self.items * self._seconds_per_item / 2
        return min(max(expected, _RETRY_MIN_S), _RETRY_MAX_S)

    def _change(self, model: str, items: int, size_bytes: int, requests: int) -> None:
        self.items += items
        self.bytes += size_bytes
        self.requests += requests
        self._by_model[model] += items
        if not self._by_model[model]:
            del self._by_model[model]
        self._changed(self.items, self.bytes)
