"""From what was measured to limits of a batch. Pure.

Throughput rises with the batch until what every run pays is a small share of it, and
then stays, while latency goes on rising in proportion. So the limits are the least with
which every length still gets a batch of at least `GOOD` of the best throughput at that
length. For each length that is one batch, the smallest such one; the limit of items is
the largest of these in items (short texts decide), the limit of tokens the largest in
tokens (long ones mostly do). Where such limits would let in a batch that does not fit
into memory, the limit of tokens is lower. Batches are compared by their fastest runs,
since whatever else the machine does only slows runs down.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal_server.profiling.plan import Shape
from shoal_server.profiling.profile import Cell, Suggestion

GOOD = 0.95
"""Share of the best throughput that is as good as the best."""


def suggest(
    cells: Sequence[Cell],
    *,
    slots: int,
    room_bytes: int | None,
    too_much: Sequence[Shape] = (),
    alone: bool = False,
) -> Suggestion | None:
    """Limits for the batches of a model.

    Args:
        cells: What was measured.
        slots: Runs that may go on at once; all of them may hold such a batch.
        room_bytes: Memory that all of them together may take; None: nobody knows.
        too_much: Batches that were not measured, for want of memory.
        alone: Whether the model's texts never share a batch.

    Returns:
        None when no cell was measured that fits into memory.
    """
    fitting = [cell for cell in cells if _fits(cell, slots, room_bytes)]
    if not fitting:
        return None
    good = [
        _smallest_good([cell for cell in fitting if cell.shape.length == length])
        for length in sorted({cell.shape.length for cell in fitting})
    ]
    by_items = max(good, key=lambda cell: (cell.shape.items, cell.shape.length))
    by_tokens = max(good, key=lambda cell: (cell.shape.tokens, cell.shape.length))
    max_items, max_tokens = by_items.shape.items, by_tokens.shape.tokens
    reasons = [
        f"{_words(by_items.shape)} is the smallest batch with {GOOD:.0%} of the best throughput "
        f"at that length ({_items_per_s(by_items):.0f} items/s); no other length needs more items.",
        f"{_words(by_tokens.shape)} is the one with most tokens "
        f"({_items_per_s(by_tokens) * by_tokens.shape.length:.0f} tokens/s); "
        f"such a run takes {by_tokens.p50_s * 1000:.3g} ms.",
        "Both are judged by the fastest runs.",
    ]
    refused = [*too_much, *(cell.shape for cell in cells if cell not in fitting)]
    let_in = [shape for shape in refused if shape.items <= max_items and shape.tokens <= max_tokens]
    if let_in:
        first = min(let_in, key=lambda shape: shape.tokens)
        max_tokens = first.tokens - 1
        reasons.append(
            f"Fewer tokens than that, since {_words(first)} in each of {slots} slots would take "
            "more memory than there is left."
        )
    if alone:
        reasons.append(
            "Texts of this model run alone, since its vectors depend on what is in their batch."
        )
    elif edges := [cell.shape.length for cell in good if _is_edge(cell, cells)]:
        reasons.append(
            f"At {_listed(edges)} tokens no larger batch was measured: one may be better still."
        )
    return Suggestion(max_items, max_tokens, tuple(reasons))


def _fits(cell: Cell, slots: int, room_bytes: int | None) -> bool:
    return room_bytes is None or slots * (cell.memory_bytes or 0) <= room_bytes


def _smallest_good(cells: Sequence[Cell]) -> Cell:
    """Of the cells of one length."""
    best = max(_items_per_s(cell) for cell in cells)
    good = [cell for cell in cells if _items_per_s(cell) >= GOOD * best]
    return min(good, key=lambda cell: cell.shape.items)


def _items_per_s(cell: Cell) -> float:
    return cell.shape.items / cell.least_s


def _is_edge(cell: Cell, cells: Sequence[Cell]) -> bool:
    """Whether it may be good only because nothing larger was measured."""
    sizes = [each.shape.items for each in cells if each.shape.length == cell.shape.length]
    return cell.shape.items == max(sizes)


def _words(shape: Shape) -> str:
    return f"{shape.items} x {shape.length} tokens"


def _listed(numbers: Sequence[int]) -> str:
    words = [str(number) for number in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
