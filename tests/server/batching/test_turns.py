"""Work beside the batches: in turn, in one slot, and never with a slot lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from shoal_server.batching.slots import Slots
from shoal_server.batching.turns import Turns

from .fakes import settle

WAIT_S = 30


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def never() -> None:
    raise AssertionError("this was not to happen")


async def test_work_holds_a_slot_while_it_goes_on(executor: ThreadPoolExecutor) -> None:
    """And gives it back with its result."""
    slots = Slots(1)
    turns = Turns(slots, executor)
    assert await turns.take(lambda: slots.free) == 0
    await turns.idle()
    assert slots.free == 1


async def test_work_waits_for_its_turn(executor: ThreadPoolExecutor) -> None:
    """Behind those who wanted a slot before it, and before those who came later."""
    slots = Slots(1)
    turns = Turns(slots, executor)
    done: list[str] = []
    assert slots.reserve(never)
    assert not slots.reserve(lambda: done.append("first"))
    working = asyncio.create_task(turns.take(lambda: done.append("work")))
    await settle()
    assert not slots.reserve(lambda: done.append("last"))
    assert done == []
    slots.release()
    await working
    await turns.idle()
    assert done == ["first", "work", "last"]
    assert slots.free == 1


async def test_who_leaves_before_its_turn_takes_no_slot(executor: ThreadPoolExecutor) -> None:
    """The next one is offered it."""
    slots = Slots(1)
    turns = Turns(slots, executor)
    assert slots.reserve(never)
    working = asyncio.create_task(turns.take(never))
    await settle()
    working.cancel()
    slots.release()  # while the task does not know yet that it is cancelled
    with pytest.raises(asyncio.CancelledError):
        await working
    assert slots.free == 1


async def test_who_leaves_in_the_moment_of_its_turn_gives_the_slot_back(
    executor: ThreadPoolExecutor,
) -> None:
    """It was given, and the work not begun."""
    slots = Slots(1)
    turns = Turns(slots, executor)
    assert slots.reserve(never)
    working = asyncio.create_task(turns.take(never))
    await settle()
    slots.release()
    assert slots.free == 0
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert slots.free == 1


async def test_who_leaves_later_leaves_the_work_going(executor: ThreadPoolExecutor) -> None:
    """The slot is free when it has ended, and not before."""
    slots = Slots(1)
    turns = Turns(slots, executor)
    began, may_end = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        may_end.wait(WAIT_S)

    working = asyncio.create_task(turns.take(work))
    await asyncio.to_thread(began.wait, WAIT_S)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert slots.free == 0
    may_end.set()
    await turns.idle()
    assert slots.free == 1


async def test_what_goes_wrong_reaches_the_caller(executor: ThreadPoolExecutor) -> None:
    """And the slot is free again, also when there are no threads any more."""
    slots = Slots(1)
    turns = Turns(slots, executor)
    with pytest.raises(ZeroDivisionError):
        await turns.take(lambda: 1 // 0)
    await turns.idle()
    executor.shutdown()
    with pytest.raises(RuntimeError):
        await turns.take(never)
    await turns.idle()
    assert slots.free == 1
