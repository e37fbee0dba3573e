"""What is counted, of one model version and of one caller."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from shoal_server.core import ModelKey
from shoal_server.statistics.histogram import DurationHistogram


@dataclass(slots=True)
class ModelCounts:
    """Of one version of a model, over some time."""

    requests: int = 0
    """That ended, well or not."""
    items: int = 0
    """Answered with a vector."""
    tokens: int = 0
    """Of these items, padding not included."""
    truncated: int = 0
    """Of these items, those that were cut."""
    errors: Counter[str] = field(default_factory=Counter)
    """Requests that failed, by reason."""
    total: DurationHistogram = field(default_factory=DurationHistogram)
    """Of the requests that were answered: from arrival to the vectors."""
    queue: DurationHistogram = field(default_factory=DurationHistogram)
    """Of these: the longest wait of an item for its batch."""
    inference: DurationHistogram = field(default_factory=DurationHistogram)
    """Of these: the longest run that an item took part in."""
    batch_sizes: Counter[int] = field(default_factory=Counter)
    """Batches that ran well, by items."""
    batch_tokens: int = 0
    """In these batches, padding not included."""
    padding_tokens: int = 0
    """Computed in these batches as if they were tokens."""
    running_s: float = 0.0
    """These batches' runs, added up."""

    def add(self, other: ModelCounts) -> None:
        """Count what `other` counted, too."""
        self.requests += other.requests
        self.items += other.items
        self.tokens += other.tokens
        self.truncated += other.truncated
        self.errors.update(other.errors)
        self.total.add(other.total)
        self.queue.add(other.queue)
        self.inference.add(other.inference)
        self.batch_sizes.update(other.batch_sizes)
        self.batch_tokens += other.batch_tokens
        self.padding_tokens += other.padding_tokens
        self.running_s += other.running_s


@dataclass(slots=True)
class UsageCounts:
    """Of one caller with one model, over some time."""

    requests: int = 0
    """That ended, well or not."""
    failed: int = 0
    """Of these, those that were not answered."""
    items: int = 0
    """Answered with a vector."""
    tokens: int = 0
    """Of these items."""

    def add(self, other: UsageCounts) -> None:
        """Count what `other` counted, too."""
        self.requests += other.requests
        self.failed += other.failed
        self.items += other.items
        self.tokens += other.tokens


UsageKey = tuple[str, str]
"""Caller and model."""


class Counts:
    """All that happened in some stretch of time."""

    __slots__ = ("models", "usage")

    def __init__(self) -> None:
        self.models: dict[ModelKey | None, ModelCounts] = {}
        """None: requests whose model is not known."""
        self.usage: dict[UsageKey, UsageCounts] = {}

    def model(self, key: ModelKey | None) -> ModelCounts:
        """Where to count for a model, made when first asked for."""
        counts = self.models.get(key)
        if counts is None:
            counts = self.models[key] = ModelCounts()
        return counts

    def caller(self, caller: str, model: str) -> UsageCounts:
        """Where to count for a caller, made when first asked for."""
        counts = self.usage.get((caller, model))
        if counts is None:
            counts = self.usage[caller, model] = UsageCounts()
        return counts

    def add(self, other: Counts) -> None:
        """Count what `other` counted, too; may keep parts of it."""
        for key, model in other.models.items():
            if key in self.models:
                self.models[key].add(model)
            else:
                self.models[key] = model
        for usage_key, usage in other.usage.items():
            if usage_key in self.usage:
                self.usage[usage_key].add(usage)
            else:
                self.usage[usage_key] = usage
