"""The policy as a pure function: items, time, limits and cost in; a decision out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.batching.cost import RunCost
from shoal_server.batching.load import Load
from shoal_server.batching.policy import (
    HORIZON,
    BatchLimits,
    Decision,
    Layout,
    decide,
)
from shoal_server.batching.queue import Item, WaitingItems
from shoal_server.batching.submission import Submission
from shoal_server.core import Priority

LIMITS = BatchLimits(max_items=8, max_tokens=512, max_padding_waste=0.2, max_wait_s=0.01)
COST = RunCost(fixed_s=1e-3, per_token_s=1e-4)
BUSY = Load(last_arrival_s=0.0, next_s=1e-4, items=8.0, tokens=80.0)
QUIET = Load(last_arrival_s=0.0, next_s=math.inf)
ONE = Layout(free_slots=1, slots=1)
TWO = Layout(free_slots=2, slots=2)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def wait_with(
    loop: asyncio.AbstractEventLoop, *requests: tuple[float, list[int]], priority: int = 2
) -> WaitingItems:
    waiting = WaitingItems()
    for arrived_s, lengths in requests:
        submission = Submission(
            [[1] * length for length in lengths],
            priority=Priority(priority),
            want_pooled=False,
            deadline_s=math.inf,
            now_s=arrived_s,
            rank_s=arrived_s,
            loop=loop,
            leave=lambda _: None,
        )
        for item in submission.items:
            waiting.add(item)
    return waiting


def lengths(decision: Decision) -> list[int]:
    return [item.length for item in decision.items]


def test_nothing_waits(loop: asyncio.AbstractEventLoop) -> None:
    """With an empty queue there is nothing to run and nothing to wait for."""
    assert decide(WaitingItems(), 0.0, LIMITS, COST, BUSY, ONE) == Decision()


def test_a_lone_item_leaves_at_once_when_nobody_else_calls(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The window costs a lone request nothing."""
    waiting = wait_with(loop, (0.0, [5]))
    assert lengths(decide(waiting, 0.0, LIMITS, COST, QUIET, ONE)) == [5]


def test_a_lone_item_waits_for_mates_while_others_keep_coming(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Waiting is bounded by what it can save: a run's fixed cost after the last arrival."""
    waiting = wait_with(loop, (0.0, [5]))
    decision = decide(waiting, 0.0, LIMITS, COST, BUSY, ONE)
    assert decision.items == ()
    assert decision.wait_until_s == pytest.approx(1e-3)


def test_the_window_is_anchored_at_the_oldest_item(loop: asyncio.AbstractEventLoop) -> None:
    """Later arrivals do not push the moment at which the oldest item leaves."""
    waiting = wait_with(loop, (0.0, [5]), (0.0095, [5]))
    still = replace(BUSY, last_arrival_s=0.0095)
    assert decide(waiting, 0.0096, LIMITS, COST, still, ONE).wait_until_s == pytest.approx(0.01)
    assert lengths(decide(waiting, 0.01, LIMITS, COST, still, ONE)) == [5, 5]


def test_a_full_batch_does_not_wait(loop: asyncio.AbstractEventLoop) -> None:
    """A batch at its item cap leaves however fast others come."""
    waiting = wait_with(loop, (0.0, [5] * 8))
    assert len(decide(waiting, 0.0, LIMITS, COST, BUSY, ONE).items) == 8


def test_a_batch_that_gains_nothing_from_mates_does_not_wait(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """A long item, whose own cost dwarfs the fixed one, leaves alone at once."""
    waiting = wait_with(loop, (0.0, [400]))
    assert lengths(decide(waiting, 0.0, LIMITS, COST, BUSY, ONE)) == [400]


def test_free_slots_share_a_large_request(loop: asyncio.AbstractEventLoop) -> None:
    """Work for one batch is spread over the slots that would idle."""
    waiting = wait_with(loop, (0.0, [5] * 8))
    assert len(decide(waiting, 0.0, LIMITS, COST, QUIET, TWO).items) == 4


def test_an_item_above_every_budget_runs_alone(loop: asyncio.AbstractEventLoop) -> None:
    """The oldest item is admitted whatever it costs, so it can not starve."""
    waiting = wait_with(loop, (0.0, [4000]), (0.0, [5]))
    assert lengths(decide(waiting, 0.0, LIMITS, COST, BUSY, ONE)) == [4000]


def test_mates_are_of_like_length(loop: asyncio.AbstractEventLoop) -> None:
    """The oldest item gets the mates nearest to it, not the ones that came next."""
    waiting = wait_with(loop, (0.0, [100]), (0.1, [6, 7]), (0.2, [101, 99]))
    decision = decide(waiting, 1.0, LIMITS, COST, QUIET, ONE)
    assert sorted(lengths(decision)) == [99, 100, 101]


ITEMS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(
    ITEMS,
    st.integers(1, 32),
    st.integers(16, 2048),
    st.floats(0, 0.9),
    st.integers(1, 4),
    st.floats(1e-6, 1e-2),
)
def test_every_batch_keeps_its_limits_and_nothing_starves(
    sizes: list[int], max_items: int, max_tokens: int, waste: float, slots: int, fixed_s: float
) -> None:
    """Whatever waits: the oldest is in, the limits hold, and the queue empties."""
    loop = asyncio.new_event_loop()
    limits = BatchLimits(max_items, max_tokens, waste, max_wait_s=0.01)
    cost = RunCost(fixed_s, 1e-4)
    waiting = wait_with(loop, *((float(at), [size]) for at, size in enumerate(sizes)))
    rounds = 0
    while len(waiting):
        (oldest,) = waiting.oldest(1)
        decision = decide(waiting, 1e9, limits, cost, BUSY, Layout(slots, slots))
        items = decision.items
        assert oldest in items
        padded = max(lengths(decision)) * len(items)
        assert len(items) <= max_items
        assert len(items) == 1 or padded <= max_tokens
        assert padded - sum(lengths(decision)) <= waste * padded + 1e-9
        assert len(set(items)) == len(items)
        for item in items:
            assert waiting.remove(item)
        waiting.check_integrity()
        rounds += 1
    assert rounds <= len(sizes)
    loop.close()


def fifo_seconds(sizes: list[int], cost: RunCost, limits: BatchLimits) -> float:
    """Time of running items as they came, in batches padded to their longest."""
    total = 0.0
    for at in range(0, len(sizes), limits.max_items):
        batch = sizes[at : at + limits.max_items]
        total += cost.seconds(len(batch), sum(batch), max(batch))
    return total


def seconds(items: Sequence[Item], cost: RunCost) -> float:
    sizes = [item.length for item in items]
    return cost.seconds(len(sizes), sum(sizes), max(sizes))


@given(
    st.lists(st.integers(1, 256), min_size=1, max_size=HORIZON),
    st.floats(3e-5, 1e-2),
    st.sampled_from([0.0, 1e-8, 1e-6]),
    st.booleans(),
)
def test_never_worse_than_first_come_first_served_with_padding(
    sizes: list[int], fixed_s: float, per_square_s: float, padding_free: bool
) -> None:
    """Under its own cost model, emptying the queue costs no more than plain batching.

    The cap is small enough that "large enough" never cuts a batch that FIFO fills.
    """
    loop = asyncio.new_event_loop()
    cost = RunCost(fixed_s, 1e-6, per_square_s, padding_free)
    limits = BatchLimits(4, 1 << 20, 0.99, max_wait_s=0.0)
    waiting = wait_with(loop, (0.0, sizes))
    total = 0.0
    while len(waiting):
        items = decide(waiting, 1e9, limits, cost, QUIET, ONE).items
        total += seconds(items, cost)
        for item in items:
            waiting.remove(item)
    assert total <= fifo_seconds(sizes, cost, limits) + 1e-9
    loop.close()


def test_a_lone_long_item_takes_the_whole_device(loop: asyncio.AbstractEventLoop) -> None:
    """With every slot free and nothing to share them with, one run gets all threads."""
    layout = Layout(free_slots=2, slots=2, wide_speedup=1.8)
    assert decide(wait_with(loop, (0.0, [250])), 0.0, LIMITS, COST, QUIET, layout).wide
    busy = Layout(free_slots=1, slots=2, wide_speedup=1.8)
    assert not decide(wait_with(loop, (0.0, [250])), 0.0, LIMITS, COST, QUIET, busy).wide
    two = wait_with(loop, (0.0, [250, 250]))
    assert not decide(two, 0.0, LIMITS, COST, QUIET, layout).wide


def test_a_large_request_starts_with_its_longest_items(loop: asyncio.AbstractEventLoop) -> None:
    """Of items that came together the longest go first, so that slots end together."""
    waiting = wait_with(loop, (0.0, [10, 200, 50]))
    assert lengths(decide(waiting, 0.0, LIMITS, COST, QUIET, ONE)) == [200]


def test_texts_of_unlike_length_run_together_where_padding_is_free(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """What a padded graph runs in two batches is one for a graph that is free of padding."""
    waiting = wait_with(loop, (0.0, [20]), (0.1, [6, 7]))
    padded = RunCost(fixed_s=1e-3, per_token_s=1e-4)
    assert lengths(decide(waiting, 1.0, LIMITS, padded, QUIET, ONE)) == [20]
    free = replace(padded, padding_free=True)
    assert lengths(decide(waiting, 1.0, LIMITS, free, QUIET, ONE)) == [6, 7, 20]


def test_attention_keeps_texts_of_unlike_length_apart(loop: asyncio.AbstractEventLoop) -> None:
    """Without padding too, a short text has its own run when a long row costs more than that."""
    waiting = wait_with(loop, (0.0, [100]), (0.1, [6, 7]))
    steep = RunCost(fixed_s=1e-3, per_token_s=1e-4, per_square_s=2e-7, padding_free=True)
    assert lengths(decide(waiting, 1.0, LIMITS, steep, QUIET, ONE)) == [100]


def test_a_batch_waits_for_those_who_come_back(loop: asyncio.AbstractEventLoop) -> None:
    """Of eight callers and two slots, a batch is complete when it has four of them."""
    load = Load(last_arrival_s=0.0, next_s=1e-4, items=8.0, tokens=80.0)
    three = wait_with(loop, *((0.0, [8]) for _ in range(3)))
    assert decide(three, 0.0, LIMITS, COST, load, TWO).wait_until_s is not None
    four = wait_with(loop, *((0.0, [8]) for _ in range(4)))
    assert len(decide(four, 0.0, LIMITS, COST, load, TWO).items) == 4


def test_a_batch_leaves_the_other_slot_its_share(loop: asyncio.AbstractEventLoop) -> None:
    """Six of eight callers wait: the one free slot takes half of the eight, not all six."""
    load = Load(last_arrival_s=0.0, next_s=1e-4, items=8.0, tokens=80.0)
    waiting = wait_with(loop, *((0.0, [10]) for _ in range(6)))
    layout = Layout(free_slots=1, slots=2)
    assert len(decide(waiting, 0.0, LIMITS, COST, load, layout).items) == 4


def test_a_batch_may_be_as_large_as_its_limit(loop: asyncio.AbstractEventLoop) -> None:
    """A GPU's limit of hundreds is not cut to what a decision usually looks at."""
    waiting = wait_with(loop, *((0.0, [8]) for _ in range(500)))
    limits = BatchLimits(max_items=128, max_tokens=1 << 20, max_padding_waste=0.2, max_wait_s=0.0)
    gpu = RunCost(fixed_s=5e-3, per_token_s=1e-7)
    assert len(decide(waiting, 1.0, limits, gpu, QUIET, ONE).items) == 128
