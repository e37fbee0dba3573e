"""The items that wait for one model."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from shoal_server.core import Priority

if TYPE_CHECKING:
    from shoal_server.batching.submission import Submission


class Item:
    """One input on its way to a batch. Compared by identity.

    Attributes:
        ids: Token ids, special tokens included.
        length: Places it takes in a batch: its ids, or one of padding when it has none.
        arrived_s: When its request was enqueued, on the loop's clock.
        rank_s: Arrival, shifted by the priority's head start; the least goes first.
        submission: The request it belongs to.
        index: Its place in that request.
    """

    __slots__ = ("arrived_s", "ids", "index", "length", "priority", "rank_s", "submission")

    def __init__(
        self,
        ids: Sequence[int],
        index: int,
        submission: Submission,
        arrived_s: float,
        rank_s: float,
        priority: Priority,
    ) -> None:
        self.ids = ids
        self.length = max(1, len(ids))
        self.index = index
        self.submission = submission
        self.arrived_s = arrived_s
        self.rank_s = rank_s
        self.priority = priority

    def __repr__(self) -> str:
        return f"Item(length={self.length}, index={self.index}, priority={self.priority.name})"


class WaitingItems:
    """Items of one model that wait, in the order in which they go first.

    Linked dictionaries, one a priority, so that adding an item, taking one from the
    middle (its caller left) and finding the oldest cost the same whether ten items
    wait or a hundred thousand. Belongs to the event loop's thread.
    """

    def __init__(self) -> None:
        self._by_priority: dict[Priority, OrderedDict[Item, None]] = {
            priority: OrderedDict() for priority in Priority
        }
        self.tokens = 0
        """Of all items, without padding."""

    def __len__(self) -> int:
        return sum(map(len, self._by_priority.values()))

    def __repr__(self) -> str:
        return f"WaitingItems({len(self)} items, {self.tokens} tokens)"

    def add(self, item: Item) -> None:
        """Let `item` wait. Items of one priority must come in order of arrival."""
        self._by_priority[item.priority][item] = None
        self.tokens += item.length

    def remove(self, item: Item) -> bool:
        """Take `item` out; False when it does not wait here."""
        if self._by_priority[item.priority].pop(item, self) is self:
            return False
        self.tokens -= item.length
        return True

    def oldest(self, most: int) -> list[Item]:
        """The items that go first, by rank, at most so many."""
        queues = [queue for queue in self._by_priority.values() if queue]
        if len(queues) == 1:
            return list(islice(queues[0], most))
        return list(islice(heapq.merge(*queues, key=_rank), most))

    def longest_waiting_since_s(self) -> float | None:
        """When the item that waits longest arrived, whatever its priority."""
        return min(
            (next(iter(queue)).arrived_s for queue in self._by_priority.values() if queue),
            default=None,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not balance. For tests."""
        items = [item for queue in self._by_priority.values() for item in queue]
        assert self.tokens == sum(item.length for item in items), repr(self)  # noqa: S101
        for queue in self._by_priority.values():
            ranks = [item.rank_s for item in queue]
            assert ranks == sorted(ranks), repr(self)  # noqa: S101


def _rank(item: Item) -> float:
    return item.rank_s
