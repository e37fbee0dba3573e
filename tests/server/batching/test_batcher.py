"""The batcher, one step at a time: a gate holds every run until the test opens it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from shoal_server.batching import batcher
from shoal_server.batching.policy import BatchLimits, Decision
from shoal_server.batching.submission import Submission
from shoal_server.core import Priority
from shoal_server.errors import (
    DeadlineExceeded,
    InferenceFailed,
    Overloaded,
    ShoalError,
    Unavailable,
)

from .fakes import Bench, settle, vector_of


def ids(first: int, length: int = 3) -> list[int]:
    return [first] * length


async def assert_rows(submission: Submission, expected: Sequence[Sequence[int]]) -> None:
    rows = await submission.rows()
    assert [vector_of(each).tolist() for each in expected] == [row.tolist() for row in rows]


async def test_cancelling_one_caller_leaves_its_batch_mates_alone() -> None:
    """A caller that leaves while its batch runs takes nobody else's answer with it."""
    bench = Bench()
    blocker = bench.batcher.submit([ids(9)])
    leaving, staying = bench.batcher.submit([ids(1)]), bench.batcher.submit([ids(2)])
    await bench.executor.open_gate()
    task = asyncio.create_task(leaving.rows())
    await settle()
    task.cancel()
    await settle()
    await bench.executor.open_gate()
    assert bench.backend.batches[1] == [ids(1), ids(2)]
    await assert_rows(blocker, [ids(9)])
    await assert_rows(staying, [ids(2)])
    bench.check()


async def test_items_of_a_caller_that_left_cost_no_device_time() -> None:
    """An item whose caller left while it waited is in no batch."""
    bench = Bench()
    blocker = bench.batcher.submit([ids(9)])
    leaving, staying = bench.batcher.submit([ids(1), ids(3)]), bench.batcher.submit([ids(2)])
    leaving.abandon()
    assert bench.observer.dropped == 2
    assert bench.observer.waiting == 1
    await bench.executor.open_gate(1)
    await bench.executor.open_gate(1)
    assert bench.backend.batches == [[ids(9)], [ids(2)]]
    await assert_rows(blocker, [ids(9)])
    await assert_rows(staying, [ids(2)])
    bench.check()


async def test_an_expired_item_is_answered_while_no_slot_is_free() -> None:
    """A deadline in the queue ends the wait at once; nothing has to come free for it."""
    bench = Bench()
    blocker = bench.batcher.submit([ids(9)])
    waiting = bench.batcher.submit([ids(1)])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await waiting.rows()
    assert bench.batcher.waiting_items == 0
    assert len(bench.executor) == 1
    await bench.executor.open_gate()
    await assert_rows(blocker, [ids(9)])
    bench.check()


async def test_a_lone_request_does_not_wait_for_the_window() -> None:
    """With no sign of other callers, a request starts in the call that submits it."""
    bench = Bench()
    submission = bench.batcher.submit([ids(1)])
    assert len(bench.executor) == 1
    await bench.executor.open_gate()
    await assert_rows(submission, [ids(1)])
    bench.check()


async def test_rows_come_back_in_the_requests_order_from_several_batches() -> None:
    """A request larger than a batch gets each row at its place, whatever ran first."""
    bench = Bench(slots=2)
    sequences = [ids(n, length) for n, length in enumerate([8, 2, 5, 8, 2, 5, 8, 2, 5], start=1)]
    submission = bench.batcher.submit(sequences)
    while len(bench.executor):
        await bench.executor.open_gate()
    assert len(bench.backend.batches) > 2
    await assert_rows(submission, sequences)
    bench.check()


async def test_requests_share_a_batch() -> None:
    """Items of several requests that wait together run together."""
    bench = Bench()
    first = bench.batcher.submit([ids(9)])
    others = [bench.batcher.submit([ids(n)]) for n in (1, 2, 3)]
    await bench.executor.open_gate(1)
    await bench.executor.open_gate(1)
    assert bench.backend.batches == [[ids(9)], [ids(1), ids(2), ids(3)]]
    for submission, n in zip((first, *others), (9, 1, 2, 3), strict=True):
        await assert_rows(submission, [ids(n)])
    assert bench.observer.ended == [(1, 3, 3), (3, 9, 9)]
    bench.check()


async def test_a_run_that_fails_fails_its_own_items_only() -> None:
    """The batch before and the batch after a failed run are answered."""
    bench = Bench()
    before = bench.batcher.submit([ids(1)])
    during = bench.batcher.submit([ids(2)])
    await bench.executor.open_gate()
    await assert_rows(before, [ids(1)])
    after = bench.batcher.submit([ids(3)])
    bench.backend.run_error = InferenceFailed("broken")
    await bench.executor.open_gate()
    bench.backend.run_error = None
    with pytest.raises(InferenceFailed, match="broken"):
        await during.rows()
    await bench.executor.open_gate()
    await assert_rows(after, [ids(3)])
    bench.check()


@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError(), SystemExit(1)])
async def test_no_exception_of_a_run_is_lost(error: BaseException) -> None:
    """Whatever a worker raises, its callers hear of it, without internals, and the slot is free."""
    bench = Bench()
    submission = bench.batcher.submit([ids(1)])
    bench.backend.run_error = error
    await bench.executor.open_gate()
    with pytest.raises(InferenceFailed) as raised:
        await submission.rows()
    assert "boom" not in str(raised.value)
    bench.check()


async def test_a_run_that_gives_too_few_rows_fails_its_items() -> None:
    """Whose vector is whose can not be told; nobody may wait for one for ever."""
    bench = Bench()
    bench.backend.rows_kept = 1
    bench.batcher.submit([ids(9)])
    callers = [bench.batcher.submit([ids(1)]), bench.batcher.submit([ids(2)])]
    await bench.executor.open_gate(1)
    await bench.executor.open_gate(1)
    for caller in callers:
        with pytest.raises(InferenceFailed, match="1 vectors for 2 inputs"):
            await caller.rows()
    bench.check()


async def test_a_decision_that_fails_costs_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest item runs alone then, and nobody waits for ever."""

    def broken(*_: object) -> Decision:
        raise ZeroDivisionError

    monkeypatch.setattr(batcher, "decide", broken)
    bench = Bench()
    first, second = bench.batcher.submit([ids(1)]), bench.batcher.submit([ids(2)])
    await bench.executor.open_gate(1)
    await bench.executor.open_gate(1)
    await assert_rows(first, [ids(1)])
    await assert_rows(second, [ids(2)])
    bench.check()


async def test_non_finite_output_fails_only_the_item_that_has_it() -> None:
    """A batch mate of an item with a bad vector gets its own good one."""
    bench = Bench()
    blocker = bench.batcher.submit([ids(9)])
    bad, good = bench.batcher.submit([ids(1)]), bench.batcher.submit([ids(2)])
    bench.backend.row_errors[1] = InferenceFailed("not finite")
    await bench.executor.open_gate()
    await bench.executor.open_gate()
    with pytest.raises(InferenceFailed, match="not finite"):
        await bad.rows()
    await assert_rows(good, [ids(2)])
    await assert_rows(blocker, [ids(9)])
    bench.check()


async def test_a_failed_item_takes_its_requests_other_items_out_of_the_queue() -> None:
    """Once a request has failed, no device time goes into the rest of it."""
    bench = Bench()
    submission = bench.batcher.submit([ids(n) for n in range(1, 10)])
    bench.backend.row_errors[1] = InferenceFailed("not finite")
    await bench.executor.open_gate()
    with pytest.raises(InferenceFailed):
        await submission.rows()
    assert bench.batcher.waiting_items == 0
    while len(bench.executor):
        await bench.executor.open_gate()
    assert len(bench.backend.batches) == 2  # the second was formed before the first had ended
    bench.check()


async def test_high_priority_goes_first_and_low_priority_is_not_starved() -> None:
    """A head start reorders what arrived together; it does not outweigh a long wait."""
    bench = Bench(slots=1)
    blocker = bench.batcher.submit([ids(9)])
    low = bench.batcher.submit([ids(1, 2)], priority=Priority.LOW)
    high = bench.batcher.submit([ids(2, 30)], priority=Priority.HIGH)
    bench.now_s += 2.0
    late = bench.batcher.submit([ids(3, 60)], priority=Priority.HIGH)
    for _ in range(4):
        await bench.executor.open_gate()
    order = [batch[0][0] for batch in bench.backend.batches]
    assert order == [9, 2, 1, 3]
    for submission, sequence in ((blocker, ids(9)), (low, ids(1, 2)), (high, ids(2, 30))):
        await assert_rows(submission, [sequence])
    await assert_rows(late, [ids(3, 60)])
    bench.check()


async def test_a_batch_is_formed_when_a_slot_is_free_and_not_before() -> None:
    """What arrives while every slot is busy can still join the next batch."""
    bench = Bench()
    submissions = [bench.batcher.submit([ids(1)])]
    for n in (2, 3, 4):
        submissions.append(bench.batcher.submit([ids(n)]))
        assert len(bench.executor) == 1
    await bench.executor.open_gate()
    assert len(bench.executor) == 1
    await bench.executor.open_gate()
    assert [len(batch) for batch in bench.backend.batches] == [1, 3]
    for submission in submissions:
        await submission.rows()
    bench.check()


async def test_closing_fails_what_waits_and_lets_what_runs_end() -> None:
    """After `close` nobody is left waiting: running items are answered, the others told why."""
    bench = Bench()
    running, waiting = bench.batcher.submit([ids(1)]), bench.batcher.submit([ids(2)])
    bench.batcher.close(Unavailable("going away"))
    with pytest.raises(Unavailable, match="going away"):
        await waiting.rows()
    with pytest.raises(Unavailable):
        bench.batcher.submit([ids(3)])
    await bench.executor.open_gate()
    await assert_rows(running, [ids(1)])
    await asyncio.wait_for(bench.batcher.idle(), 1)
    bench.check()


async def test_models_take_turns_on_one_device() -> None:
    """A model with a long queue does not keep another model off the device."""
    bench, other = Bench(), Bench()
    other.batcher._slots = bench.slots
    busy = [bench.batcher.submit([ids(n)]) for n in range(1, 9)]
    quiet = other.batcher.submit([ids(50)])
    assert len(other.executor) == 0
    await bench.executor.open_gate()
    await bench.executor.open_gate()
    assert (len(bench.executor), len(other.executor)) == (0, 1)
    await other.executor.open_gate()
    while len(bench.executor):
        await bench.executor.open_gate()
    await assert_rows(quiet, [ids(50)])
    for submission in busy:
        await submission.rows()
    bench.check()


async def test_random_callers_all_get_their_own_rows() -> None:
    """Through thousands of arrivals, cancellations and failures the books balance."""
    import random

    random.seed(7)
    bench = Bench(slots=3)
    bench.backend.row_errors = {n: InferenceFailed("bad") for n in range(1, 500, 17)}
    waiting: list[tuple[asyncio.Task[object], list[list[int]]]] = []
    answered = failed = 0
    for n in range(1, 500):
        sequences = [ids(n, random.randint(1, 40)) for _ in range(random.randint(1, 6))]
        submission = bench.batcher.submit(sequences, priority=random.choice(list(Priority)))
        waiting.append((asyncio.create_task(submission.rows()), sequences))
        bench.now_s += random.random() / 100
        if random.random() < 0.2:
            random.choice(waiting)[0].cancel()
        if len(bench.executor) and random.random() < 0.7:
            await bench.executor.open_gate()
        bench.batcher.check_integrity()
    while len(bench.executor):
        await bench.executor.open_gate()
    for task, sequences in waiting:
        try:
            rows = await task
        except asyncio.CancelledError:
            continue
        except ShoalError:
            assert sequences[0][0] % 17 == 1
            failed += 1
            continue
        assert [row.tolist() for row in rows] == [vector_of(s).tolist() for s in sequences]  # type: ignore[attr-defined]
        answered += 1
    assert answered > 100
    assert failed > 5
    bench.check()


async def test_a_deadline_that_can_not_be_met_is_refused_at_once() -> None:
    """10 ms of run do not fit into 5, unless the run can have all slots and is faster so."""
    bench = Bench(slots=4)
    deadline_s = bench.now_s + 0.005
    with pytest.raises(DeadlineExceeded, match=r"5 ms are left, about 1[01] ms are needed"):
        bench.batcher.submit([ids(1, 90)], deadline_s=deadline_s)
    bench.backend.wide_speedup = 4.0
    submission = bench.batcher.submit([ids(1, 90)], deadline_s=deadline_s)
    await bench.executor.open_gate()
    await assert_rows(submission, [ids(1, 90)])
    bench.check()


async def test_who_can_not_be_answered_in_time_takes_no_place_in_a_batch() -> None:
    """When a batch forms, items whose deadline is nearer than its end are failed, mates run."""
    bench = Bench()
    running = bench.batcher.submit([ids(1, 8)])
    late = bench.batcher.submit([ids(2, 8)], deadline_s=bench.now_s + 0.05)
    mate = bench.batcher.submit([ids(3, 8)])
    bench.now_s += 0.0499
    await bench.executor.open_gate()
    with pytest.raises(DeadlineExceeded):
        await late.rows()
    await bench.executor.open_gate()
    await assert_rows(running, [ids(1, 8)])
    await assert_rows(mate, [ids(3, 8)])
    assert bench.backend.batches == [[ids(1, 8)], [ids(3, 8)]]
    assert bench.observer.dropped == 1
    bench.check()


async def test_a_batch_of_hopeless_items_does_not_run() -> None:
    """The device stays free for whoever comes next."""
    bench = Bench()
    running = bench.batcher.submit([ids(1, 8)])
    late = bench.batcher.submit([ids(2, 8)], deadline_s=bench.now_s + 0.05)
    bench.now_s += 0.0499
    await bench.executor.open_gate()
    with pytest.raises(DeadlineExceeded):
        await late.rows()
    await assert_rows(running, [ids(1, 8)])
    assert len(bench.backend.batches) == 1
    bench.check()


async def test_a_queue_that_is_too_long_takes_nobody_in() -> None:
    """Who would wait longer than `max_queue_s` is refused with the time to come back."""
    bench = Bench(max_queue_s=0.01)
    submissions = [bench.batcher.submit([ids(1, 50)]) for _ in range(4)]
    with pytest.raises(Overloaded, match=r"max_queue_s is 0\.01") as refused:
        bench.batcher.submit([ids(1, 50)])
    assert refused.value.retry_after_s == pytest.approx(0.5 * 3 * 5e-3, rel=0.2)
    urgent = bench.batcher.submit([ids(2, 50)], priority=Priority.HIGH)
    while len(bench.executor):
        await bench.executor.open_gate()
    for submission in submissions:
        await assert_rows(submission, [ids(1, 50)])
    await assert_rows(urgent, [ids(2, 50)])
    bench.check()


async def test_the_wait_is_told_from_how_fast_the_queue_drained() -> None:
    """A device that is ten times slower than its runs say makes deadlines ten times nearer."""
    bench = Bench()
    submissions = [bench.batcher.submit([ids(1, 50)]) for _ in range(40)]
    for _ in range(20):
        bench.now_s += 0.05
        await bench.executor.open_gate()
    with pytest.raises(DeadlineExceeded, match="500 ms are left"):
        bench.batcher.submit([ids(1, 50)], deadline_s=bench.now_s + 0.5)
    bench.batcher.submit([ids(1, 50)], deadline_s=bench.now_s + 2.0).abandon()
    while len(bench.executor):
        await bench.executor.open_gate()
    for submission in submissions:
        await assert_rows(submission, [ids(1, 50)])
    bench.check()


async def test_an_urgent_item_is_not_late_for_its_mates() -> None:
    """What has time to run alone, or with some of those who wait, runs so."""
    bench = Bench(limits=BatchLimits(32, 4096, 0.9, 0.0))
    running = bench.batcher.submit([ids(1, 8)])
    mates = [bench.batcher.submit([ids(2, 20)]) for _ in range(20)]
    urgent = bench.batcher.submit(
        [ids(3, 20)], deadline_s=bench.now_s + 0.1, priority=Priority.HIGH
    )
    bench.now_s += 0.09
    while len(bench.executor):
        await bench.executor.open_gate()
    await assert_rows(running, [ids(1, 8)])
    await assert_rows(urgent, [ids(3, 20)])
    for mate in mates:
        await assert_rows(mate, [ids(2, 20)])
    assert ids(3, 20) in bench.backend.batches[1]
    assert len(bench.backend.batches[1]) < len(bench.backend.batches[2])
    bench.check()


async def test_a_request_that_failed_runs_no_further() -> None:
    """When one of its items can not be answered in time, its others leave the queue."""
    bench = Bench()
    running = bench.batcher.submit([ids(1, 8)])
    late = bench.batcher.submit([ids(2, 60), *([ids(3, 4)] * 8)], deadline_s=bench.now_s + 0.05)
    bench.now_s += 0.047
    while len(bench.executor):
        await bench.executor.open_gate()
    with pytest.raises(DeadlineExceeded):
        await late.rows()
    await assert_rows(running, [ids(1, 8)])
    assert bench.backend.batches == [[ids(1, 8)]]
    assert bench.observer.dropped == 9
    bench.check()


async def test_a_request_too_large_for_its_deadline_is_refused() -> None:
    """Each text would be in time alone, all of them never."""
    bench = Bench()
    with pytest.raises(DeadlineExceeded):
        bench.batcher.submit([ids(1, 50)] * 200, deadline_s=bench.now_s + 0.5)
    bench.check()


async def test_a_run_that_can_not_be_started_fails_its_callers() -> None:
    """No caller waits for ever, and no slot is lost."""
    bench = Bench()

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.executor, "submit", refuse)
        submission = bench.batcher.submit([ids(1)])
    with pytest.raises(InferenceFailed):
        await submission.rows()
    after = bench.batcher.submit([ids(2)])
    await bench.executor.open_gate()
    await assert_rows(after, [ids(2)])
    bench.check()
