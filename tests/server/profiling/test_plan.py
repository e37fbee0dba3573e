"""Which batches a sweep measures."""

from __future__ import annotations

import math

import pytest

from shoal_server.batching.policy import BatchLimits
from shoal_server.errors import InvalidInput
from shoal_server.profiling.plan import Order, Shape, Sweep, plan_sweep

LIMITS = BatchLimits(max_items=4, max_tokens=64, max_padding_waste=0.1, max_wait_s=0.0)
MAX_TOKENS = 20
MAX_SHARE = 0.2


def plan(order: Order, *, alone: bool = False, limits: BatchLimits = LIMITS) -> Sweep:
    return plan_sweep(order, limits, alone=alone, max_tokens=MAX_TOKENS, max_share=MAX_SHARE)


def sizes(sweep: Sweep) -> set[int]:
    return {shape.items for shape in (*sweep.shapes, *sweep.too_large)}


def lengths(sweep: Sweep) -> set[int]:
    return {shape.length for shape in (*sweep.shapes, *sweep.too_large)}


def test_the_usual_sweep() -> None:
    """Powers of two, up to the model's maximum, and in items once beyond what is let in."""
    sweep = plan(Order())
    assert sizes(sweep) == {1, 2, 4, 8}
    assert lengths(sweep) == {8, 16, 20}
    assert (sweep.runs, sweep.max_share) == (10, MAX_SHARE)


def test_a_limit_that_is_no_power_of_two_is_measured_too() -> None:
    """Twice it is the last."""
    limits = BatchLimits(max_items=3, max_tokens=64, max_padding_waste=0.1, max_wait_s=0.0)
    assert sizes(plan(Order(), limits=limits)) == {1, 2, 4, 6}


def test_texts_that_run_alone_are_measured_alone() -> None:
    """Unless somebody asks for more."""
    assert sizes(plan(Order(), alone=True)) == {1}
    assert sizes(plan(Order(batch_sizes=(2,)), alone=True)) == {2}


def test_large_batches_are_left_out() -> None:
    """Above what the server lets in, or what was asked for; together it is every pair."""
    sweep = plan(Order(batch_sizes=(1, 4, 8), lengths=(8, 16)))
    assert sweep.too_large == (Shape(8, 16),)
    assert len(sweep.shapes) == 5
    sweep = plan(Order(batch_sizes=(1, 4, 8), lengths=(8, 16), max_batch_tokens=16))
    assert sweep.shapes == (Shape(1, 8), Shape(1, 16))


def test_a_text_longer_than_a_batch_may_be_is_measured() -> None:
    """The server runs it alone."""
    limits = BatchLimits(max_items=4, max_tokens=8, max_padding_waste=0.1, max_wait_s=0.0)
    assert Shape(1, MAX_TOKENS) in plan(Order(), limits=limits).shapes


def test_small_batches_come_first() -> None:
    """So that what a sweep knows that ends early is whole up to some size."""
    shapes = plan(Order(batch_sizes=(8, 1, 2, 1), lengths=(16, 4), max_batch_tokens=999)).shapes
    assert [shape.tokens for shape in shapes] == [4, 8, 16, 32, 32, 128]


@pytest.mark.parametrize(
    ("order", "field", "told"),
    [
        (Order(batch_sizes=(1, 0)), "batch_sizes[1]", "from 1 to 1024"),
        (Order(batch_sizes=(1025,)), "batch_sizes[0]", "1025"),
        (Order(batch_sizes=tuple(range(1, 18))), "batch_sizes", "17 different ones, at most 16"),
        (Order(lengths=(21,)), "lengths[0]", "21, from 1 to 20"),
        (Order(runs=2), "runs", "2, from 3 to 100"),
        (Order(runs=101), "runs", "101"),
        (Order(max_share=0.3), "max_share", "at most 0.2"),
        (Order(max_share=-0.1), "max_share", "-0.1"),
        (Order(max_share=math.nan), "max_share", "nan"),
        (Order(lengths=(8,), max_batch_tokens=7), "max_batch_tokens", "the smallest"),
    ],
)
def test_what_makes_no_sense_is_refused(order: Order, field: str, told: str) -> None:
    """With the field, the value and the limit."""
    with pytest.raises(InvalidInput) as raised:
        plan(order)
    assert raised.value.field == field
    assert told in raised.value.message
