"""What Shoal must reach, and whether a run of the benchmark reached it.

The goals are ratios to the bare limit of the same run. "Peer" is the best tuned peer
that was found, measured in the same way (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from loadtests.management import CALLS, LOAD, SWITCH
from loadtests.results import ClosedResult, OpenResult, Results
from loadtests.rows import Row

_OVERLOAD = 1.2
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One goal on one server."""

    server: str
    name: str
    goal: float
    at_most: bool
    """Whether less is better; else more."""
    measured: float | None
    """None: this run did not measure it."""
    peer: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """None when it was not measured."""
        if self.measured is None:
            return None
        return self.measured <= self.goal if self.at_most else self.measured >= self.goal


def outcomes(results: Results) -> list[Outcome]:
    """Every goal on every server of a run."""
    return [
        outcome
        for server in results.servers
        for outcome in (
            *_cpu_goals(results, server.name),
            *_share_goals(results, server.name),
            *_other_goals(results, server.name),
        )
    ]


def _cpu_goals(results: Results, server: str) -> Iterator[Outcome]:
    def worst(rows: list[Row]) -> float | None:
        found = results.find_closed(server, rows)
        return max((each.median(lambda window: window.cpu_ratio) for each in found), default=None)

    def goal(name: str, limit: float, rows: list[Row], peer: float | None = None) -> Outcome:
        return Outcome(server, f"CPU ÷ bare: {name}", limit, True, worst(rows), peer)

    if results.precision == "int8":
        yield goal("int8 short 64 × 1", 1.25, [Row("short", 64, 1)])
        yield goal("int8 short × 32", 1.08, [Row("short", n, 32) for n in (1, 8, 64)])
        return
    yield goal("short 64 × 1", 1.12, [Row("short", 64, 1)], 1.26)
    yield goal("mixed 64 × 1", 1.05, [Row("mixed", 64, 1)], 1.10)
    yield goal("any workload 8 × 32", 1.04, [Row(w, 8, 32) for w in ("short", "medium", "mixed")])


SHARES = (
    (Row("short", 1, 1), 0.46, 0.38),
    (Row("short", 8, 1), 0.70, 0.57),
    (Row("short", 64, 1), 0.83, 0.78),
    (Row("short", 1, 32), 0.90, 0.45),
    (Row("short", 8, 32), 0.95, 0.87),
    (Row("mixed", 64, 1), 0.94, 0.93),
    (Row("mixed", 8, 32), 0.97, 0.96),
    (Row("mixed", 1, 32), 0.90, 0.51),
)


def _share_goals(results: Results, server: str) -> Iterator[Outcome]:
    if results.precision == "int8":
        return
    for row, goal, peer in SHARES:
        found = results.find_closed(server, [row])
        measured = found[0].median(lambda window: window.share) if found else None
        yield Outcome(server, f"share of the limit: {row}", goal, False, measured, peer)


def _other_goals(results: Results, server: str) -> Iterator[Outcome]:
    found = [each for each in results.alone if (each.server, each.workload) == (server, "short")]
    alone = found[0] if found else None
    yield Outcome(
        server, "one caller, one short text: p50 above tokenizer + runtime", 0.6, True,
        _of(alone, lambda each: each.median(lambda w: w.server_p50_ms - w.bare_p50_ms)),
        unit="ms",
    )  # fmt: skip
    yield Outcome(
        server, "one caller, one short text: p50 ÷ that of a session with all cores", 1.0, True,
        _of(alone, lambda each: each.median(lambda w: w.server_p50_ms / w.bare_all_cores_p50_ms)),
    )  # fmt: skip
    yield Outcome(
        server, "padding waste: mixed 64 × 1", 0.05, True,
        _median(results.find_closed(server, [Row("mixed", 64, 1)]), lambda w: w.padding_waste),
    )  # fmt: skip
    yield from _overload_goals(results, server)
    yield from _start_goals(results, server)


def _of(measured: T | None, figure: Callable[[T], float]) -> float | None:
    return None if measured is None else figure(measured)


def _median(found: list[ClosedResult], of: Callable[..., float]) -> float | None:
    return found[0].median(of) if found else None


def _overload_goals(results: Results, server: str) -> Iterator[Outcome]:
    found = [each for each in results.open if (each.server, each.load) == (server, _OVERLOAD)]
    overload = found[0] if found else None
    yield Outcome(
        server, "goodput ÷ capacity at 120%", 0.95, False,
        _of(overload, lambda each: each.median(lambda w: w.goodput_per_s / w.capacity_per_s)),
    )  # fmt: skip
    yield Outcome(
        server, "p99 of the accepted at 120%, deadline 1 s", 1000.0, True,
        _of(overload, _p99_ms), unit="ms",
    )  # fmt: skip


def _p99_ms(overload: OpenResult) -> float:
    return overload.median(lambda w: w.latency.p99_ms if w.latency else float("inf"))


def _start_goals(results: Results, server: str) -> Iterator[Outcome]:
    policy = results.policy
    ratio = policy.us_with_many_waiting / policy.us_with_few_waiting if policy else None
    yield Outcome(server, "policy's cost per item, 100,000 waiting ÷ 100", 1.5, True, ratio)
    started = next(each for each in results.servers if each.name == server)
    start_s = min(started.start_s, default=None)
    yield Outcome(server, "start to ready", 1.5, True, start_s, unit="s")
    cold_ms = sorted(started.cold_ms)[len(started.cold_ms) // 2] if started.cold_ms else None
    yield Outcome(server, "cold model's first answer", 150.0, True, cold_ms, unit="ms")
    yield from _management_goals(results, server)


_MANAGEMENT_MS = {LOAD: 100.0, SWITCH: 50.0, **dict.fromkeys(CALLS, 1.0)}


def _management_goals(results: Results, server: str) -> Iterator[Outcome]:
    """Medians, at the server."""
    found = next((each for each in results.management if each.server == server), None)
    for operation, goal_ms in _MANAGEMENT_MS.items():
        measured = found.median_ms(operation) if found else None
        yield Outcome(server, f"at the server: {operation}", goal_ms, True, measured, unit="ms")
