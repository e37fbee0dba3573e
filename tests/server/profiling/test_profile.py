"""What the runs of one batch say."""

from __future__ import annotations

from shoal_server.profiling.plan import Shape
from shoal_server.profiling.profile import make_cell


def test_median_and_95th_percentile() -> None:
    """Of twenty runs the second longest is the 95th percentile, of fewer the longest."""
    cell = make_cell(Shape(2, 5), [float(second) for second in range(20, 0, -1)], None)
    assert (cell.runs, cell.least_s, cell.p50_s, cell.p95_s) == (20, 1.0, 10.5, 19.0)
    assert make_cell(Shape(2, 5), [3.0, 1.0, 2.0], None).p95_s == 3.0


def test_throughput_is_that_of_the_median() -> None:
    """Items and tokens a second."""
    cell = make_cell(Shape(4, 5), [0.5, 0.1, 9.0], 7)
    assert (cell.items_per_s, cell.tokens_per_s, cell.memory_bytes) == (8.0, 40.0, 7)


def test_noise_is_how_far_two_halves_of_the_runs_differ() -> None:
    """By their fastest; of one run nothing is known of it."""
    assert make_cell(Shape(1, 1), [2.0, 2.5, 9.0, 3.0], None).noise == 0.25
    assert make_cell(Shape(1, 1), [1.0, 7.0, 9.0, 1.0], None).noise == 0
    assert make_cell(Shape(1, 1), [1.0], None).noise == 0
