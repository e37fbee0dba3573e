"""Measures the batches of a sweep one after the other, and rests in between.

A run holds one slot of the device, in turn with those of callers, and is followed by a
rest that is so long that of the time from its start to the next one's, it has taken
`max_share` at most.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shoal_server.profiling.memory import expected_growth
from shoal_server.profiling.plan import LEAST_RUNS, Shape, Sweep
from shoal_server.profiling.profile import Cell, Skipped, make_cell

# A batch whose runs took so long in all is known well enough.
_CELL_S = 1.0
_OUT_OF_TIME = "the time for the sweep was over (profile_max_s)"


@dataclass(frozen=True, slots=True)
class TimedRun:
    """One run."""

    seconds: float
    held_s: float
    """How long it held its slot."""
    memory_bytes: int | None


class Bench(Protocol):
    """Where batches are run."""

    async def run(self, shape: Shape, *, fresh: bool) -> TimedRun:
        """Run one batch when it is its turn.

        Args:
            shape: Of the batch.
            fresh: Give back first what runs have left in memory.

        Raises:
            ShoalError: It can not be run, or not any longer.
        """

    async def room_bytes(self) -> int | None:
        """Memory that a run may take; None: nobody knows."""


@dataclass(slots=True)
class SweepResult:
    """What a sweep has found so far."""

    cells: list[Cell] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    too_much: list[Shape] = field(default_factory=list)
    """Of the skipped ones, those for want of memory."""
    running_s: float = 0.0


class Measuring:
    """One sweep. Belongs to the event loop's thread."""

    def __init__(
        self,
        sweep: Sweep,
        bench: Bench,
        *,
        max_s: float,
        tell: Callable[[Cell | Skipped], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Run nothing yet.

        Args:
            sweep: What to measure.
            bench: Where.
            max_s: No run begins later than so long after the first.
            tell: Called with each batch as soon as it is done with.
            clock: Monotonic seconds.
            sleep: Waits on that clock.
        """
        self._sweep = sweep
        self._bench = bench
        self._max_s = max_s
        self._tell = tell
        self._clock = clock
        self._sleep = sleep
        self._ends_s = 0.0
        self._result = SweepResult()

    async def run(self) -> SweepResult:
        """Measure everything.

        Raises:
            ShoalError: A batch could not be run.
        """
        self._ends_s = self._clock() + self._max_s
        for shape in self._sweep.too_large:
            self._skip(shape, "more tokens than a batch of this sweep may have")
        for shape in self._sweep.shapes:
            if self._out_of_time:
                self._skip(shape, _OUT_OF_TIME)
            else:
                await self._measure(shape)
        return self._result

    @property
    def _out_of_time(self) -> bool:
        return self._clock() >= self._ends_s

    async def _measure(self, shape: Shape) -> None:
        room = await self._bench.room_bytes()
        need = expected_growth(self._result.cells, shape)
        if room is not None and need >= room:
            self._result.too_much.append(shape)
            self._skip(shape, f"may take {need} bytes, and memory has {room} left")
            return
        first = await self._run(shape, fresh=True)
        seconds: list[float] = []
        while not self._out_of_time and not _is_enough(seconds, self._sweep.runs):
            seconds.append((await self._run(shape)).seconds)
        if len(seconds) < LEAST_RUNS:
            self._skip(shape, _OUT_OF_TIME)
            return
        cell = make_cell(shape, seconds, first.memory_bytes)
        self._result.cells.append(cell)
        self._tell(cell)

    async def _run(self, shape: Shape, *, fresh: bool = False) -> TimedRun:
        run = await self._bench.run(shape, fresh=fresh)
        self._result.running_s += run.held_s
        await self._sleep(run.held_s * (1 / self._sweep.max_share - 1))
        return run

    def _skip(self, shape: Shape, reason: str) -> None:
        skipped = Skipped(shape, reason)
        self._result.skipped.append(skipped)
        self._tell(skipped)


def _is_enough(seconds: Sequence[float], runs: int) -> bool:
    return len(seconds) >= runs or (len(seconds) >= LEAST_RUNS and sum(seconds) >= _CELL_S)
