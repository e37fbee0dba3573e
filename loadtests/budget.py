"""Whether a load test passed: pure, so that it can be tested without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

REJECTED = "RESOURCE_EXHAUSTED"


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may go wrong."""

    max_error_rate: float
    """Share of requests that may fail, rejections not counted."""
    max_rejected_rate: float
    """Share of requests that may be refused with RESOURCE_EXHAUSTED."""
    max_steady_p99_ms: float


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """What became of the requests."""

    total: int
    errors: Mapping[str, int]
    """By gRPC code, or by what was wrong with the answer."""
    steady_p99_ms: float | None
    """None: no steady caller asked."""


def judge(counts: RequestCounts, budget: Budget) -> list[str]:
    """What broke the budget, in words; empty when nothing did."""
    if not counts.total:
        return ["no request was answered at all"]
    problems = []
    rejected = counts.errors.get(REJECTED, 0)
    failed = sum(counts.errors.values()) - rejected
    if failed > budget.max_error_rate * counts.total:
        kinds = ", ".join(f"{n} × {kind}" for kind, n in counts.errors.items() if kind != REJECTED)
        problems.append(
            f"{failed} of {counts.total} requests failed, {failed / counts.total:.2%}; "
            f"max_error_rate is {budget.max_error_rate:.2%} ({kinds})"
        )
    if rejected > budget.max_rejected_rate * counts.total:
        problems.append(
            f"{rejected} of {counts.total} requests were refused, "
            f"{rejected / counts.total:.2%}; max_rejected_rate is {budget.max_rejected_rate:.2%}"
        )
    p99_ms = counts.steady_p99_ms
    if p99_ms is not None and p99_ms > budget.max_steady_p99_ms:
        problems.append(
            f"p99 of the steady callers was {p99_ms:.0f} ms; "
            f"max_steady_p99_ms is {budget.max_steady_p99_ms:.0f}"
        )
    return problems
