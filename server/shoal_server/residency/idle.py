"""How long a session that nobody uses stays in memory: pure functions of what is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Uses closer together than this share of the time-out are one burst; only what lies
# between bursts says how soon the next one comes.
_BURST_SHARE = 0.01
# How much the last gap counts against all before it.
_GAP_WEIGHT = 0.25
# A gap of a Poisson stream is above three times its mean once in twenty.
_GAPS_WAITED = 3.0
# How far an adaptive time-out may go from the one that was set, either way.
_ADAPTIVE_RANGE = 4.0


@dataclass(frozen=True, slots=True)
class IdleRules:
    """The server's rules; a model's own time-out comes before them, a request's before that."""

    timeouts_s: Mapping[str, float]
    """By device; 0: never released for being idle."""
    adaptive: bool = False
    """Whether time-outs follow how often a model is asked for."""


@dataclass(slots=True)
class Rhythm:
    """How often a model is asked for, whether it was in memory or not."""

    last_use_s: float
    mean_gap_s: float | None = None
    """Exponential mean of the times between bursts of use."""

    def used(self, now_s: float, timeout_s: float) -> None:
        """Count a use of a model whose time-out, as set, is `timeout_s`."""
        gap_s, self.last_use_s = now_s - self.last_use_s, now_s
        if gap_s <= timeout_s * _BURST_SHARE:
            return
        if self.mean_gap_s is None:
            self.mean_gap_s = gap_s
        else:
            self.mean_gap_s += _GAP_WEIGHT * (gap_s - self.mean_gap_s)


def idle_limit_s(
    timeout_s: float, keep_alive_s: float | None, mean_gap_s: float | None = None
) -> float | None:
    """How long a session may be idle; None: for ever.

    Args:
        timeout_s: The model's own, else the server's; 0: for ever.
        keep_alive_s: What a request said last, which counts before all else; negative:
            for ever, 0: not at all.
        mean_gap_s: Of the model's rhythm; None: the time-out does not adapt.
    """
    if keep_alive_s is not None:
        return None if keep_alive_s < 0 else keep_alive_s
    if timeout_s == 0:
        return None
    return timeout_s if mean_gap_s is None else adapted_s(timeout_s, mean_gap_s)


def adapted_s(timeout_s: float, mean_gap_s: float) -> float:
    """A time-out that follows how often a model is asked for.

    Three mean gaps, so that the next use mostly finds the model, within a quarter and
    four times of the time-out that was set. A model that would be idle for longer than
    four times anyway is not worth waiting for, and leaves after a quarter.
    """
    shortest_s, longest_s = timeout_s / _ADAPTIVE_RANGE, timeout_s * _ADAPTIVE_RANGE
    if mean_gap_s > longest_s:
        return shortest_s
    return min(longest_s, max(shortest_s, _GAPS_WAITED * mean_gap_s))
