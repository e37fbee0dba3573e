"""A backend and an executor that do nothing until a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoal_server.batching.batcher import Batcher
from shoal_server.batching.cost import CostModel, RunSample
from shoal_server.batching.policy import BatchLimits
from shoal_server.batching.slots import Slots
from shoal_server.errors import ShoalError
from shoal_server.inference.backend import RunResult

# A run pays 1 ms, a token 0.1 ms: a batch of 8 tokens is large enough at 41 items.
COST = (
    RunSample(1, 10, 10, 2e-3),
    RunSample(1, 90, 90, 10e-3),
    RunSample(2, 90, 45, 10e-3),
)
# No window: when to wait is the policy's matter, and tested there.
LIMITS = BatchLimits(max_items=4, max_tokens=64, max_padding_waste=0.5, max_wait_s=0.0)


def vector_of(ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the fake model gives a token sequence: all of it can be told from the vector."""
    return np.array([len(ids), sum(ids), ids[0]], dtype=np.float32)


class FakeBackend:
    """Gives each sequence `vector_of` it, or what a test put into `errors`."""

    device = "cpu"
    padding_free = False
    wide_speedup = 1.0

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.row_errors: dict[int, ShoalError] = {}
        """By first token id."""
        self.run_error: BaseException | None = None
        self.rows_kept: int | None = None
        """Rows of a run that are given back; None: all of them."""

    def run(
        self, sequences: Sequence[Sequence[int]], pooled: Sequence[bool], *, wide: bool = False
    ) -> RunResult:
        self.batches.append([list(ids) for ids in sequences])
        if self.run_error is not None:
            raise self.run_error
        rows = [self.row_errors.get(ids[0], vector_of(ids)) for ids in sequences]
        computed = len(sequences) * max(map(len, sequences))
        return RunResult(rows[: self.rows_kept], 0.001, computed)

    def close(self) -> None:
        pass


class GatedExecutor(Executor):
    """Holds what it is given until `open_gate`: makes batching deterministic."""

    def __init__(self) -> None:
        self._held: list[Callable[[], Any]] = []

    def __len__(self) -> int:
        return len(self._held)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._held.append(lambda: fn(*args, **kwargs))
        return Future()

    async def open_gate(self, runs: int = 1) -> None:
        """Let the oldest runs happen, and their results reach the loop."""
        for _ in range(runs):
            self._held.pop(0)()
        await settle()


async def settle() -> None:
    """Let everything that is due on the loop happen."""
    for _ in range(10):
        await asyncio.sleep(0)


@dataclass
class RecordingObserver:
    """Remembers what the batcher told it."""

    ended: list[tuple[int, int, int]] = field(default_factory=list)
    waiting: int = 0
    dropped: int = 0

    def batch_ended(self, items: int, tokens: int, computed_tokens: int, seconds: float) -> None:
        self.ended.append((items, tokens, computed_tokens))

    def waiting_changed(self, waiting: int) -> None:
        self.waiting = waiting

    def items_dropped(self, count: int) -> None:
        self.dropped += count


class Bench:
    """A batcher with its surroundings, all in a test's hands."""

    def __init__(
        self, *, slots: int = 1, limits: BatchLimits = LIMITS, max_queue_s: float = 60.0
    ) -> None:
        self.backend = FakeBackend()
        self.executor = GatedExecutor()
        self.observer = RecordingObserver()
        self.slots = Slots(slots)
        self.now_s = 100.0
        self.batcher = Batcher(
            self.backend,
            limits=limits,
            max_queue_s=max_queue_s,
            cost=CostModel(COST),
            slots=self.slots,
            executor=self.executor,
            observer=self.observer,
            priority_head_start_s=0.5,
            clock=lambda: self.now_s,
        )

    def check(self) -> None:
        """Nothing waits, nothing runs, every slot is free."""
        self.batcher.check_integrity()
        assert self.batcher.waiting_items == 0, self.batcher
        assert self.slots.free == self.slots.count, self.batcher
        assert len(self.executor) == 0
