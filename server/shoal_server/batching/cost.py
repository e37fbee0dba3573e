"""What a run costs, as far as the policy needs to know.

    seconds(items, length) = fixed + items · length · (per_token + per_token_length · length)

`fixed` is what every run pays (launching the graph's nodes, crossing threads,
kernels too small to fill the device), `per_token` what each padded token adds, and
`per_token_length` what attention adds, which grows with the square of the length.

Two facts follow. A batch is *large enough* when the fixed part is a small share of
it: beyond that, waiting for more mates buys nothing. And an item is worth padding
for only while the padding costs less than a run of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A batch whose fixed cost is below this share has all of batching's gain that
# can be told from noise.
FIXED_SHARE = 0.03
# How much of its past the model keeps from one run to the next: the last few
# hundred runs count, so that it follows a machine that slows down.
_MEMORY = 0.995
# Runs between two fits; solving costs as much as forming several batches.
_FIT_EVERY = 32
# A run that took so much longer than expected was held up by something else.
_OUTLIER = 4.0


@dataclass(frozen=True, slots=True)
class RunSample:
    """One run that was timed."""

    items: int
    length: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RunCost:
    """Cost of a run of one session, on one slot."""

    fixed_s: float
    per_token_s: float
    per_token_length_s: float = 0.0

    def token_s(self, length: int) -> float:
        """Cost of one token in a run padded to `length`."""
        return self.per_token_s + self.per_token_length_s * length

    def seconds(self, items: int, length: int) -> float:
        """Predicted time of a run of `items` padded to `length`."""
        return self.fixed_s + items * length * self.token_s(length)

    def enough_items(self, length: int) -> int:
        """Items of `length` after which a larger batch saves nothing to speak of."""
        per_item = self.token_s(length) * length
        if per_item <= 0:
            return 1 << 30
        return max(1, math.ceil(self.fixed_s * (1 / FIXED_SHARE - 1) / per_item))


class CostModel:
    """Keeps a `RunCost` true to the runs that were seen. On the event loop.

    Recursive least squares with exponential forgetting, on the relative error, so
    that long runs do not drown the short ones from which `fixed_s` is read.
    """

    def __init__(self, seed: Sequence[RunSample]) -> None:
        """Fit the runs that were timed after loading.

        Args:
            seed: At least two, of different numbers of tokens.
        """
        self._normal = np.zeros((3, 3))
        self._moment = np.zeros(3)
        self._runs = 0
        for sample in seed:
            self._add(sample)
        self.cost = self._fit()

    def observe(self, items: int, length: int, seconds: float) -> None:
        """Learn from a run of `items` padded to `length`."""
        if seconds <= 0 or seconds > _OUTLIER * self.cost.seconds(items, length):
            return
        self._add(RunSample(items, length, seconds))
        self._runs += 1
        if self._runs % _FIT_EVERY == 0:
            self.cost = self._fit()

    def _add(self, sample: RunSample) -> None:
        tokens = sample.items * sample.length
        row = np.array([1.0, tokens, tokens * sample.length]) / sample.seconds
        self._normal = _MEMORY * self._normal + np.outer(row, row)
        self._moment = _MEMORY * self._moment + row

    def _fit(self) -> RunCost:
        """Least squares with no negative coefficient: one below zero is left out."""
        chosen = [0, 1, 2]
        while True:
            values = np.zeros(3)
            normal = self._normal[np.ix_(chosen, chosen)]
            values[chosen] = np.linalg.lstsq(normal, self._moment[chosen], rcond=1e-12)[0]
            negative = [index for index in chosen if values[index] < 0]
            if not negative or len(chosen) == 1:
                break
            # The quadratic term first: it is the hardest to tell from the linear one.
            chosen.remove(max(negative))
        return RunCost(
            fixed_s=max(float(values[0]), 1e-6),
            per_token_s=max(float(values[1]), 1e-9),
            per_token_length_s=max(float(values[2]), 0.0),
        )
