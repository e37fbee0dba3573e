"""The policy as a pure function: items, time, limits and cost in; a decision out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.batching.cost import CostModel, RunCost, RunSample
from shoal_server.batching.policy import (
    HORIZON,
    Arrivals,
    BatchLimits,
    Decision,
    Layout,
    decide,
)
from shoal_server.batching.queue import WaitingItems
from shoal_server.batching.submission import Submission
from shoal_server.core import Priority

LIMITS = BatchLimits(max_items=8, max_tokens=512, max_padding_waste=0.2, max_wait_s=0.01)
COST = RunCost(fixed_s=1e-3, per_token_s=1e-4)
BUSY = Arrivals(last_s=0.0, gap_s=1e-4)
QUIET = Arrivals(last_s=0.0, gap_s=math.inf)
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
    still = Arrivals(last_s=0.0095, gap_s=1e-4)
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
        total += cost.seconds(len(batch), max(batch))
    return total


@given(st.lists(st.integers(1, 256), min_size=1, max_size=HORIZON), st.floats(3e-5, 1e-2))
def test_never_worse_than_first_come_first_served_with_padding(
    sizes: list[int], fixed_s: float
) -> None:
    """Under its own cost model, emptying the queue costs no more than plain batching.

    The cap is small enough that "large enough" never cuts a batch that FIFO fills.
    """
    loop = asyncio.new_event_loop()
    cost = RunCost(fixed_s, 1e-6)
    limits = BatchLimits(4, 1 << 20, 0.99, max_wait_s=0.0)
    waiting = wait_with(loop, (0.0, sizes))
    total = 0.0
    while len(waiting):
        items = decide(waiting, 1e9, limits, cost, QUIET, ONE).items
        total += cost.seconds(len(items), max(item.length for item in items))
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


def test_cost_is_recovered_from_timed_runs() -> None:
    """Fitting runs that follow the formula gives back its three numbers."""
    truth = RunCost(fixed_s=1.1e-3, per_token_s=2.1e-4, per_token_length_s=2e-7)
    shapes = ((1, 8), (4, 16), (8, 64), (2, 250))
    fitted = CostModel([RunSample(b, t, truth.seconds(b, t)) for b, t in shapes]).cost
    assert fitted.fixed_s == pytest.approx(truth.fixed_s, rel=1e-3)
    assert fitted.per_token_s == pytest.approx(truth.per_token_s, rel=1e-3)
    assert fitted.per_token_length_s == pytest.approx(truth.per_token_length_s, rel=1e-3)


def test_cost_follows_a_machine_that_slows_down() -> None:
    """After a few hundred runs at half the speed, predictions are of the slow machine."""
    fast, slow = RunCost(1e-3, 2e-4), RunCost(2e-3, 4e-4)
    shapes = [(1, 8), (4, 16), (8, 64), (2, 250)]
    model = CostModel([RunSample(b, t, fast.seconds(b, t)) for b, t in shapes])
    for _ in range(150):
        for items, length in shapes:
            model.observe(items, length, slow.seconds(items, length))
    for items, length in shapes:
        assert model.cost.seconds(items, length) == pytest.approx(
            slow.seconds(items, length), rel=0.1
        )


def test_cost_is_never_negative() -> None:
    """Noise that a line fits best with a negative part does not make runs free."""
    model = CostModel([RunSample(1, 10, 5e-3), RunSample(1, 100, 6e-3), RunSample(1, 200, 30e-3)])
    assert min(model.cost.fixed_s, model.cost.per_token_s) > 0
    assert model.cost.per_token_length_s >= 0


def test_enough_is_where_the_fixed_part_is_a_small_share() -> None:
    """At `enough_items` the fixed cost is at most 3% of the run, one item less it is more."""
    cost = RunCost(fixed_s=1.1e-3, per_token_s=2.1e-4)
    for length in (1, 12, 64, 256):
        enough = cost.enough_items(length)
        assert cost.fixed_s / cost.seconds(enough, length) <= 0.03
        if enough > 1:
            assert cost.fixed_s / cost.seconds(enough - 1, length) > 0.03
