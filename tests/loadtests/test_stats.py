"""The arithmetic of measuring."""

from __future__ import annotations

import numpy as np
import pytest

from loadtests import stats
from loadtests.http2 import OK, RESOURCE_EXHAUSTED
from loadtests.load import UNANSWERED, LoadRun


def run_of(*requests: tuple[float, float, int], window: tuple[float, float]) -> LoadRun:
    """A run of requests (asked, ended, status)."""
    asked, ended, statuses = zip(*requests, strict=True)
    return LoadRun(
        asked_s=np.array(asked, dtype=float),
        ended_s=np.array(ended, dtype=float),
        statuses=np.array(statuses, dtype=np.int64),
        lateness_s=np.zeros(0),
        window_s=window,
        server_cpu_s=0.0,
        generator_cpu_s=0.0,
        others_share=0.0,
        answers={},
    )


def test_a_request_across_the_edge_counts_for_its_part_inside() -> None:
    """Half of the first, all of the second, a quarter of the third: 1.75 in 2 s."""
    run = run_of((9, 11, OK), (10, 11, OK), (11.5, 13.5, OK), window=(10, 12))
    assert stats.requests_per_s(run) == pytest.approx(1.75 / 2)


def test_steady_callers_give_the_same_rate_wherever_the_window_lies() -> None:
    """Large requests of 8 callers: counting whole answers would be off by one of twelve."""
    requests = [
        (begin + phase, begin + phase + 2, OK)
        for phase in np.arange(0, 2, 0.25)
        for begin in range(0, 40, 2)
    ]
    for shift in (0.0, 0.1, 0.77):
        run = run_of(*requests, window=(10 + shift, 13 + shift))
        assert stats.requests_per_s(run) == pytest.approx(4.0)


def test_failures_are_no_throughput() -> None:
    """Neither refused nor unanswered requests count as done."""
    run = run_of(
        (0, 1, OK), (0, 1, RESOURCE_EXHAUSTED), (0, float("nan"), UNANSWERED), window=(0, 2)
    )
    assert stats.requests_per_s(run) == pytest.approx(0.5)
    assert stats.goodput_per_s(run) == pytest.approx(0.5)
    assert stats.count_statuses(run) == {OK: 1, RESOURCE_EXHAUSTED: 1, UNANSWERED: 1}


def test_open_loop_latency_counts_from_the_schedule() -> None:
    """What was scheduled in the window counts, though it was answered after it."""
    run = run_of((1, 1.5, OK), (5, 9, OK), (5, 5.001, RESOURCE_EXHAUSTED), window=(4, 6))
    assert stats.scheduled_latencies_s(run).tolist() == [4]
    assert stats.scheduled_latencies_s(run, well=False).tolist() == pytest.approx([0.001])
    assert stats.answered_latencies_s(run).tolist() == []


def test_percentiles_are_in_milliseconds() -> None:
    """Of 0 to 100 s, the 95th percentile is 95 s."""
    found = stats.Percentiles.of(np.arange(101.0))
    assert found == stats.Percentiles(50_000, 95_000, 99_000)


def test_no_latencies_have_no_percentiles() -> None:
    """Nothing answered is not the same as answered at once."""
    assert stats.Percentiles.of(np.zeros(0)) is None
