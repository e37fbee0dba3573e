"""The items that wait, compared with a plain list that is sorted each time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.batching.queue import Item, WaitingItems
from shoal_server.batching.submission import Submission
from shoal_server.core import Priority

HEAD_START_S = 2.5


@pytest.fixture(scope="module")
def submission() -> Iterator[Submission]:
    """What the items belong to; the queue does not look at it."""
    loop = asyncio.new_event_loop()
    yield Submission(
        [[1]],
        priority=Priority.NORMAL,
        want_pooled=False,
        deadline_s=math.inf,
        now_s=0.0,
        rank_s=0.0,
        loop=loop,
        leave=lambda _: None,
    )
    loop.close()


def item_of(
    submission: Submission, arrived_s: float, length: int = 1, priority: Priority = Priority.NORMAL
) -> Item:
    rank_s = arrived_s + HEAD_START_S * (Priority.NORMAL - priority)
    return Item([1] * length, 0, submission, arrived_s, rank_s, priority)


def test_an_empty_queue_has_nothing() -> None:
    """No items, no oldest, no tokens, no wait."""
    waiting = WaitingItems()
    assert len(waiting) == waiting.tokens == 0
    assert waiting.oldest(3) == []
    assert waiting.longest_waiting_since_s() is None


def test_removing_tells_whether_it_waited(submission: Submission) -> None:
    """An item leaves once, whoever takes it out first."""
    waiting, item = WaitingItems(), item_of(submission, 1.0, length=4)
    assert not waiting.remove(item)
    waiting.add(item)
    assert waiting.tokens == 4
    assert waiting.remove(item)
    assert not waiting.remove(item)
    assert len(waiting) == waiting.tokens == 0


def test_a_head_start_is_of_fixed_length(submission: Submission) -> None:
    """High priority overtakes what came shortly before it, and nothing that came long before."""
    low, old, new, high = (
        item_of(submission, 0.0, priority=Priority.LOW),
        item_of(submission, 1.0),
        item_of(submission, 3.0),
        item_of(submission, 4.0, priority=Priority.HIGH),
    )
    waiting = WaitingItems()
    for item in (low, old, new, high):
        waiting.add(item)
    assert waiting.oldest(9) == [old, high, low, new]


def test_the_longest_wait_is_of_arrival_not_of_rank(submission: Submission) -> None:
    """The window is anchored at who has waited longest, even if others go first."""
    waiting = WaitingItems()
    waiting.add(item_of(submission, 5.0, priority=Priority.LOW))
    waiting.add(item_of(submission, 6.0, priority=Priority.HIGH))
    assert waiting.longest_waiting_since_s() == 5.0


def test_an_item_without_tokens_takes_one_place(submission: Submission) -> None:
    """An empty text still takes a row of a batch, one place wide."""
    waiting = WaitingItems()
    waiting.add(item_of(submission, 0.0, length=0))
    assert waiting.tokens == 1
    waiting.check_integrity()


STEPS = st.lists(
    st.one_of(
        # an arrival: time since the last one, length, priority
        st.tuples(st.floats(0, 2), st.integers(0, 9), st.sampled_from(Priority)),
        st.integers(0, 99),  # one of those that wait leaves
    ),
    max_size=50,
)


@given(STEPS)
def test_it_is_a_list_sorted_by_rank(
    submission: Submission, steps: list[tuple[float, int, Priority] | int]
) -> None:
    """Through arrivals and departures: the order, the count, the tokens and the longest wait."""
    waiting, model = WaitingItems(), list[Item]()
    now_s = 0.0
    for step in steps:
        if isinstance(step, int):
            if model:
                assert waiting.remove(model.pop(step % len(model)))
        else:
            gap_s, length, priority = step
            now_s += gap_s
            model.append(item_of(submission, now_s, length, priority))
            waiting.add(model[-1])
        waiting.check_integrity()
        assert len(waiting) == len(model)
        assert waiting.tokens == sum(max(1, len(item.ids)) for item in model)
        for most in (1, 3, len(model)):
            found = waiting.oldest(most)
            ranks = sorted(item.rank_s for item in model)
            assert [item.rank_s for item in found] == ranks[:most]
            assert set(found) <= set(model)
            assert len(set(found)) == len(found)
        assert waiting.longest_waiting_since_s() == min(
            (item.arrived_s for item in model), default=None
        )


@given(st.lists(st.sampled_from(Priority), min_size=1, max_size=20))
def test_items_of_one_priority_keep_their_order(
    submission: Submission, priorities: list[Priority]
) -> None:
    """Items that came in one request, at one time, go in the request's order."""
    waiting = WaitingItems()
    items = [item_of(submission, 1.0, priority=priority) for priority in priorities]
    for item in items:
        waiting.add(item)
    found = waiting.oldest(len(items))
    for priority in Priority:
        assert [item for item in found if item.priority is priority] == [
            item for item in items if item.priority is priority
        ]
