"""Totals of all time: what was counted before the server started, and since then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal_server.core import ModelKey
from shoal_server.statistics.counts import UsageCounts, UsageKey
from shoal_server.statistics.statistics import Statistics
from shoal_server.statistics.totals import CallerTotals, ModelTotals, sum_of


@dataclass(frozen=True, slots=True)
class Past:
    """What was counted before the server started."""

    began_s: float
    """When the counting began, since the epoch."""
    models: Mapping[ModelKey | None, ModelTotals] = field(default_factory=dict)
    callers: Mapping[UsageKey, CallerTotals] = field(default_factory=dict)


class AllTime:
    """Adds the past to what a server counts. Belongs to the event loop's thread."""

    def __init__(self, statistics: Statistics, past: Past) -> None:
        """Wire it.

        Args:
            statistics: Of this server.
            past: What those before it counted.
        """
        self.statistics = statistics
        self._past = past

    @property
    def began_s(self) -> float:
        """When the counting began, since the epoch."""
        return self._past.began_s

    def models(self) -> list[ModelKey | None]:
        """Models that anything was ever counted for, by name; None, if there, is the last."""
        keys = {*self._past.models, *self.statistics.used_models()}
        return sorted(keys, key=lambda key: (key is None, str(key)))

    def of_model(self, key: ModelKey | None) -> ModelTotals:
        """What was ever counted for a model."""
        now, past = self.statistics.totals_of_model(key), self._past.models.get(key)
        return sum_of((now, past) if past else (now,))

    def callers(self) -> list[UsageKey]:
        """Callers and models that anything was ever counted for, by name."""
        return sorted({*self._past.callers, *self.statistics.used_by()})

    def of_caller(self, key: UsageKey) -> UsageCounts:
        """What was ever counted for a caller and model."""
        total = self.statistics.totals_of_caller(key)
        past = self._past.callers.get(key)
        if past is not None:
            total.add(past.counts)
        return total
