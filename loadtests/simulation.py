"""The batching policy in a closed loop, on a machine that is only computed.

    python -m loadtests.simulation
    python -m loadtests.simulation --fixed-ms 1 --padded

Two cores, shared evenly by whatever wants to run: a run on each slot, the event loop and
the load generator (one thread each, jobs in order). What each step costs is given, so
that two policies differ by nothing but their decisions, and a change can be judged while
the machine is busy with something else. What the real server makes of it, `make bench`
says.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from shoal_server.batching.cost import RunCost
from shoal_server.batching.load import LoadMeter
from shoal_server.batching.policy import BatchLimits, Layout, decide
from shoal_server.batching.queue import Item, WaitingItems
from shoal_server.batching.submission import Submission
from shoal_server.core import Priority

_CORES = 2
_LIMITS = BatchLimits(max_items=32, max_tokens=8192, max_padding_waste=0.1, max_wait_s=0.005)
# Event loop timers of uvloop count whole milliseconds.
_TIMER_S = 1e-3
# Callers × texts a request.
_ROWS = (
    *(("short", callers, 1) for callers in (1, 2, 4, 8, 16, 64)),
    *(("short", callers, 32) for callers in (1, 8)),
    *(("mixed", callers, 1) for callers in (8, 64)),
    *(("mixed", callers, 32) for callers in (1, 8)),
)
_DONE_S = 1e-12

Call = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Steps:
    """CPU time of what is not a run; measured, see docs/performance.md."""

    receive_s: float = 250e-6
    receive_text_s: float = 30e-6
    finish_s: float = 150e-6
    answer_s: float = 250e-6
    answer_text_s: float = 5e-6
    client_s: float = 40e-6


@dataclass(slots=True)
class _Job:
    left_s: float
    done: Call


class Machine:
    """Runs jobs on its cores, evenly shared, and keeps the time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.cpu_s = 0.0
        self._jobs: list[_Job] = []
        self._timers: list[tuple[float, int, Call]] = []
        self._order = itertools.count()

    def run(self, seconds: float, done: Call) -> None:
        """Start a job of so much CPU time."""
        self._jobs.append(_Job(seconds, done))

    def at(self, when_s: float, call: Call) -> None:
        """Set a timer."""
        heapq.heappush(self._timers, (when_s, next(self._order), call))

    def advance(self, until_s: float) -> None:
        """Let time pass."""
        while self.now_s < until_s:
            speed = min(1.0, _CORES / len(self._jobs)) if self._jobs else 0.0
            self._pass(self._next_event_s(speed, until_s), speed)
            ended = [job for job in self._jobs if job.left_s <= _DONE_S]
            self._jobs = [job for job in self._jobs if job.left_s > _DONE_S]
            for job in ended:
                job.done()
            while self._timers and self._timers[0][0] <= self.now_s:
                heapq.heappop(self._timers)[2]()

    def _next_event_s(self, speed: float, until_s: float) -> float:
        events_s = [until_s]
        if self._jobs:
            events_s.append(self.now_s + min(job.left_s for job in self._jobs) / speed)
        if self._timers:
            events_s.append(max(self.now_s, self._timers[0][0]))
        return min(events_s)

    def _pass(self, to_s: float, speed: float) -> None:
        done_s = (to_s - self.now_s) * speed
        self.now_s = to_s
        self.cpu_s += done_s * len(self._jobs)
        for job in self._jobs:
            job.left_s -= done_s


class Thread:
    """Jobs of one thread, one after the other."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._jobs: deque[tuple[float, Call]] = deque()
        self._busy = False

    def do(self, seconds: float, done: Call) -> None:
        """Do a job after those that were given before."""
        self._jobs.append((seconds, done))
        self._begin()

    def _begin(self) -> None:
        if self._busy or not self._jobs:
            return
        self._busy = True
        seconds, done = self._jobs.popleft()
        self._machine.run(seconds, partial(self._end, done))

    def _end(self, done: Call) -> None:
        self._busy = False
        done()
        self._begin()


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    batches: list[int] = field(default_factory=list)
    answered: int = 0
    latencies_s: list[float] = field(default_factory=list)


class Simulation:
    """Callers in a closed loop, the server between them and the slots."""

    def __init__(
        self, callers: int, texts: int, draw_length: Callable[[], int], cost: RunCost
    ) -> None:
        self.machine = Machine()
        self.outcome = Outcome()
        self._loop, self._client = Thread(self.machine), Thread(self.machine)
        self._steps = Steps()
        self._texts = texts
        self._draw_length = draw_length
        self._cost = cost
        self._waiting = WaitingItems()
        self._meter = LoadMeter()
        self._free_slots = _CORES
        self._timer = 0
        # By caller: items not answered yet, and when the request was sent.
        self._left: dict[int, int] = {}
        self._sent_s: dict[int, float] = {}
        for caller in range(callers):
            self._send(caller)

    def _send(self, caller: int) -> None:
        self._client.do(self._steps.client_s, partial(self._sent, caller))

    def _sent(self, caller: int) -> None:
        self._sent_s[caller] = self.machine.now_s
        seconds = self._steps.receive_s + self._steps.receive_text_s * (self._texts - 1)
        self._loop.do(seconds, partial(self._received, caller))

    def _received(self, caller: int) -> None:
        now_s = self.machine.now_s
        self._left[caller] = self._texts
        # Nothing but the caller's number is wanted of the request.
        request = cast(Submission, caller)
        items = [
            Item([0] * self._draw_length(), 0, request, now_s, now_s, Priority.NORMAL)
            for _ in range(self._texts)
        ]
        for item in items:
            self._waiting.add(item)
        self._meter.arrived(now_s, len(items), sum(item.length for item in items))
        self._pump()

    def _pump(self) -> None:
        self._timer += 1
        while len(self._waiting) and self._free_slots:
            decision = decide(
                self._waiting,
                self.machine.now_s,
                _LIMITS,
                self._cost,
                self._meter.load,
                Layout(self._free_slots, _CORES),
            )
            if decision.items:
                self._start(decision.items)
                continue
            if decision.wait_until_s is not None:
                when_s = max(decision.wait_until_s, self.machine.now_s + _TIMER_S)
                self.machine.at(when_s, partial(self._timed_out, self._timer))
            return

    def _timed_out(self, timer: int) -> None:
        if timer == self._timer:
            self._pump()

    def _start(self, items: tuple[Item, ...]) -> None:
        for item in items:
            self._waiting.remove(item)
        self._free_slots -= 1
        self._meter.started()
        self.outcome.batches.append(len(items))
        lengths = [item.length for item in items]
        seconds = self._cost.seconds(len(items), sum(lengths), max(lengths))
        finish = partial(self._finish, items)
        self.machine.run(seconds, partial(self._loop.do, self._steps.finish_s, finish))

    def _finish(self, items: tuple[Item, ...]) -> None:
        self._free_slots += 1
        self._meter.left(self.machine.now_s, len(items), sum(item.length for item in items))
        self._pump()
        seconds = self._steps.answer_s + self._steps.answer_text_s * (self._texts - 1)
        for item in items:
            caller = cast(int, item.submission)
            self._left[caller] -= 1
            if not self._left[caller]:
                self._loop.do(seconds, partial(self._answered, caller))

    def _answered(self, caller: int) -> None:
        self._client.do(self._steps.client_s, partial(self._got_answer, caller))

    def _got_answer(self, caller: int) -> None:
        self.outcome.answered += self._texts
        self.outcome.latencies_s.append(self.machine.now_s - self._sent_s[caller])
        self._send(caller)


def lengths_of(workload: str) -> Callable[[], int]:
    """Draws lengths that are distributed as those of `short` or `mixed`."""
    draw = random.Random(7)
    if workload == "short":
        return lambda: draw.randrange(6, 21)
    return lambda: int(6 * (257 / 6) ** draw.random())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="simulated, for each row")
    parser.add_argument("--fixed-ms", type=float, default=3.2, help="of a run")
    parser.add_argument("--token-us", type=float, default=210.0, help="of a token")
    parser.add_argument("--square-us", type=float, default=0.35, help="of attention")
    parser.add_argument("--padded", action="store_true", help="padding is computed")
    options = parser.parse_args()
    cost = RunCost(
        options.fixed_ms / 1e3,
        options.token_us / 1e6,
        options.square_us / 1e6,
        padding_free=not options.padded,
    )
    if options.seconds < 1:
        parser.error("--seconds has to be 1 or more")
    print(f"{'callers × texts':16} {'texts/s':>8} {'CPU µs':>8} {'batch':>6} {'p50 ms':>8}")
    for workload, callers, texts in _ROWS:
        simulation = Simulation(callers, texts, lengths_of(workload), cost)
        simulation.machine.advance(options.seconds)
        outcome = simulation.outcome
        print(
            f"{workload} {callers} × {texts}".ljust(16),
            f"{outcome.answered / options.seconds:8.1f}",
            f"{simulation.machine.cpu_s / outcome.answered * 1e6:8.0f}",
            f"{statistics.fmean(outcome.batches):6.2f}",
            f"{statistics.median(outcome.latencies_s) * 1e3:8.1f}",
        )


if __name__ == "__main__":
    main()
