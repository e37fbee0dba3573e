"""When a load test has passed."""

from __future__ import annotations

from loadtests.budget import REJECTED, Budget, RequestCounts, judge

BUDGET = Budget(max_error_rate=0.01, max_rejected_rate=0.1, max_steady_p99_ms=100)


def test_within_the_budget_nothing_is_said() -> None:
    """Exactly the budget is within it."""
    assert judge(RequestCounts(1000, {"UNKNOWN": 10, REJECTED: 100}, 100), BUDGET) == []


def test_each_breach_is_told() -> None:
    """Errors, rejections and slowness, each with its figure and its limit."""
    problems = judge(RequestCounts(1000, {"UNKNOWN": 11, REJECTED: 101}, 101), BUDGET)
    assert [problem.split("; ")[1].split(" ")[0] for problem in problems] == [
        "max_error_rate",
        "max_rejected_rate",
        "max_steady_p99_ms",
    ]
    assert "11 × UNKNOWN" in problems[0]


def test_no_requests_is_a_failure() -> None:
    """A server that never answered has no errors either."""
    assert judge(RequestCounts(0, {}, None), BUDGET) == ["no request was answered at all"]


def test_without_steady_callers_their_latency_is_not_judged() -> None:
    """Users can be chosen on Locust's command line."""
    assert judge(RequestCounts(10, {}, None), BUDGET) == []
