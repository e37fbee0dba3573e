"""Which models will be asked for soon: a pure function of the weeks before.

For the hour h that (a part of) the horizon lies in, a pattern knows, with older weeks
counting less (`history`): the weeks W since the model was first asked for, the weeks U
of these in which it was asked for in h, and the requests R in those. Then

    p = U / (W + 1)     how likely h is an hour in which it is asked for
    r = R / U           requests in such an hour

The 1 is a week that nobody saw, in which it was not asked for: one week alone is a hint
(0.5), not a pattern. Requests within such an hour count as a Poisson stream, so that of an
hour of which the horizon has the share s

    P(at least one) = p · (1 − exp(−r · s))        expected = p · r · s

Hours of one horizon are not independent: a week in which the less usual one is used counts as
one in which the more usual one is, too. So with p₁ ≥ p₂ ≥ … and pₙ₊₁ = 0

    P(at least one) = Σ (pₖ − pₖ₊₁) · (1 − exp(−(r₁ · s₁ + … + rₖ · sₖ)))

What was asked for in this hour so far says nothing here: that is in memory anyway, or has
just left it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from shoal_server.usage.history import Pattern, hour_of

_HOUR_S = 3600.0
_UNSEEN_WEEKS = 1.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is expected of one model."""

    name: str
    """As callers ask for it."""
    probability: float
    """Of at least one request within the horizon, in [0, 1]."""
    requests: float
    """Expected within the horizon."""


def predict(patterns: Mapping[str, Pattern], now_s: float, horizon_s: float) -> list[Prediction]:
    """What the weeks before let expect from now until the horizon.

    Args:
        patterns: By name.
        now_s: Since the epoch.
        horizon_s: How far to look ahead.

    Returns:
        The most probable first, then by requests and name; names of which nothing is
        expected are left out.
    """
    shares = list(_shares(now_s, horizon_s))
    found = [_of(name, pattern, shares) for name, pattern in patterns.items()]
    found = [each for each in found if each.probability > 0]
    return sorted(found, key=lambda each: (-each.probability, -each.requests, each.name))


def _of(name: str, pattern: Pattern, shares: list[tuple[int, float]]) -> Prediction:
    hours: list[tuple[float, float]] = []
    for hour, share in shares:
        weeks, used, requests = pattern.before(hour)
        if used:
            # A clock that went back may show more weeks with it than there were.
            is_used = used / (max(weeks, used) + _UNSEEN_WEEKS)
            hours.append((is_used, requests / used * share))
    hours.sort(reverse=True)
    probability = expected = in_all = 0.0
    for (is_used, requests), (next_is_used, _) in pairwise([*hours, (0.0, 0.0)]):
        in_all += requests
        probability += (is_used - next_is_used) * -math.expm1(-in_all)
        expected += is_used * requests
    return Prediction(name, probability, expected)


def _shares(now_s: float, horizon_s: float) -> Iterator[tuple[int, float]]:
    """The hours that the horizon touches, and how much of each lies within it."""
    end_s = now_s + horizon_s
    for hour in range(hour_of(now_s), hour_of(end_s) + 1):
        begin_s = hour * _HOUR_S
        share = (min(end_s, begin_s + _HOUR_S) - max(now_s, begin_s)) / _HOUR_S
        if share > 0:
            yield hour, share
