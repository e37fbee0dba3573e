"""A sweep on a bench and a clock that a test holds."""

from __future__ import annotations

import pytest

from shoal_server.errors import FailedPrecondition
from shoal_server.profiling.plan import Shape, Sweep
from shoal_server.profiling.profile import Cell, Skipped
from shoal_server.profiling.sweep import Measuring, SweepResult, TimedRun

RUNS = 5
SHAPES = (Shape(1, 10), Shape(2, 10), Shape(4, 10))


class FakeBench:
    """Runs take a millisecond a token, and a byte a token.

    Attributes:
        now_s: The clock; moved by runs and rests only.
        runs: Every run: its shape, whether it was the first, when it began.
        rests_s: Every rest.
        room: What is left of memory.
        slow: How many times longer runs take.
        leaves_after: Runs until the session is gone.
    """

    def __init__(self) -> None:
        self.now_s = 50.0
        self.runs: list[tuple[Shape, bool, float]] = []
        self.rests_s: list[float] = []
        self.room: int | None = None
        self.slow = 1.0
        self.leaves_after = 10_000

    async def run(self, shape: Shape, *, fresh: bool) -> TimedRun:
        if len(self.runs) == self.leaves_after:
            raise FailedPrecondition("gone")
        self.runs.append((shape, fresh, self.now_s))
        seconds = self.slow * shape.tokens * 0.001
        self.now_s += seconds
        return TimedRun(seconds, seconds, shape.tokens if fresh else None)

    async def room_bytes(self) -> int | None:
        return self.room

    async def sleep(self, seconds: float) -> None:
        self.rests_s.append(seconds)
        self.now_s += seconds


@pytest.fixture
def bench() -> FakeBench:
    return FakeBench()


async def measured(
    bench: FakeBench, sweep: Sweep, max_s: float = 1e9
) -> tuple[SweepResult, list[Cell | Skipped]]:
    told: list[Cell | Skipped] = []
    measuring = Measuring(
        sweep,
        bench,
        max_s=max_s,
        tell=told.append,
        clock=lambda: bench.now_s,
        sleep=bench.sleep,
    )
    return await measuring.run(), told


def sweep_of(*shapes: Shape, share: float = 0.2, too_large: tuple[Shape, ...] = ()) -> Sweep:
    return Sweep(shapes or SHAPES, too_large, runs=RUNS, max_share=share)


async def test_every_batch_is_measured_and_told(bench: FakeBench) -> None:
    """In order; each after a run that does not count, but tells of memory."""
    result, told = await measured(bench, sweep_of())
    assert told == result.cells
    assert [cell.shape for cell in result.cells] == list(SHAPES)
    for cell in result.cells:
        assert (cell.runs, cell.memory_bytes) == (RUNS, cell.shape.tokens)
        assert cell.p50_s == pytest.approx(cell.shape.tokens * 0.001)
    fresh = [(shape, fresh) for shape, fresh, _ in bench.runs]
    assert fresh == [(shape, not run) for shape in SHAPES for run in range(RUNS + 1)]


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
async def test_the_sweep_keeps_to_its_share(bench: FakeBench, share: float) -> None:
    """Of all the time from any run's beginning to a later one's."""
    result, _ = await measured(bench, sweep_of(share=share))
    ends = [*(at for _, _, at in bench.runs[1:]), bench.now_s]
    took = [shape.tokens * 0.001 for shape, _, _ in bench.runs]
    for first in range(len(bench.runs)):
        for last in range(first, len(bench.runs)):
            passed_s = ends[last] - bench.runs[first][2]
            assert sum(took[first : last + 1]) == pytest.approx(share * passed_s)
    assert result.running_s == pytest.approx(sum(took))


async def test_long_runs_are_fewer(bench: FakeBench) -> None:
    """Three are enough where they take a second together."""
    bench.slow = 40.0
    result, _ = await measured(bench, sweep_of())
    assert [cell.runs for cell in result.cells] == [3, 3, 3]


async def test_what_there_is_no_time_for_is_left_out(bench: FakeBench) -> None:
    """Also a batch with too few runs by then; what was measured stays."""
    # Six runs of 10 ms with their rests take 0.3 s, of 20 ms 0.6 s.
    result, told = await measured(bench, sweep_of(), max_s=0.35)
    assert [cell.shape for cell in result.cells] == [SHAPES[0]]
    assert [each.shape for each in result.skipped] == [SHAPES[1], SHAPES[2]]
    assert all("profile_max_s" in each.reason for each in result.skipped)
    assert len(told) == 3


async def test_a_batch_with_enough_runs_counts_though_the_time_is_over(bench: FakeBench) -> None:
    """With those that it had."""
    result, _ = await measured(bench, sweep_of(SHAPES[0]), max_s=0.199)
    assert [cell.runs for cell in result.cells] == [3]


async def test_what_may_not_fit_into_memory_is_not_run(bench: FakeBench) -> None:
    """Judged by the batch before it."""
    bench.room = 40
    result, _ = await measured(bench, sweep_of())
    assert [cell.shape for cell in result.cells] == [SHAPES[0], SHAPES[1]]
    assert result.too_much == [SHAPES[2]]
    assert "40" in result.skipped[0].reason
    assert SHAPES[2] not in [shape for shape, _, _ in bench.runs]


async def test_nothing_is_run_where_there_is_no_room_at_all(bench: FakeBench) -> None:
    """Not even the first."""
    bench.room = 0
    result, _ = await measured(bench, sweep_of())
    assert (result.cells, bench.runs) == ([], [])


async def test_batches_that_are_too_large_are_told(bench: FakeBench) -> None:
    """So that whoever counts comes to the end."""
    _, told = await measured(bench, sweep_of(SHAPES[0], too_large=(Shape(99, 10),)))
    assert [each.shape for each in told] == [Shape(99, 10), SHAPES[0]]


async def test_a_session_that_leaves_ends_the_sweep(bench: FakeBench) -> None:
    """With the bench's reason."""
    bench.leaves_after = 8
    with pytest.raises(FailedPrecondition, match="gone"):
        await measured(bench, sweep_of())
