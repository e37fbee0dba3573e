"""What each model and each caller did, in the last minute and since the start.

A request costs one call here, of about 2 µs; the adding up is done when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shoal_server.core import ModelKey
from shoal_server.statistics.counts import Counts, ModelCounts, UsageCounts, UsageKey
from shoal_server.statistics.totals import ModelTotals, sum_of
from shoal_server.statistics.window import SlidingWindow

OTHERS = "(others)"
"""Callers that came when there were too many to count each by its name."""

# Usage is kept of so many times max_callers pairs of caller and model.
PAIRS_PER_CALLER = 10


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Of one version of a model."""

    recent: ModelCounts
    since_start: ModelCounts


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one caller with one model."""

    recent: UsageCounts
    since_start: UsageCounts


class Statistics:
    """Counts requests and batches. Belongs to the event loop's thread.

    Attributes:
        changed_models: Those that requests were counted for since this was last emptied.
        changed_callers: The same of callers and models.
    """

    def __init__(self, *, window_s: float, max_callers: int, clock: Callable[[], float]) -> None:
        """Begin to count.

        Args:
            window_s: How long ago counts as recent.
            max_callers: Callers counted by their names; those that come later are
                counted together as `OTHERS`.
            clock: Monotonic seconds.
        """
        self._window = SlidingWindow(window_s, Counts, clock)
        self._max_callers = max_callers
        self._callers: set[str] = set()
        self._pairs: set[UsageKey] = set()
        self.changed_models: set[ModelKey | None] = set()
        self.changed_callers: set[UsageKey] = set()

    def answered(
        self,
        caller: str,
        key: ModelKey,
        *,
        seconds: float,
        queue_s: float,
        inference_s: float,
        items: int,
        tokens: int,
        truncated: int,
    ) -> None:
        """A request was answered.

        Args:
            caller: Who sent it.
            key: What it was for.
            seconds: From its arrival to the vectors.
            queue_s: The longest wait of an item for its batch.
            inference_s: The longest run that an item took part in.
            items: In it.
            tokens: Of these.
            truncated: Items that were cut.
        """
        now = self._window.newest()
        model = now.model(key)
        model.requests += 1
        model.items += items
        model.tokens += tokens
        model.truncated += truncated
        model.total.record(seconds)
        model.queue.record(queue_s)
        model.inference.record(inference_s)
        self.changed_models.add(key)
        usage = now.caller(*self._counted_as(caller, key.name))
        usage.requests += 1
        usage.items += items
        usage.tokens += tokens

    def failed(self, caller: str, key: ModelKey | None, reason: str) -> None:
        """A request was not answered.

        Args:
            caller: Who sent it.
            key: What it was for; None when there is no such model.
            reason: A short, stable name, of which there are few.
        """
        now = self._window.newest()
        model = now.model(key)
        model.requests += 1
        model.errors[reason] += 1
        self.changed_models.add(key)
        usage = now.caller(*self._counted_as(caller, key.name if key else ""))
        usage.requests += 1
        usage.failed += 1

    def batch_ended(
        self, key: ModelKey, items: int, tokens: int, computed_tokens: int, seconds: float
    ) -> None:
        """A batch ran well."""
        model = self._window.newest().model(key)
        model.batch_sizes[items] += 1
        model.batch_tokens += tokens
        model.padding_tokens += computed_tokens - tokens
        model.running_s += seconds

    @property
    def recent_s(self) -> float:
        """How long a time is recent, now: shorter just after the start."""
        return self._window.recent_s()

    @property
    def since_start_s(self) -> float:
        """How long there has been counting."""
        return self._window.since_start_s()

    def used_models(self) -> list[ModelKey | None]:
        """Models that anything was counted for, by name; None, if there, is the last."""
        keys = {key for counts in self._window.all() for key in counts.models}
        return sorted(keys, key=lambda key: (key is None, str(key)))

    def of_model(self, key: ModelKey | None) -> ModelStatistics:
        """What was counted for a model; takes about 0.1 ms."""
        return ModelStatistics(
            recent=_sum_of_model(self._window.recent(), key),
            since_start=_sum_of_model(self._window.all(), key),
        )

    def used_by(self) -> set[UsageKey]:
        """Callers, and the models that anything was counted for them with."""
        return {key for counts in self._window.all() for key in counts.usage}

    def usage(self, key: UsageKey) -> Usage:
        """What was counted for a caller and model; takes some microseconds."""
        return Usage(
            recent=_sum_of_usage(self._window.recent(), key),
            since_start=self.totals_of_caller(key),
        )

    def totals_of_model(self, key: ModelKey | None) -> ModelTotals:
        """What was counted for a model since the start, without what takes long to add up."""
        parts = (counts.models.get(key) for counts in self._window.all())
        return sum_of(part for part in parts if part is not None)

    def totals_of_caller(self, key: UsageKey) -> UsageCounts:
        """What was counted for a caller and model since the start."""
        return _sum_of_usage(self._window.all(), key)

    def _counted_as(self, caller: str, model: str) -> UsageKey:
        pair = (caller, model)
        if pair not in self._pairs:
            if self._has_room(caller):
                self._callers.add(caller)
                self._pairs.add(pair)
            else:
                pair = (OTHERS, model)
        self.changed_callers.add(pair)
        return pair

    def _has_room(self, caller: str) -> bool:
        """Whether one more model of a caller can be counted by the caller's name."""
        return len(self._pairs) < PAIRS_PER_CALLER * self._max_callers and (
            caller in self._callers or len(self._callers) < self._max_callers
        )


def _sum_of_model(parts: Iterable[Counts], key: ModelKey | None) -> ModelCounts:
    total = ModelCounts()
    for counts in parts:
        model = counts.models.get(key)
        if model is not None:
            total.add(model)
    return total


def _sum_of_usage(parts: Iterable[Counts], key: UsageKey) -> UsageCounts:
    total = UsageCounts()
    for counts in parts:
        usage = counts.usage.get(key)
        if usage is not None:
            total.add(usage)
    return total
