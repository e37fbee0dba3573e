"""Which waiting items run together, and whether to wait: one pure function.

The oldest items that wait are partitioned by length so that the predicted time of
running them all is least; the batch that holds the very oldest runs. So nothing
starves, an item above every budget still runs, and padding is paid only where it
costs less than one more run. See docs/architecture.md for the formula.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from shoal_server.batching.cost import PADDING_SHARE, RunCost
from shoal_server.batching.load import Load
from shoal_server.batching.queue import Item, WaitingItems

# Items that one decision looks at, the oldest ones: enough to find mates of like
# length, few enough for the decision to cost the same however many wait. Where a batch
# may hold more, so many.
HORIZON = 64


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
    load: Load,
    layout: Layout,
) -> Decision:
    """Form the next batch, or say until when to wait.

    Args:
        waiting: Not changed.
        now_s: On the clock of the items' arrival.
        limits: What a batch may be.
        cost: What a run costs on one slot.
        load: What has been coming.
        layout: What is free.
    """
    oldest = waiting.oldest(max(HORIZON, limits.max_items))
    if not oldest:
        return Decision()
    share = _share(max(load.tokens, waiting.tokens), cost.enough_tokens, layout.slots)
    items = _best_batch(oldest, limits, cost, share)
    if len(items) < len(waiting):
        return Decision(items)
    longest = items[-1].length
    tokens = sum(item.length for item in items)
    if (
        len(items) < min(limits.max_items, load.items / layout.slots)
        and tokens < share
        and cost.paid_tokens(len(items), tokens, longest) < cost.enough_tokens
    ):
        until_s = _wait_until(waiting, limits, cost, load)
        if until_s > now_s:
            return Decision(wait_until_s=until_s)
    return Decision(items, wide=_pays_wide(len(items), tokens, longest, cost, layout))


def _share(tokens: float, enough_tokens: float, slots: int) -> float:
    """Tokens after which a batch is large enough.

    Whole rounds over the slots, so that they finish together: 400 tokens, 2 slots and
    160 as enough make four batches of 100, not 160 + 160 + 80. What is on its way to or
    from its caller counts as waiting: of 8 callers, each slot serves 4 at a time.
    """
    rounds = math.ceil(tokens / (slots * enough_tokens))
    return tokens / (slots * rounds)


def _best_batch(
    oldest: Sequence[Item], limits: BatchLimits, cost: RunCost, share: float
) -> tuple[Item, ...]:
    """The batch of the oldest item in the cheapest partition of `oldest`.

    Some cheapest partition into batches of given sizes is contiguous in the order of
    lengths (exchanging two items between batches so that the shorter ones are together
    raises no batch's longest), so dynamic programming over that order finds it. Where
    "large enough" cuts by tokens that holds to within a few percent.
    """
    if len(oldest) == 1:
        return (oldest[0],)
    items = sorted(oldest, key=_by_length)
    sizes = _cheapest_sizes([item.length for item in items], limits, cost, share)
    first = _goes_first(oldest)
    end = len(items)
    while True:
        begin = end - sizes[end]
        batch = items[begin:end]
        if first in batch:
            return tuple(batch)
        end = begin


def _cheapest_sizes(
    lengths: Sequence[int], limits: BatchLimits, cost: RunCost, share: float
) -> list[int]:
    """For each n, the size of the last batch when the first n lengths cost least.

    Args:
        lengths: Ascending.
        limits: What a batch may be.
        cost: What a run costs.
        share: Tokens, padding not counted, at which a batch is large enough.
    """
    fixed_s, enough, pads = cost.fixed_s, cost.enough_tokens, not cost.padding_free
    least_content = 1.0 - limits.max_padding_waste
    tokens = [0, *accumulate(lengths)]
    # What a row costs in a batch of which its length is the longest. Without padding the
    # most of its tokens' cost is the same in any batch, and need not be compared.
    place_s = cost.per_token_s * (1.0 if pads else PADDING_SHARE)
    rows_s = [length * (place_s + cost.per_square_s * length) for length in lengths]
    large_enough = share if pads else min(share, enough)
    least = [0.0] * (len(lengths) + 1)
    sizes = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        longest, row_s = lengths[end - 1], rows_s[end - 1]
        most_items = min(limits.max_items, max(1, limits.max_tokens // longest))
        if pads:
            most_items = min(most_items, math.ceil(enough / longest))
        begin = max(
            0,
            end - most_items,
            bisect_right(tokens, tokens[end] - large_enough) - 1,
            # A shorter item comes along until that costs more than its own run.
            bisect_left(rows_s, row_s - fixed_s, hi=end - 1),
        )
        best_s, best = math.inf, end - 1
        for at in range(end - 1, begin - 1, -1):
            if pads and (end - at) * longest * least_content > tokens[end] - tokens[at]:
                break
            total_s = least[at] - at * row_s
            if total_s < best_s:
                best_s, best = total_s, at
        least[end] = best_s + end * row_s + fixed_s
        sizes[end] = end - best
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


def _wait_until(waiting: WaitingItems, limits: BatchLimits, cost: RunCost, load: Load) -> float:
    """When waiting for mates stops to pay; in the past when it does not pay at all.

    A mate saves at most a run's fixed cost. So waiting is worth it only while the
    next one is expected within that, and for no longer than that after the last.
    """
    since_s = waiting.longest_waiting_since_s()
    if since_s is None or load.next_s >= cost.fixed_s:
        return -math.inf
    return min(since_s + limits.max_wait_s, load.last_arrival_s + cost.fixed_s)


def _pays_wide(items: int, tokens: int, longest: int, cost: RunCost, layout: Layout) -> bool:
    """Whether one run on all slots ends sooner than the items spread over them."""
    if layout.wide_speedup <= 1.0 or layout.free_slots < layout.slots:
        return False
    spread_s = cost.seconds(
        math.ceil(items / layout.slots), math.ceil(tokens / layout.slots), longest
    )
    return cost.seconds(items, tokens, longest) / layout.wide_speedup < spread_s
