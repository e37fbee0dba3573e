"""Requests and tokens a minute, for each caller."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.errors import RateLimited
from shoal_server.rate_limits import (
    REQUESTS_LIMIT,
    TOKENS_LIMIT,
    RateLimit,
    RateLimits,
    TokenBucket,
    read_limits,
)
from tests.server.clock import Clock


class Limits(RateLimits):
    """With a clock that the test moves, and what was rejected."""

    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        max_buckets: int = 100,
        **by_caller: RateLimit,
    ) -> None:
        self.clock = Clock()
        self.rejections: list[str] = []
        super().__init__(
            RateLimit(requests, tokens),
            by_caller=by_caller,
            clock=self.clock,
            rejected=self.rejections.append,
            max_buckets=max_buckets,
        )

    def run(self, caller: str, tokens: int = 0, estimate: int | None = None) -> None:
        """One request that ends well."""
        with self.admit(caller, tokens if estimate is None else estimate) as charge:
            charge.settle(tokens)


def refused(limits: Limits, caller: str, tokens: int = 0) -> RateLimited:
    with pytest.raises(RateLimited) as raised:
        limits.admit(caller, tokens)
    return raised.value


def test_off_by_default() -> None:
    """Without limits nobody is refused, whatever it asks for."""
    limits = Limits()
    for _ in range(1000):
        limits.run("a", 10**9)


def test_requests_come_in_a_burst_and_then_evenly() -> None:
    """A minute's worth at once, then one each so many seconds: at 30 a minute, two."""
    limits = Limits(requests=30)
    for _ in range(30):
        limits.run("a")
    error = refused(limits, "a")
    assert error.retry_after_s == pytest.approx(2.0)
    limits.clock.now_s += 2.0
    limits.run("a")
    refused(limits, "a")


def test_the_refusal_names_limit_use_and_caller() -> None:
    """The caller can see what it ran into, and a metric counts it."""
    limits = Limits(requests=2)
    limits.run("a")
    limits.run("a")
    error = refused(limits, "a")
    assert error.reason == "RATE_LIMITED"
    assert error.metadata == {
        "limit": REQUESTS_LIMIT,
        "limit_value": "2",
        "value": "2",
        "asked": "1",
        "caller": "a",
    }
    assert limits.rejections == [REQUESTS_LIMIT]


def test_one_caller_does_not_use_up_anothers() -> None:
    """Each has buckets of its own."""
    limits = Limits(requests=1)
    limits.run("a")
    refused(limits, "a")
    limits.run("b")


def test_whoever_waits_as_told_is_let_in() -> None:
    """Exactly then, and not a moment before."""
    limits = Limits(tokens=100)
    limits.run("a", 70)
    wait_s = refused(limits, "a", 50).retry_after_s
    limits.clock.now_s += wait_s - 0.001
    refused(limits, "a", 50)
    limits.clock.now_s += 0.001
    limits.run("a", 50)


def test_who_runs_into_both_limits_is_told_the_longer_wait() -> None:
    """After the shorter one it would only be refused by the other."""
    limits = Limits(requests=60, tokens=60)
    for _ in range(59):
        limits.run("a")
    limits.run("a", tokens=180, estimate=1)
    error = refused(limits, "a", 1)
    assert error.metadata["limit"] == TOKENS_LIMIT
    limits.clock.now_s += error.retry_after_s
    limits.run("a", 1)


def test_a_refused_request_costs_nothing() -> None:
    """Neither a request nor tokens, whichever limit refused it."""
    limits = Limits(requests=2, tokens=100)
    limits.run("a", 60)
    for _ in range(10):
        assert refused(limits, "a", 60).metadata["limit"] == TOKENS_LIMIT
    limits.run("a", 40)


def test_tokens_are_charged_as_they_are_not_as_estimated() -> None:
    """What the estimate took too much is there again once the tokens are known."""
    limits = Limits(tokens=100)
    limits.run("a", tokens=10, estimate=100)
    limits.run("a", tokens=90)
    refused(limits, "a", 1)


def test_an_estimate_too_low_becomes_a_debt() -> None:
    """Later requests wait until it is paid: over time nobody gets more than its limit."""
    limits = Limits(tokens=60)
    limits.run("a", tokens=180, estimate=1)
    assert refused(limits, "a", 1).retry_after_s == pytest.approx(121.0)


def test_a_request_that_fails_before_it_is_tokenized_costs_no_tokens() -> None:
    """What was reserved for it comes back."""
    limits = Limits(tokens=100)
    with pytest.raises(RuntimeError), limits.admit("a", 100):
        raise RuntimeError
    limits.run("a", 100)


def test_tokens_reserved_by_requests_in_flight_are_taken() -> None:
    """Many at once can not all be let in by what only one may use."""
    limits = Limits(tokens=100)
    limits.admit("a", 60)
    refused(limits, "a", 60)


def test_a_request_larger_than_a_minutes_worth_needs_a_full_bucket() -> None:
    """It can be served, and is paid for afterwards."""
    limits = Limits(tokens=60)
    limits.run("a", 1)
    refused(limits, "a", 600)
    limits.clock.now_s += 1.0
    limits.run("a", 600)
    assert refused(limits, "a", 1).retry_after_s == pytest.approx(541.0)


def test_single_callers_have_limits_of_their_own() -> None:
    """Higher, lower or none."""
    limits = Limits(requests=1, big=RateLimit(3, None), free=RateLimit())
    for _ in range(3):
        limits.run("big", 10**6)
    refused(limits, "big")
    for _ in range(100):
        limits.run("free")
    limits.run("a")
    refused(limits, "a")


def test_a_caller_may_be_limited_where_others_are_not() -> None:
    """An override alone turns limiting on, for that one."""
    limits = Limits(slow=RateLimit(1, None))
    limits.run("slow")
    refused(limits, "slow")
    for _ in range(10):
        limits.run("a")


def test_forgetting_a_full_bucket_gives_nothing_away() -> None:
    """With room for two, a third is remembered only when one of them is full again."""
    limits = Limits(requests=1, max_buckets=2)
    limits.run("a")
    limits.run("b")
    limits.clock.now_s += 60
    limits.run("c")  # in the place of a, which is full
    limits.run("a")  # in the place of b
    refused(limits, "a")
    refused(limits, "c")


def test_too_many_callers_at_once_share_the_rest() -> None:
    """Memory is bounded, those that are known keep what is theirs, and nobody gets more."""
    limits = Limits(requests=2, max_buckets=2)
    limits.run("a")
    limits.run("b")
    limits.run("c")
    limits.run("d")
    refused(limits, "e")
    limits.run("a")


def test_change_takes_hold_at_once() -> None:
    """A limit that is turned on, changed or off while the server runs."""
    limits = Limits()
    limits.change(RateLimit(requests_per_min=1), {"b": RateLimit()})
    limits.run("a")
    refused(limits, "a")
    limits.run("b")
    limits.run("b")
    limits.change(RateLimit(), {})
    limits.run("a")


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 200), st.integers(0, 200)), max_size=60))
def test_nobody_gets_more_than_its_limit_over_time(
    requests: list[tuple[float, int, int]],
) -> None:
    """However requests come and however wrong the estimates.

    Beyond a full bucket and what refilled it only the last request's tokens: a bucket in
    debt lets none in.
    """
    limits = Limits(tokens=100)
    began_s, used = limits.clock.now_s, 0
    for wait_s, tokens, estimate in requests:
        limits.clock.now_s += wait_s
        try:
            limits.run("a", tokens, estimate)
        except RateLimited:
            continue
        used += tokens
        allowed = 100 + 100 * (limits.clock.now_s - began_s) / 60
        assert used <= allowed + tokens + 1e-6


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-50, 200)), max_size=50))
def test_a_bucket_never_holds_more_than_a_minutes_worth(steps: list[tuple[float, float]]) -> None:
    """Neither by refilling nor by giving back."""
    bucket, now_s = TokenBucket(60, 0.0), 0.0
    for wait_s, amount in steps:
        now_s += wait_s
        bucket.take(amount, now_s)
        assert bucket.level(now_s) <= 60
        assert bucket.level(now_s + 1e6) == 60


def test_read_limits() -> None:
    """Callers' names may hold anything, an `=` too."""
    assert read_limits(["a=1/2", "key:0a=-/5", "x=y=3/-", "::1=-/-"]) == {
        "a": RateLimit(1, 2),
        "key:0a": RateLimit(None, 5),
        "x=y": RateLimit(3, None),
        "::1": RateLimit(None, None),
    }
