"""The arithmetic of measuring: pure functions over what a run recorded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtests.http2 import OK
from loadtests.load import LoadRun

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of latencies, in milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: Float64) -> Percentiles | None:
        """Linear between the two nearest values; None when there are none."""
        if not len(seconds):
            return None
        return cls(*(float(each) * 1000 for each in np.percentile(seconds, (50, 95, 99))))


def requests_per_s(run: LoadRun) -> float:
    """Requests answered well, a second of the window.

    A request that began before the window or ended after it counts for the part of
    its time that lies inside. Counting whole answers would be off by the answers of
    one batch, which is much where a window has a dozen large requests.
    """
    began_s, ended_s = run.window_s
    well = run.statuses == OK
    asked, answered = run.asked_s[well], run.ended_s[well]
    inside = np.minimum(answered, ended_s) - np.maximum(asked, began_s)
    took = np.maximum(answered - asked, 1e-9)
    return float(np.clip(inside / took, 0, 1).sum()) / (ended_s - began_s)


def goodput_per_s(run: LoadRun) -> float:
    """Requests answered well within the window, a second: what an open loop is judged by."""
    began_s, ended_s = run.window_s
    inside = (run.statuses == OK) & (run.ended_s >= began_s) & (run.ended_s < ended_s)
    return float(inside.sum()) / (ended_s - began_s)


def answered_latencies_s(run: LoadRun) -> Float64:
    """Of a closed loop: what was answered well in the window."""
    began_s, ended_s = run.window_s
    inside = (run.statuses == OK) & (run.ended_s >= began_s) & (run.ended_s < ended_s)
    latencies: Float64 = run.ended_s[inside] - run.asked_s[inside]
    return latencies


def scheduled_latencies_s(run: LoadRun, *, well: bool = True) -> Float64:
    """Of an open loop: what was scheduled in the window, counted from then.

    Args:
        run: With its answers.
        well: Those answered well; else those answered with an error.
    """
    began_s, ended_s = run.window_s
    inside = (run.asked_s >= began_s) & (run.asked_s < ended_s) & np.isfinite(run.ended_s)
    chosen = inside & ((run.statuses == OK) == well)
    latencies: Float64 = run.ended_s[chosen] - run.asked_s[chosen]
    return latencies


def count_statuses(run: LoadRun) -> dict[int, int]:
    """How the requests asked for in the window ended, by gRPC code."""
    began_s, ended_s = run.window_s
    inside = (run.asked_s >= began_s) & (run.asked_s < ended_s)
    return dict(Counter(run.statuses[inside].tolist()))
