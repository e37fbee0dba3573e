"""How much one caller may ask for in a minute: token buckets, in requests and in tokens.

A bucket holds a minute's worth and is refilled evenly, so a caller may come in bursts
and gets, over time, what its limit says. A request takes 1 from the one bucket, and from
the other its tokens: first an estimate, since they are known only once it is tokenized,
then what they really are. So an estimate that is too low becomes a debt, which later
requests wait for; a request larger than a minute's worth needs a full bucket and leaves
one; and what is given back, because the request failed before it was tokenized, is there
for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from shoal_server.errors import RateLimited

_MINUTE_S = 60.0
_MAX_BUCKETS = 10_000
"""Callers with buckets of their own. A full bucket is like a new one and need not be kept."""
_OVERFLOW = "(others)"
"""Whose buckets newcomers share when there are so many that are not full."""
_UNLIMITED = "-"
# What rounding may hold back from a caller that comes when it was told to.
_TOLERANCE_S = 1e-6

REQUESTS_LIMIT = "rate_limit_requests_per_min"
TOKENS_LIMIT = "rate_limit_tokens_per_min"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What a caller may ask for in a minute; None: as much as it likes."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None

    @property
    def is_off(self) -> bool:
        """Whether nothing is limited."""
        return self.requests_per_min is None and self.tokens_per_min is None


class TokenBucket:
    """So much a minute; holds a minute's worth, and is full at first."""

    __slots__ = ("_level", "_since_s", "per_min")

    def __init__(self, per_min: int, now_s: float) -> None:
        self.per_min = per_min
        self._level = float(per_min)
        self._since_s = now_s

    def level(self, now_s: float) -> float:
        """What is in it; below 0 while there is a debt."""
        refilled = self._level + (now_s - self._since_s) * self.per_min / _MINUTE_S
        return min(refilled, float(self.per_min))

    def is_full(self, now_s: float) -> bool:
        """Whether it is as when it was made."""
        return self.level(now_s) >= self.per_min

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount`, or all that it holds where that is less, is in it."""
        missing = min(amount, self.per_min) - self.level(now_s)
        return max(0.0, missing * _MINUTE_S / self.per_min)

    def take(self, amount: float, now_s: float) -> None:
        """Take `amount` out, though there be less; a negative one gives back."""
        self._level = min(self.level(now_s) - amount, float(self.per_min))
        self._since_s = now_s


class Charge:
    """What one request was charged. Leave it as a context when the request has ended."""

    __slots__ = ("_clock", "_estimate", "_tokens")

    def __init__(
        self, tokens: TokenBucket | None, estimate: int, clock: Callable[[], float]
    ) -> None:
        self._tokens = tokens
        self._estimate = estimate
        self._clock = clock

    def settle(self, tokens: int) -> None:
        """Charge for the request's tokens, now that they are known, not for the estimate."""
        if self._tokens is not None:
            self._tokens.take(tokens - self._estimate, self._clock())
            self._tokens = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """A request that was never tokenized costs no tokens."""
        self.settle(0)


@dataclass(slots=True)
class _Buckets:
    """Of one caller."""

    requests: TokenBucket | None
    tokens: TokenBucket | None

    def is_full(self, now_s: float) -> bool:
        return all(
            bucket is None or bucket.is_full(now_s) for bucket in (self.requests, self.tokens)
        )


class RateLimits:
    """The limits of all callers. Belongs to the event loop's thread."""

    def __init__(
        self,
        limit: RateLimit,
        *,
        by_caller: Mapping[str, RateLimit],
        clock: Callable[[], float],
        rejected: Callable[[str], None],
        max_buckets: int = _MAX_BUCKETS,
    ) -> None:
        """Limit callers.

        Args:
            limit: Of callers that have none of their own.
            by_caller: Of those that have.
            clock: Monotonic seconds.
            rejected: Told the name of the limit that a refused request ran into.
            max_buckets: Callers whose use is remembered; for tests.
        """
        self._limit = limit
        self._by_caller = dict(by_caller)
        self._clock = clock
        self._rejected = rejected
        self._max_buckets = max_buckets
        # Least recently used first.
        self._buckets: dict[str, _Buckets] = {}
        self._free = Charge(None, 0, clock)
        self._all_off = self._is_all_off()

    def change(self, limit: RateLimit, by_caller: Mapping[str, RateLimit]) -> None:
        """Go by other limits, as in `__init__`; all callers begin with full buckets."""
        self._limit = limit
        self._by_caller = dict(by_caller)
        self._buckets.clear()
        self._all_off = self._is_all_off()

    def admit(self, caller: str, estimated_tokens: int) -> Charge:
        """Charge a request to its caller.

        Args:
            caller: Whose request it is.
            estimated_tokens: What it will probably take, at least 0.

        Raises:
            RateLimited: It is too much for now; nothing was charged.
        """
        if self._all_off:
            return self._free
        limit = self._by_caller.get(caller, self._limit)
        if limit.is_off:
            return self._free
        now_s = self._clock()
        buckets = self._buckets_of(caller, limit, now_s)
        self._check(caller, buckets, estimated_tokens, now_s)
        if buckets.requests is not None:
            buckets.requests.take(1, now_s)
        if buckets.tokens is None:
            return self._free
        buckets.tokens.take(estimated_tokens, now_s)
        return Charge(buckets.tokens, estimated_tokens, self._clock)

    def _check(self, caller: str, buckets: _Buckets, tokens: int, now_s: float) -> None:
        """Refuse a request for which there is too little, by what it would wait for longest."""
        needs = (REQUESTS_LIMIT, buckets.requests, 1), (TOKENS_LIMIT, buckets.tokens, tokens)
        name, bucket, asked, wait_s = max(
            (
                (name, bucket, asked, bucket.wait_s(asked, now_s))
                for name, bucket, asked in needs
                if bucket is not None
            ),
            key=lambda each: each[-1],
        )
        if wait_s <= _TOLERANCE_S:
            return
        self._rejected(name)
        limit = bucket.per_min
        used = limit - bucket.level(now_s)
        raise RateLimited(
            f"{name} of {caller!r} is {limit}: {used:.0f} used, {asked} more asked for",
            retry_after_s=wait_s,
            metadata={
                "limit": name,
                "limit_value": limit,
                "value": f"{used:.0f}",
                "asked": asked,
                "caller": caller,
            },
        )

    def _buckets_of(self, caller: str, limit: RateLimit, now_s: float) -> _Buckets:
        known = self._buckets.pop(caller, None)
        if known is None and len(self._buckets) >= self._max_buckets:
            oldest = next(iter(self._buckets))
            if self._buckets[oldest].is_full(now_s):
                del self._buckets[oldest]
            elif caller not in self._by_caller:
                caller, limit = _OVERFLOW, self._limit
                known = self._buckets.pop(caller, None)
        if known is None:
            known = _Buckets(
                requests=_bucket(limit.requests_per_min, now_s),
                tokens=_bucket(limit.tokens_per_min, now_s),
            )
        self._buckets[caller] = known
        return known

    def _is_all_off(self) -> bool:
        return self._limit.is_off and all(each.is_off for each in self._by_caller.values())


def _bucket(per_min: int | None, now_s: float) -> TokenBucket | None:
    return None if per_min is None else TokenBucket(per_min, now_s)


def read_limits(entries: Iterable[str]) -> dict[str, RateLimit]:
    """The limits of single callers, as the settings hold (and have checked) them.

    Args:
        entries: `CALLER=REQUESTS/TOKENS`, a minute; `-` for no limit.
    """
    limits = {}
    for entry in entries:
        caller, _, numbers = entry.rpartition("=")
        requests, _, tokens = numbers.partition("/")
        limits[caller] = RateLimit(_number(requests), _number(tokens))
    return limits


def _number(text: str) -> int | None:
    return None if text == _UNLIMITED else int(text)
