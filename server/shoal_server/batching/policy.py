"""Which waiting items run together, and whether to wait: one pure function.

The oldest items that wait are partitioned by length so that the predicted time of
running them all is least; the batch that holds the very oldest runs. So nothing
starves, an item above every budget still runs, and padding is paid only where it
costs less than one more run. See docs/architecture.md for the formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal_server.batching.cost import RunCost
from shoal_server.batching.queue import Item, WaitingItems

# Items that one decision looks at, the oldest ones: enough to find mates of like
# length, few enough for the decision to cost the same however many wait.
HORIZON = 128


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a batch may be."""

    max_items: int
    max_tokens: int
    """Padding included."""
    max_padding_waste: float
    """Share of the batch's tokens that may be padding."""
    max_wait_s: float


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How requests have been coming, for the decision whether to wait."""

    last_s: float
    """When the last one arrived."""
    gap_s: float
    """Typical time between two; infinite when unknown."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How runs may be laid out on the device now."""

    free_slots: int
    """At least 1."""
    slots: int
    wide_speedup: float = 1.0
    """How much faster a run is that takes all slots; 1 where there is none such."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Run `items` now, or look again at `wait_until_s`; neither: nothing waits."""

    items: tuple[Item, ...] = ()
    wide: bool = False
    """Take all slots for one run."""
    wait_until_s: float | None = None


def decide(
    waiting: WaitingItems,
    now_s: float,
    limits: BatchLimits,
    cost: RunCost,
    arrivals: Arrivals,
    layout: Layout,
) -> Decision:
    """Form the next batch, or say until when to wait.

    Args:
        waiting: Not changed.
        now_s: On the clock of the items' arrival.
        limits: What a batch may be.
        cost: What a run costs on one slot.
        arrivals: How requests have been coming.
        layout: What is free.
    """
    oldest = waiting.oldest(HORIZON)
    if not oldest:
        return Decision()
    items = _best_batch(oldest, _Caps(limits, cost, layout, len(waiting)), limits, cost)
    longest = items[-1].length
    if len(items) == len(waiting):
        if len(items) < min(limits.max_items, cost.enough_items(longest)):
            until_s = _wait_until(waiting, limits, cost, arrivals)
            if until_s > now_s:
                return Decision(wait_until_s=until_s)
        return Decision(items, wide=_pays_wide(len(items), longest, cost, layout))
    return Decision(items)


class _Caps:
    """The most items of a batch, by the length that it is padded to."""

    def __init__(self, limits: BatchLimits, cost: RunCost, layout: Layout, waiting: int) -> None:
        self._limits = limits
        self._cost = cost
        self._free_slots = layout.free_slots
        self._waiting = waiting
        self._known: dict[int, int] = {}

    def of(self, length: int) -> int:
        cap = self._known.get(length)
        if cap is None:
            cap = self._known[length] = self._find(length)
        return cap

    def _find(self, length: int) -> int:
        limits = self._limits
        enough = min(
            limits.max_items,
            max(1, limits.max_tokens // length),
            self._cost.enough_items(length),
        )
        if self._free_slots == 1:
            return enough
        # Whole rounds over the free slots, so that they finish together: 32 items,
        # 2 slots and 13 as enough make four batches of 8, not 13 + 13 + 6.
        rounds = math.ceil(self._waiting / (self._free_slots * enough))
        return math.ceil(self._waiting / (self._free_slots * rounds))


def _best_batch(
    oldest: Sequence[Item], caps: _Caps, limits: BatchLimits, cost: RunCost
) -> tuple[Item, ...]:
    """The batch of the oldest item in the cheapest partition of `oldest`.

    Some cheapest partition is contiguous in the order of lengths (exchanging two
    items between batches so that the shorter ones are together raises no batch's
    longest), so dynamic programming over that order finds it.
    """
    if len(oldest) == 1:
        return (oldest[0],)
    items = sorted(oldest, key=_by_length)
    sizes = _cheapest_sizes([item.length for item in items], caps, limits, cost)
    first = _goes_first(oldest)
    end = len(items)
    while True:
        begin = end - sizes[end]
        batch = items[begin:end]
        if first in batch:
            return tuple(batch)
        end = begin


def _cheapest_sizes(
    lengths: Sequence[int], caps: _Caps, limits: BatchLimits, cost: RunCost
) -> list[int]:
    """For each n, the size of the last batch when the first n lengths cost least.

    Args:
        lengths: Ascending.
        caps: The most items of a batch.
        limits: What a batch may be.
        cost: What a run costs.
    """
    fixed_s = cost.fixed_s
    least = [0.0] * (len(lengths) + 1)
    sizes = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        longest = lengths[end - 1]
        token_s = cost.token_s(longest)
        # A shorter item is worth padding for until that costs more than its own run.
        shortest = longest - fixed_s / token_s
        item_s = longest * token_s
        most_padding = limits.max_padding_waste * longest
        best, best_size, padding = math.inf, 1, 0
        for size in range(1, min(end, caps.of(longest)) + 1):
            length = lengths[end - size]
            padding += longest - length
            if size > 1 and (length < shortest or padding > most_padding * size):
                break
            total = least[end - size] + fixed_s + size * item_s
            if total < best:
                best, best_size = total, size
        least[end], sizes[end] = best, best_size
    return sizes


def _goes_first(oldest: Sequence[Item]) -> Item:
    """The oldest item; of those that came with it, the longest.

    Starting with the long ones lets the slots finish a large request together.
    """
    rank_s = oldest[0].rank_s
    return max(
        (item for item in oldest if item.rank_s == rank_s), key=_by_length, default=oldest[0]
    )


def _by_length(item: Item) -> int:
    return item.length


def _wait_until(
    waiting: WaitingItems, limits: BatchLimits, cost: RunCost, arrivals: Arrivals
) -> float:
    """When waiting for mates stops to pay; in the past when it does not pay at all.

    A mate saves at most a run's fixed cost. So waiting is worth it only while the
    next one is expected within that, and for no longer than that after the last.
    """
    since_s = waiting.longest_waiting_since_s()
    if since_s is None or arrivals.gap_s >= cost.fixed_s:
        return -math.inf
    return min(since_s + limits.max_wait_s, arrivals.last_s + cost.fixed_s)


def _pays_wide(items: int, length: int, cost: RunCost, layout: Layout) -> bool:
    """Whether one run on all slots ends sooner than the items spread over them."""
    if layout.wide_speedup <= 1.0 or layout.free_slots < layout.slots:
        return False
    spread_s = cost.seconds(math.ceil(items / layout.slots), length)
    return cost.seconds(items, length) / layout.wide_speedup < spread_s
