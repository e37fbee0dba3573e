"""What a run costs, as far as the policy needs to know.

    seconds = fixed + per_token · tokens + per_square · items · longest²

`fixed` is what every run pays (fetching the weights from memory, launching the graph's
nodes, crossing threads), `per_token` what each token adds, and `per_square` what
attention adds, which relates all places of a text's row with each other. A graph computes
padding as if it were tokens, and for it `tokens` = items · longest; for one that is free of
padding they are those of the texts, and a fifth of the places beside them, since attention
still moves the whole row.

Two facts follow. A batch is *large enough* when the fixed part is a small share of
it: beyond that, waiting for more mates buys nothing. And an item is worth taking along
only while what it adds is less than a run of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

# A batch whose fixed cost is below this share has all of batching's gain that
# can be told from noise.
FIXED_SHARE = 0.03
# How much of its past the model keeps from one run to the next: the last few
# hundred runs count, so that it follows a machine that slows down.
_MEMORY = 0.995
# Runs between two fits; solving costs as much as forming several batches.
_FIT_EVERY = 32
# A run that took longer than so many times what was expected was held up by something
# else, or the machine has become slower: it counts as that much. Many such say which.
_OUTLIER = 4.0
# What attention costs before it was seen: all-MiniLM-L6-v2 has about 1/600.
_SQUARE_PER_TOKEN = 1 / 600
# Of how many runs the first guess has the weight. It decides only what the runs
# leave open: from texts of one length nobody can tell the terms apart.
_GUESS_WEIGHT = 0.05
# What a place of padding costs, of a token, where the graph is free of it: 0.21 for
# all-MiniLM-L6-v2 (loadtests/run_cost.py: 32 texts of unlike and of one length).
PADDING_SHARE = 0.2
_LEAST_S = 1e-9
# Of a run, whatever a clock says.
_SHORTEST_S = 1e-6


@dataclass(frozen=True, slots=True)
class RunSample:
    """One run that was timed."""

    items: int
    tokens: int
    """That were computed: with padding, unless the graph is free of it."""
    longest: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RunCost:
    """Cost of a run of one session, on one slot."""

    fixed_s: float
    per_token_s: float
    per_square_s: float = 0.0
    padding_free: bool = False
    """Whether a place of padding costs only its part of attention."""

    def seconds(self, items: int, tokens: int, longest: int) -> float:
        """Predicted time of a run.

        Args:
            items: In the batch.
            tokens: Of the items, without padding.
            longest: Tokens of the longest item.
        """
        return (
            self.fixed_s
            + self.per_token_s * self.paid_tokens(items, tokens, longest)
            + self.per_square_s * items * longest * longest
        )

    def paid_tokens(self, items: int, tokens: int, longest: int) -> float:
        """What a run pays for, in tokens."""
        places = items * longest
        return _paid(tokens if self.padding_free else places, places)

    @property
    def enough_tokens(self) -> float:
        """Paid tokens after which a larger batch saves nothing to speak of."""
        return self.fixed_s * (1 / FIXED_SHARE - 1) / self.per_token_s


class CostModel:
    """Keeps a `RunCost` true to the runs that were seen. On the event loop.

    Recursive least squares with exponential forgetting, on the relative error, so
    that long runs do not drown the short ones from which `fixed_s` is read. The terms
    are in units of a first guess, towards which a small weight pulls them.
    """

    def __init__(self, seed: Sequence[RunSample]) -> None:
        """Fit the runs that were timed after loading.

        Args:
            seed: At least two, of different numbers of tokens.
        """
        seed = [replace(each, seconds=max(each.seconds, _SHORTEST_S)) for each in seed]
        self._guess = _guess(seed)
        # Of the normal equations, the upper triangle by rows, and the right-hand side.
        self._normal = [0.0] * 6
        self._moment = [0.0] * 3
        self._runs = 0
        for sample in seed:
            self._add(sample)
        self.cost = self._fit()

    def observe(self, sample: RunSample) -> None:
        """Learn from a run."""
        cost = self.cost
        expected_s = (
            cost.fixed_s
            + cost.per_token_s * _paid(sample.tokens, sample.items * sample.longest)
            + cost.per_square_s * sample.items * sample.longest**2
        )
        if not 0 < sample.seconds < math.inf:
            return
        self._add(replace(sample, seconds=min(sample.seconds, _OUTLIER * expected_s)))
        self._runs += 1
        if self._runs % _FIT_EVERY == 0:
            self.cost = replace(self._fit(), padding_free=cost.padding_free)

    def set_padding_free(self, padding_free: bool) -> None:
        """Say what the graph that runs from now on does with padding."""
        if self.cost.padding_free != padding_free:
            self.cost = replace(self.cost, padding_free=padding_free)

    def _add(self, sample: RunSample) -> None:
        guess, seconds = self._guess, sample.seconds
        fixed = guess.fixed_s / seconds
        paid = _paid(sample.tokens, sample.items * sample.longest)
        tokens = guess.per_token_s * paid / seconds
        squares = guess.per_square_s * sample.items * sample.longest**2 / seconds
        normal, moment = self._normal, self._moment
        normal[0] = _MEMORY * normal[0] + fixed * fixed
        normal[1] = _MEMORY * normal[1] + fixed * tokens
        normal[2] = _MEMORY * normal[2] + fixed * squares
        normal[3] = _MEMORY * normal[3] + tokens * tokens
        normal[4] = _MEMORY * normal[4] + tokens * squares
        normal[5] = _MEMORY * normal[5] + squares * squares
        moment[0] = _MEMORY * moment[0] + fixed
        moment[1] = _MEMORY * moment[1] + tokens
        moment[2] = _MEMORY * moment[2] + squares

    def _fit(self) -> RunCost:
        """Least squares with no negative term: one below zero is left out."""
        a, b, c, d, e, f = self._normal
        normal = np.array([[a, b, c], [b, d, e], [c, e, f]]) + _GUESS_WEIGHT * np.eye(3)
        moment = np.array(self._moment) + _GUESS_WEIGHT
        chosen = [0, 1, 2]
        while True:
            values = np.zeros(3)
            values[chosen] = np.linalg.solve(normal[np.ix_(chosen, chosen)], moment[chosen])
            negative = [index for index in chosen if values[index] < 0]
            if not negative or len(chosen) == 1:
                break
            # The quadratic term first: it is the hardest to tell from the linear one.
            chosen.remove(max(negative))
        guess = self._guess
        return RunCost(
            fixed_s=max(float(values[0]) * guess.fixed_s, _LEAST_S),
            per_token_s=max(float(values[1]) * guess.per_token_s, _LEAST_S),
            per_square_s=max(float(values[2]) * guess.per_square_s, 0.0),
        )


def _paid(computed: int, places: int) -> float:
    return computed + max(0.0, PADDING_SHARE * (places - computed))


def _guess(seed: Sequence[RunSample]) -> RunCost:
    """Fixed part and slope from the smallest and the largest run."""
    smallest = min(seed, key=lambda each: each.tokens)
    largest = max(seed, key=lambda each: each.tokens)
    tokens = largest.tokens - smallest.tokens
    per_token_s = (largest.seconds - smallest.seconds) / tokens if tokens else 0.0
    mean_s = largest.seconds / max(1, largest.tokens)
    # Noise may make the larger run the faster one, or the slope too steep to leave
    # anything for the fixed part: both are kept within what can be.
    per_token_s = min(max(per_token_s, mean_s / 4, _LEAST_S), max(mean_s, _LEAST_S))
    fixed_s = max(smallest.seconds - per_token_s * smallest.tokens, smallest.seconds / 10, _LEAST_S)
    return RunCost(fixed_s, per_token_s, per_token_s * _SQUARE_PER_TOKEN)
