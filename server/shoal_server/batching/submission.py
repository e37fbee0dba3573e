"""One request's items while they wait and run, and where their rows meet again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal_server.batching.queue import Item
from shoal_server.core import Priority
from shoal_server.errors import ShoalError
from shoal_server.inference.backend import Row


@dataclass(slots=True)
class SubmissionTimings:
    """Where the time of a request's items went, in seconds."""

    queue_s: float = 0.0
    """The longest wait of an item for its batch to start."""
    inference_s: float = 0.0
    """The longest run that an item took part in."""
    batch_items: int = 0
    """Items in the largest of these batches."""


class Submission:
    """The items of one request. Belongs to the event loop's thread.

    Await `rows()` once. Whoever stops waiting calls `abandon()`: items that still
    wait leave the queue, rows that still come are dropped, batch mates notice
    nothing.
    """

    __slots__ = (
        *("_done", "_leave", "_left", "_rows"),
        *("deadline_s", "items", "timings", "want_pooled"),
    )

    def __init__(
        self,
        encodings: Sequence[Sequence[int]],
        *,
        priority: Priority,
        want_pooled: bool,
        deadline_s: float,
        now_s: float,
        rank_s: float,
        loop: asyncio.AbstractEventLoop,
        leave: Callable[[Submission], None],
    ) -> None:
        self.want_pooled = want_pooled
        self.deadline_s = deadline_s
        self.timings = SubmissionTimings()
        self.items = [
            Item(ids, index, self, now_s, rank_s, priority) for index, ids in enumerate(encodings)
        ]
        self._rows: list[Row | None] = [None] * len(self.items)
        self._left = len(self.items)
        self._leave = leave
        self._done: asyncio.Future[None] = loop.create_future()

    async def rows(self) -> list[Row]:
        """The items' vectors, float32[D] each, in the request's order.

        Raises:
            ShoalError: What the first item that failed failed with.
        """
        try:
            await self._done
        finally:
            self.abandon()
        return [row for row in self._rows if row is not None]

    def abandon(self) -> None:
        """Nobody waits any longer. Idempotent."""
        if not self._done.done():
            self._done.cancel()
        if self._left:
            self._leave(self)

    def deliver(self, item: Item, row: Row) -> None:
        """Take the row of one item."""
        self._rows[item.index] = row
        self._left -= 1
        if self._left == 0 and not self._done.done():
            self._done.set_result(None)

    @property
    def failed(self) -> bool:
        """Whether nobody is to be answered any longer, though items may be left."""
        return self._done.done() and self._left > 0

    def fail(self, error: ShoalError) -> None:
        """One item failed, and with it the request; the first failure is told."""
        if not self._done.done():
            self._done.set_exception(error)
            # The caller may leave in this very moment; asyncio need not complain.
            self._done.exception()
