"""From what was measured to limits of a batch. Pure.

Throughput rises with the batch until what every run pays is a small share of it, and
then stays, while latency goes on rising in proportion. So the limits are the least with
which every length still gets a batch of at least `GOOD` of the best throughput at that
length. For each length that is one batch, the smallest such one; the limit of items is
the largest of these in items (short texts decide), the limit of tokens the largest in
tokens (long ones mostly do). Where such limits would let in a batch that does not fit
into memory, the limit of tokens is lower. Batches are compared by their fastest runs,
since whatever else the machine does only slows runs down.

Two batches whose difference is within the noise of both, where that is no more than
`MOST_NOISE`, are as good as each other. Where the best batch of a length is noisier than
that, the length tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal_server.profiling.plan import Shape
from shoal_server.profiling.profile import Cell, NoSuggestion, Suggestion

GOOD = 0.95
"""Share of the best throughput that is as good as the best."""
MOST_NOISE = 0.1
"""What is noisier is taken for nothing."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """Of one length."""

    cell: Cell
    """The smallest that is as good as the best."""
    best: Cell


def suggest(
    cells: Sequence[Cell],
    *,
    slots: int,
    room_bytes: int | None,
    too_much: Sequence[Shape] = (),
    alone: bool = False,
) -> Suggestion | NoSuggestion:
    """Limits for the batches of a model.

    Args:
        cells: What was measured.
        slots: Runs that may go on at once; all of them may hold such a batch.
        room_bytes: Memory that all of them together may take; None: nobody knows.
        too_much: Batches that were not measured, for want of memory.
        alone: Whether the model's texts never share a batch.
    """
    fitting = [cell for cell in cells if _fits(cell, slots, room_bytes)]
    if not fitting:
        return NoSuggestion("no batch that was measured fits into memory")
    lengths = sorted({cell.shape.length for cell in fitting})
    choices = [_choose([c for c in fitting if c.shape.length == length]) for length in lengths]
    # Of texts that run alone there is nothing to compare.
    clear = [choice for choice in choices if alone or choice.best.noise <= MOST_NOISE]
    if not clear:
        return NoSuggestion(
            "the runs of every best batch differ more than batches do (noise above "
            f"{MOST_NOISE:.0%}); measure again when the machine is quieter, or with more runs"
        )
    by_items = max(clear, key=lambda each: (each.cell.shape.items, each.cell.shape.length))
    by_tokens = max(clear, key=lambda each: (each.cell.shape.tokens, each.cell.shape.length))
    max_items, max_tokens = by_items.cell.shape.items, by_tokens.cell.shape.tokens
    reasons = [f"The items are those of {_why(by_items)}; no other length needs more."]
    if by_tokens is by_items:
        reasons.append("No other length needs more tokens either.")
    else:
        reasons.append(f"The tokens are those of {_why(by_tokens)}; no other length needs more.")
    reasons.append(
        "Batches are compared by their fastest runs. The noise is by how much the fastest of one "
        "half of the runs and of the other differ; smaller differences count as none."
    )
    if unclear := [each.best.shape.length for each in choices if each not in clear]:
        reasons.append(
            f"At {_listed(unclear)} tokens the noise of the best batch is above {MOST_NOISE:.0%}: "
            "nothing was concluded there. Measure again when the machine is quieter."
        )
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
    elif edges := [each.cell.shape.length for each in clear if _is_edge(each.cell, cells)]:
        reasons.append(
            f"At {_listed(edges)} tokens no larger batch was measured: one may be better still."
        )
    return Suggestion(max_items, max_tokens, tuple(reasons))


def _fits(cell: Cell, slots: int, room_bytes: int | None) -> bool:
    return room_bytes is None or slots * (cell.memory_bytes or 0) <= room_bytes


def _choose(cells: Sequence[Cell]) -> _Choice:
    """Of the cells of one length."""
    best = max(cells, key=_items_per_s)
    good = [cell for cell in cells if _items_per_s(cell) >= _enough(cell, best)]
    return _Choice(min(good, key=lambda cell: cell.shape.items), best)


def _enough(cell: Cell, best: Cell) -> float:
    """Items a second from which a batch is as good as the best one.

    A batch that is too noisy to tell has to be as good without: too low a limit costs throughput,
    too high a one only makes runs longer.
    """
    noise = cell.noise + best.noise
    share = min(GOOD, 1 - noise) if noise <= MOST_NOISE else GOOD
    return share * _items_per_s(best)


def _items_per_s(cell: Cell) -> float:
    return cell.shape.items / cell.least_s


def _is_edge(cell: Cell, cells: Sequence[Cell]) -> bool:
    """Whether it may be good only because nothing larger was measured."""
    sizes = [each.shape.items for each in cells if each.shape.length == cell.shape.length]
    return cell.shape.items == max(sizes)


def _why(choice: _Choice) -> str:
    """What was measured of a batch, and of the best one of its length."""
    cell, best = choice.cell, choice.best
    figures = (
        f"{_words(cell.shape)}, whose fastest of {cell.runs} runs took {cell.least_s * 1000:.3g} ms"
        f" ({_items_per_s(cell):.0f} items/s, noise {cell.noise:.1%}; "
        f"median {cell.p50_s * 1000:.3g} ms, p95 {cell.p95_s * 1000:.3g} ms)"
    )
    if cell is best:
        return f"{figures}, the best at that length"
    share = _items_per_s(cell) / _items_per_s(best)
    return (
        f"{figures}: the smallest as good as the best at that length, with {share:.0%} of the "
        f"items/s of {_words(best.shape)} (noise {best.noise:.1%})"
    )


def _words(shape: Shape) -> str:
    return f"{shape.items} x {shape.length} tokens"


def _listed(numbers: Sequence[int]) -> str:
    words = [str(number) for number in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
