"""Which batches a sweep measures: from what was asked for, within limits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal_server.batching.policy import BatchLimits
from shoal_server.errors import InvalidInput

MAX_SIZES = 16
"""Different batch sizes in one sweep, and different lengths."""
MAX_ITEMS = 1024
LEAST_RUNS, MOST_RUNS = 3, 100
DEFAULT_RUNS = 10
_SHORTEST_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Order:
    """A sweep as it is asked for; empty and 0: as usual."""

    model: str = ""
    batch_sizes: Sequence[int] = ()
    lengths: Sequence[int] = ()
    max_batch_tokens: int = 0
    runs: int = 0
    max_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A batch of texts of one length."""

    items: int
    length: int
    """Tokens of each item."""

    @property
    def tokens(self) -> int:
        """Of the whole batch."""
        return self.items * self.length

    @property
    def squares(self) -> int:
        """Pairs of places that attention relates."""
        return self.items * self.length**2


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is going to be measured, and how."""

    shapes: tuple[Shape, ...]
    """The smallest first, so that what a sweep that ends early has measured is of use."""
    too_large: tuple[Shape, ...]
    """Left out: more tokens than a batch of this sweep may have."""
    runs: int
    max_share: float


def plan_sweep(
    order: Order, limits: BatchLimits, *, alone: bool, max_tokens: int, max_share: float
) -> Sweep:
    """The sweep for an order.

    Args:
        order: What was asked for.
        limits: What the server lets into a batch of this model now.
        alone: Whether the model's texts never share a batch.
        max_tokens: The longest text that the model takes.
        max_share: The most that may be asked for of a slot's time.

    Raises:
        InvalidInput: Something of the order is out of its limits.
    """
    _check(order, max_tokens, max_share)
    sizes = sorted(set(order.batch_sizes)) or _usual_sizes(limits, alone=alone)
    lengths = sorted(set(order.lengths)) or _usual_lengths(max_tokens)
    # A text that is longer than a batch may be runs alone.
    most = order.max_batch_tokens or max(limits.max_tokens, max_tokens)
    shapes = [Shape(items, length) for items in sizes for length in lengths]
    shapes.sort(key=lambda shape: (shape.tokens, shape.length))
    sweep = Sweep(
        shapes=tuple(shape for shape in shapes if shape.tokens <= most),
        too_large=tuple(shape for shape in shapes if shape.tokens > most),
        runs=order.runs or DEFAULT_RUNS,
        max_share=order.max_share or max_share,
    )
    if not sweep.shapes:
        raise InvalidInput(
            "max_batch_tokens", f"{most}, the smallest batch asked for has {shapes[0].tokens}"
        )
    return sweep


def _usual_sizes(limits: BatchLimits, *, alone: bool) -> list[int]:
    """Powers of two, once beyond what is let in now: it may be too little."""
    most = 1 if alone else min(MAX_ITEMS, 2 * limits.max_items)
    return [*_powers(1, most - 1), most]


def _usual_lengths(max_tokens: int) -> list[int]:
    return [*_powers(_SHORTEST_TOKENS, max_tokens - 1), max_tokens]


def _powers(first: int, most: int) -> list[int]:
    found = []
    while first <= most:
        found.append(first)
        first *= 2
    return found


def _check(order: Order, max_tokens: int, max_share: float) -> None:
    _check_all("batch_sizes", order.batch_sizes, MAX_ITEMS, "items in a batch")
    _check_all("lengths", order.lengths, max_tokens, "tokens, the model's maximum")
    if order.runs and not LEAST_RUNS <= order.runs <= MOST_RUNS:
        raise InvalidInput("runs", f"{order.runs}, from {LEAST_RUNS} to {MOST_RUNS} can be had")
    # Written so that NaN is refused, too.
    if order.max_share and not 0 < order.max_share <= max_share:
        raise InvalidInput(
            "max_share",
            f"{order.max_share:g}, above 0 and at most {max_share:g} (profile_max_share)",
            metadata={"limit": "profile_max_share", "limit_value": max_share},
        )


def _check_all(field: str, values: Sequence[int], most: int, what: str) -> None:
    if len(set(values)) > MAX_SIZES:
        raise InvalidInput(field, f"{len(set(values))} different ones, at most {MAX_SIZES}")
    for index, value in enumerate(values):
        if not 1 <= value <= most:
            raise InvalidInput(f"{field}[{index}]", f"{value}, from 1 to {most} {what}")
