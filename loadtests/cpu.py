"""CPU time: of processes, and of everybody else on the machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class CpuReading:
    """CPU seconds so far."""

    at_s: float
    of_each: tuple[float, ...]
    """By process, in the order they were given."""
    machine_s: float
    """Of all CPUs that were busy, what the hypervisor took for others included."""


class CpuClock:
    """Reads the CPU time of some processes, their children included."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = []
        for pid in pids:
            process = psutil.Process(pid)
            self._processes.append([process, *process.children(recursive=True)])

    def read(self) -> CpuReading:
        """Now."""
        return CpuReading(
            time.perf_counter(),
            tuple(sum(sum(p.cpu_times()[:4]) for p in family) for family in self._processes),
            _busy_s(),
        )


def others_share(start: CpuReading, end: CpuReading) -> float:
    """Of the machine's CPU time, what other processes took: noise in every figure."""
    ours_s = sum(end.of_each) - sum(start.of_each)
    busy_s = end.machine_s - start.machine_s
    return max(0.0, (busy_s - ours_s) / ((end.at_s - start.at_s) * (psutil.cpu_count() or 1)))


def _busy_s() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts a guest's time in user and nice already.
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - idle - guest)
