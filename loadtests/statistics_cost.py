"""What counting, naming callers and limiting them costs a request, on the event loop.

python -m loadtests.statistics_cost
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from shoal_server.api.callers import Callers
from shoal_server.core import ModelKey
from shoal_server.rate_limits import RateLimit, RateLimits
from shoal_server.statistics.statistics import Statistics

_CALLS, _ROUNDS = 1_000, 300
_KEY = ModelKey("all-minilm-l6-v2", "1")
_PEER = "ipv4:127.0.0.1:51234"
_METADATA = (("user-agent", "grpc-python/1.85.1"), ("x-request-id", "0123456789abcdef"))
_WITH_KEY = (*_METADATA, ("authorization", "Bearer 0123456789abcdef0123456789abcdef"))


def measure_statistics_cost() -> Mapping[str, float]:
    """CPU time in microseconds, by what is done."""
    statistics = Statistics(window_s=60, max_callers=1000, clock=time.monotonic)
    callers = Callers(by_key=True, names={})
    off, on = _limits(RateLimit()), _limits(RateLimit(10**9, 10**12))

    def count_request() -> None:
        statistics.answered(
            "127.0.0.1",
            _KEY,
            seconds=0.0123,
            queue_s=0.001,
            inference_s=0.003,
            items=1,
            tokens=12,
            truncated=0,
        )

    return {
        "count a request": _us(count_request),
        "count a batch": _us(lambda: statistics.batch_ended(_KEY, 8, 100, 110, 0.01)),
        "name a caller by its host": _us(lambda: callers.name(_METADATA, _PEER)),
        "name a caller by its key": _us(lambda: callers.name(_WITH_KEY, _PEER)),
        "limits that are off": _us(lambda: _limited(off)),
        "limits of requests and tokens": _us(lambda: _limited(on)),
    }


def _limits(limit: RateLimit) -> RateLimits:
    return RateLimits(limit, by_caller={}, clock=time.monotonic, rejected=lambda _: None)


def _limited(limits: RateLimits) -> None:
    with limits.admit("127.0.0.1", 10) as charge:
        charge.settle(12)


def _us(call: Callable[[], object]) -> float:
    """Best of many rounds: noise only adds."""

    def round_us() -> float:
        began_s = time.thread_time()
        for _ in range(_CALLS):
            call()
        return (time.thread_time() - began_s) / _CALLS * 1e6

    return min(round_us() for _ in range(_ROUNDS))


if __name__ == "__main__":
    for name, us in measure_statistics_cost().items():
        print(f"{name:<30} {us:.2f} µs")
