"""The runs after loading: which there are, in which order, and when they end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal_server.batching.warm_up import warm_up, warm_up_shapes
from shoal_server.inference.buckets import Buckets, Shape

from .fakes import FakeBackend

SHAPES = Buckets(64).all(max_items=8, max_tokens=512)


def seen(backend: FakeBackend) -> list[Shape]:
    return [(len(batch), len(batch[0])) for batch in backend.batches]


def stopped_after(calls: int) -> Callable[[], float]:
    """A clock on which time is up after so many looks at it."""
    looks = iter([0.0] * calls)
    return lambda: next(looks, 1e9)


def warmed(runs_at_once: int = 1, looks: int = 1000) -> FakeBackend:
    backend = FakeBackend()
    warm_up_shapes(backend, 3, SHAPES, runs_at_once=runs_at_once, clock=stopped_after(looks))
    return backend


def test_on_the_cpu_few_runs_do() -> None:
    """Nothing longer than the model takes, of a valid token."""
    backend = FakeBackend()
    cost = warm_up(backend, 5, max_tokens=12).cost
    assert max(length for _, length in seen(backend)) == 12
    assert {token for batch in backend.batches for ids in batch for token in ids} == {5}
    assert cost.fixed_s > 0


@pytest.mark.parametrize("runs_at_once", [1, 3])
def test_with_time_enough_every_run_meets_every_shape(runs_at_once: int) -> None:
    """Each of those that go on at once has buffers of its own to make."""
    runs = seen(warmed(runs_at_once))
    assert all(runs.count(shape) >= runs_at_once for shape in SHAPES)


def test_the_largest_comes_first() -> None:
    """So that memory grows once."""
    assert seen(warmed())[0] == max(SHAPES, key=lambda shape: shape[0] * shape[1])


def test_time_bounds_it() -> None:
    """What is met by then is spread over all shapes, and costs are known all the same."""
    looks = len(SHAPES) // 4
    runs = seen(warmed(looks=looks))
    assert len(runs) < len(SHAPES)
    sizes = sorted(items * length for items, length in SHAPES)
    met = {items * length for items, length in runs[:looks]}
    for quarter in range(4):
        part = sizes[quarter * len(sizes) // 4 : (quarter + 1) * len(sizes) // 4]
        assert met & set(part)


def test_costs_come_from_runs_that_were_warm() -> None:
    """The first of a shape pays for more than a run."""

    class Cooling(FakeBackend):
        """Its first run of a shape takes a second."""

        def run(self, sequences, pooled, *, wide=False):  # type: ignore[no-untyped-def]
            first = (len(sequences), len(sequences[0])) not in seen(self)
            result = super().run(sequences, pooled, wide=wide)
            return type(result)(result.rows, 1.0 if first else 0.001, result.computed_tokens)

    backend = Cooling()
    cost = warm_up_shapes(backend, 3, SHAPES, runs_at_once=1).cost
    assert cost.seconds(8, 512, 64) < 0.1


def test_a_model_of_one_shape_has_a_cost() -> None:
    """However little it takes."""
    cost = warm_up_shapes(FakeBackend(), 3, [(1, 8)], runs_at_once=2).cost
    assert 0 < cost.seconds(1, 8, 8) < 1
