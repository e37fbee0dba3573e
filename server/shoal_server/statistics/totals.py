"""What is counted of all time: a few numbers that outlast the server, without percentiles."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from shoal_server.statistics.counts import ModelCounts, UsageCounts, UsageKey

Record = Mapping[str, object]


@dataclass(slots=True)
class ModelTotals:
    """Of one version of a model."""

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

    def add(self, other: ModelTotals | ModelCounts) -> None:
        """Count what `other` counted, too."""
        self.requests += other.requests
        self.items += other.items
        self.tokens += other.tokens
        self.truncated += other.truncated
        self.errors.update(other.errors)

    def to_record(self) -> Record:
        """As the store keeps it."""
        return {
            "requests": self.requests,
            "items": self.items,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "errors": dict(self.errors),
        }

    @classmethod
    def from_record(cls, record: Record) -> Self:
        """The reverse of `to_record`.

        Raises:
            TypeError: It is none.
            KeyError: The same.
        """
        errors = record["errors"]
        if not isinstance(errors, dict):
            raise TypeError("errors are an object")
        requests, items, tokens, truncated = (
            whole(record[name]) for name in ("requests", "items", "tokens", "truncated")
        )
        reasons = Counter({str(reason): whole(count) for reason, count in errors.items()})
        return cls(requests, items, tokens, truncated, reasons)


@dataclass(frozen=True, slots=True)
class CallerTotals:
    """Of one caller with one model."""

    counts: UsageCounts
    seen_s: float
    """When the caller last came, since the epoch."""

    def to_record(self) -> Record:
        """As the store keeps it."""
        counts = self.counts
        return {
            "requests": counts.requests,
            "failed": counts.failed,
            "items": counts.items,
            "tokens": counts.tokens,
            "seen_s": round(self.seen_s),
        }

    @classmethod
    def from_record(cls, record: Record) -> Self:
        """The reverse of `to_record`.

        Raises:
            TypeError: It is none.
            KeyError: The same.
        """
        names = ("requests", "failed", "items", "tokens")
        counts = UsageCounts(*(whole(record[name]) for name in names))
        return cls(counts, whole(record["seen_s"]))


def usage_key_text(key: UsageKey) -> str:
    """The key of a caller's record."""
    return json.dumps(key)


def read_usage_key(text: str) -> UsageKey:
    """The reverse of `usage_key_text`.

    Raises:
        ValueError: It is none.
    """
    caller, model = json.loads(text)
    return str(caller), str(model)


def within_bound(
    callers: Mapping[UsageKey, CallerTotals], most: int, others: str
) -> dict[UsageKey, CallerTotals]:
    """Bound the callers that are told apart; nothing that was counted is lost.

    Args:
        callers: All of them.
        most: As many keep their names: those who came last.
        others: The name under which the rest is counted, by model.
    """
    ordered = sorted(
        (key for key in callers if key[0] != others), key=lambda key: -callers[key].seen_s
    )
    kept = {key: callers[key] for key in ordered[:most]}
    rest = [(key, each) for key, each in callers.items() if key not in kept]
    for (_, model), each in rest:
        kept[others, model] = both(kept.get((others, model)), each)
    return kept


def both(one: CallerTotals | None, other: CallerTotals) -> CallerTotals:
    """Of two callers, as if they were one; None: of the other alone."""
    if one is None:
        return other
    counts = UsageCounts()
    counts.add(one.counts)
    counts.add(other.counts)
    return CallerTotals(counts, max(one.seen_s, other.seen_s))


def whole(value: object) -> int:
    """`value`, if it is a whole number.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def sum_of(parts: Iterable[ModelTotals | ModelCounts]) -> ModelTotals:
    """All of them together."""
    total = ModelTotals()
    for each in parts:
        total.add(each)
    return total
