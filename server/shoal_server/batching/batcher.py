"""The loop of one resident model: from waiting items to runs and back.

There is no task that loops. Whatever can change the decision (items arrive, a
slot comes free, a wait is over) calls `_pump`, which runs what the policy says
until no slot is free or nothing is to run. Nothing polls.

    submit ──> waiting ──_pump──> slot reserved, batch formed ──> worker thread
                                                                      │
    rows <── Submission.deliver <── _finish (one hop to the loop) <───┘
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Protocol

import structlog

from shoal_server.batching.cost import CostModel, RunSample
from shoal_server.batching.load import DrainRate, LoadMeter
from shoal_server.batching.policy import BatchLimits, Decision, Layout, decide
from shoal_server.batching.queue import Item, WaitingItems
from shoal_server.batching.slots import Slots
from shoal_server.batching.submission import Submission
from shoal_server.core import Priority
from shoal_server.errors import (
    DeadlineExceeded,
    InferenceFailed,
    Overloaded,
    ShoalError,
    Unavailable,
)
from shoal_server.inference.backend import Backend, RunResult

log = structlog.get_logger(__name__)

_TIMER_MIN_S = 0.001
# A request is refused for its deadline when even so much of its predicted run is too
# long: predictions are of the typical run, and a lucky one is faster.
_RUN_TRUST = 0.7
# And when so much of the predicted wait before it is. Above 1, because under overload a
# queue fills up to what is let in: items that reach its head with no time left to run
# would take the device from those that have.
_WAIT_CAUTION = 1.6
_RETRY_MAX_S = 30.0


class BatchObserver(Protocol):
    """Is told what happened, on the event loop."""

    def batch_ended(self, items: int, tokens: int, computed_tokens: int, seconds: float) -> None:
        """A run ended well."""

    def waiting_changed(self, waiting: int) -> None:
        """So many items wait now."""

    def items_dropped(self, count: int) -> None:
        """Items left the queue because nobody wants them any longer."""


class Batcher:
    """Coalesces the items of one model into runs. Belongs to the loop's thread."""

    def __init__(
        self,
        backend: Backend,
        *,
        limits: BatchLimits,
        max_queue_s: float,
        cost: CostModel,
        slots: Slots,
        executor: Executor,
        observer: BatchObserver,
        priority_head_start_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Put together by the model's loader.

        Args:
            backend: Runs the batches.
            limits: What a batch may be.
            max_queue_s: Requests that would wait longer are refused.
            cost: What runs cost; kept up to date here.
            slots: Of the backend's device.
            executor: Threads for the runs, at least as many as slots.
            observer: Told what happens.
            priority_head_start_s: By what one step of priority shifts an item's turn.
            clock: Monotonic seconds.
        """
        self._backend = backend
        self._limits = limits
        self._max_queue_s = max_queue_s
        self._cost = cost
        self._slots = slots
        self._executor = executor
        self._observer = observer
        self._head_start_s = priority_head_start_s
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._waiting = WaitingItems()
        self._running: set[tuple[Item, ...]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._meter = LoadMeter()
        self._drain = DrainRate()
        self._closed: ShoalError | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"Batcher({self._waiting!r}, {len(self._running)} running, {self._slots!r})"

    @property
    def waiting_items(self) -> int:
        """Items that wait for a batch."""
        return len(self._waiting)

    def change(
        self, limits: BatchLimits, *, max_queue_s: float, priority_head_start_s: float
    ) -> None:
        """Form batches by other limits from now on; arguments as in `__init__`."""
        self._limits = limits
        self._max_queue_s = max_queue_s
        self._head_start_s = priority_head_start_s
        self._pump()

    def submit(
        self,
        encodings: Sequence[Sequence[int]],
        *,
        priority: Priority = Priority.NORMAL,
        want_pooled: bool = False,
        deadline_s: float | None = None,
    ) -> Submission:
        """Let a request's items wait for their batches.

        Args:
            encodings: Token ids of each item; at least one item.
            priority: Who goes first.
            want_pooled: Give the vectors before normalisation.
            deadline_s: When the caller stops waiting, on the batcher's clock.

        Raises:
            DeadlineExceeded: The deadline has passed, or can not be met any more.
            Overloaded: It would wait for longer than `max_queue_s`.
            Unavailable: The model is being taken out of memory.
        """
        if self._closed is not None:
            raise self._closed
        now_s = self._clock()
        self._check_wait(
            encodings, priority, math.inf if deadline_s is None else deadline_s - now_s
        )
        submission = Submission(
            encodings,
            priority=priority,
            want_pooled=want_pooled,
            deadline_s=math.inf if deadline_s is None else deadline_s,
            now_s=now_s,
            rank_s=now_s + self._head_start_s * (Priority.NORMAL - priority),
            loop=self._loop,
            leave=self._leave,
        )
        tokens = 0
        for item in submission.items:
            self._waiting.add(item)
            tokens += item.length
        self._meter.arrived(now_s, len(submission.items), tokens)
        self._observer.waiting_changed(len(self._waiting))
        self._pump()
        return submission

    def close(self, reason: Unavailable) -> None:
        """Take no new items and fail those that wait. Running batches end by themselves."""
        self._closed = reason
        self._cancel_timer()
        for item in self._waiting.oldest(len(self._waiting)):
            item.submission.fail(reason)
            self._leave(item.submission)
        self._observer.waiting_changed(0)

    async def idle(self) -> None:
        """Return when no run is going on."""
        await self._idle.wait()

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not balance. For tests."""
        self._waiting.check_integrity()
        inside = [item.length for batch in self._running for item in batch]
        self._meter.check_integrity(
            len(self._waiting) + len(inside), self._waiting.tokens + sum(inside)
        )
        assert self._slots.count - self._slots.free >= len(self._running), repr(self)  # noqa: S101

    def _check_wait(
        self, encodings: Sequence[Sequence[int]], priority: Priority, left_s: float
    ) -> None:
        """Refuse at once what would only wait to expire, or for too long."""
        cost, slots = self._cost.cost, self._slots.count
        lengths = [max(1, len(ids)) for ids in encodings]
        # At best it has the whole device to itself.
        run_s = max(
            cost.seconds(1, max(lengths), max(lengths)) / self._backend.wide_speedup,
            cost.per_token_s * sum(lengths) / slots,
        )
        wait_s = 0.0
        if priority is not Priority.HIGH and self._waiting.tokens:
            rate = self._drain.tokens_per_s(slots / cost.per_token_s)
            wait_s = self._waiting.tokens / rate
        if left_s <= 0 or _RUN_TRUST * run_s + _WAIT_CAUTION * wait_s > left_s:
            needed_s = run_s + wait_s
            raise DeadlineExceeded(
                f"{max(0.0, left_s) * 1000:.0f} ms are left, about {needed_s * 1000:.0f} ms are "
                "needed to answer",
                metadata={"left_ms": round(left_s * 1000), "needed_ms": round(needed_s * 1000)},
            )
        if wait_s > self._max_queue_s:
            raise Overloaded(
                f"max_queue_s is {self._max_queue_s:g}: a request would wait for about "
                f"{wait_s:.1f} s",
                retry_after_s=min(wait_s / 2, _RETRY_MAX_S),
                metadata={"limit": "max_queue_s", "value": self._max_queue_s, "wait_s": wait_s},
            )

    def _leave(self, submission: Submission) -> None:
        """Take what waits of a submission out of the queue."""
        dropped = [item for item in submission.items if self._waiting.remove(item)]
        if dropped:
            self._meter.left(self._clock(), len(dropped), sum(item.length for item in dropped))
            self._observer.items_dropped(len(dropped))
            self._observer.waiting_changed(len(self._waiting))

    def _pump(self) -> None:
        """Start every run that is due. A slot is reserved before a batch is formed."""
        self._cancel_timer()
        while len(self._waiting) and self._slots.reserve(self._pump):
            decision = self._decide()
            if decision.items:
                if items := self._in_time(decision):
                    held = 1 + self._slots.take_rest() if decision.wide else 1
                    self._start(items, held)
                else:
                    self._slots.release()
                continue
            self._slots.release()
            if decision.wait_until_s is not None:
                # uvloop's timers count whole milliseconds: never ask for none of them.
                wait_s = max(decision.wait_until_s - self._clock(), _TIMER_MIN_S)
                self._timer = self._loop.call_later(wait_s, self._pump)
            return

    def _in_time(self, decision: Decision) -> tuple[Item, ...]:
        """The items of a batch that can be answered in time; the device is for them.

        Those that would be late even alone are failed. If others would be late only
        because of their mates, the most urgent runs with the mates that it has time for,
        and the rest waits on.
        """
        items, now_s = decision.items, self._clock()
        earliest_s = min(item.submission.deadline_s for item in items)
        if earliest_s == math.inf or now_s + self._run_s(items, decision) <= earliest_s:
            return items
        for item in items:
            least_s = _RUN_TRUST * self._run_s([item], decision)
            if now_s + least_s > item.submission.deadline_s:
                item.submission.fail(
                    DeadlineExceeded("the deadline is nearer than the end of a run")
                )
                self._leave(item.submission)
        left = [item for item in items if not item.submission.failed]
        if not left:
            return ()
        left.sort(key=lambda item: item.submission.deadline_s)
        ends_s = left[0].submission.deadline_s
        batch = left[:1]
        for item in left[1:]:
            if now_s + self._run_s([*batch, item], decision) <= ends_s:
                batch.append(item)
        return tuple(batch)

    def _run_s(self, items: Sequence[Item], decision: Decision) -> float:
        """What a run of `items` is expected to take."""
        lengths = [item.length for item in items]
        run_s = self._cost.cost.seconds(len(items), sum(lengths), max(lengths))
        return run_s / (self._backend.wide_speedup if decision.wide else 1.0)

    def _decide(self) -> Decision:
        self._cost.set_padding_free(self._backend.padding_free)
        try:
            return decide(
                self._waiting,
                self._clock(),
                self._limits,
                self._cost.cost,
                self._meter.load,
                self._layout(),
            )
        except Exception:
            # An error here must not keep the slot, and with it every caller, for ever.
            log.exception("decision_failed", waiting=len(self._waiting))
            return Decision(tuple(self._waiting.oldest(1)))

    def _layout(self) -> Layout:
        """What is free, the slot that was just reserved included."""
        return Layout(
            free_slots=self._slots.free + 1,
            slots=self._slots.count,
            wide_speedup=self._backend.wide_speedup,
        )

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, items: tuple[Item, ...], held_slots: int) -> None:
        now_s = self._clock()
        for item in items:
            self._waiting.remove(item)
            timings = item.submission.timings
            timings.queue_s = max(timings.queue_s, now_s - item.arrived_s)
            timings.batch_items = max(timings.batch_items, len(items))
        self._observer.waiting_changed(len(self._waiting))
        self._meter.started()
        self._running.add(items)
        self._idle.clear()
        try:
            self._executor.submit(self._work, items, held_slots)
        except RuntimeError:  # it was shut down, or the system has no thread left
            log.exception("run_not_started", items=len(items))
            self._finish(items, held_slots, InferenceFailed("the run could not be started"))

    def _work(self, items: tuple[Item, ...], held_slots: int) -> None:
        """In a worker thread: run, and hop back to the loop once, whatever happened."""
        outcome: RunResult | ShoalError
        try:
            outcome = self._backend.run(
                [item.ids for item in items],
                [item.submission.want_pooled for item in items],
                wide=held_slots > 1,
            )
        except ShoalError as error:
            outcome = error
        except BaseException as error:
            # The thread must live and the callers must hear of it, whatever this was.
            log.exception("run_failed", items=len(items), error=repr(error))
            outcome = InferenceFailed("the model's run failed; the server's log says why")
        self._loop.call_soon_threadsafe(self._finish, items, held_slots, outcome)

    def _finish(
        self, items: tuple[Item, ...], held_slots: int, outcome: RunResult | ShoalError
    ) -> None:
        self._running.discard(items)
        tokens = sum(item.length for item in items)
        now_s = self._clock()
        self._meter.left(now_s, len(items), tokens)
        self._drain.ended(now_s, tokens, waiting=len(self._waiting) > 0)
        try:
            # First the device gets its next batch, then the callers their rows.
            self._slots.release(held_slots)
            self._pump()
        finally:
            if not self._running:
                self._idle.set()
            self._answer(items, outcome)
        if isinstance(outcome, RunResult):
            computed, seconds = outcome.computed_tokens, outcome.seconds
            if held_slots == 1:
                longest = max(item.length for item in items)
                self._cost.observe(RunSample(len(items), computed, longest, seconds))
            self._observer.batch_ended(len(items), tokens, computed, seconds)

    def _answer(self, items: tuple[Item, ...], outcome: RunResult | ShoalError) -> None:
        if isinstance(outcome, RunResult) and len(outcome.rows) != len(items):
            log.error("rows_missing", rows=len(outcome.rows), items=len(items))
            outcome = InferenceFailed(
                f"the model gave {len(outcome.rows)} vectors for {len(items)} inputs"
            )
        if isinstance(outcome, ShoalError):
            for item in items:
                item.submission.fail(outcome)
            return
        for item, row in zip(items, outcome.rows, strict=True):
            if isinstance(row, ShoalError):
                item.submission.fail(row)
            else:
                timings = item.submission.timings
                timings.inference_s = max(timings.inference_s, outcome.seconds)
                item.submission.deliver(item, row)
