"""What the store remembers of what was counted: totals, usage, and when models are wanted."""

from __future__ import annotations

from collections.abc import Mapping

from shoal_server.core import ModelKey
from shoal_server.registry.remembered import read_key, read_records
from shoal_server.registry.store import Change, Record, RecordStore
from shoal_server.statistics.all_time import Past
from shoal_server.statistics.counts import UsageKey
from shoal_server.statistics.totals import (
    CallerTotals,
    ModelTotals,
    read_usage_key,
    usage_key_text,
    whole,
)
from shoal_server.usage.history import Pattern

_TOTAL, _CALLER, _PATTERN, _COUNTING = "total", "caller", "pattern", "counting"
_BEGAN = "began"
# Of requests whose model is not known.
_NO_MODEL = ""


def remembered_past(store: RecordStore, now_s: float) -> Past:
    """What was counted before; `now_s`, since the epoch, is when it began if nothing was."""
    models = read_records(
        store, _TOTAL, lambda text, record: (_read_model(text), ModelTotals.from_record(record))
    )
    callers = read_records(
        store,
        _CALLER,
        lambda text, record: (read_usage_key(text), CallerTotals.from_record(record)),
    )
    began = read_records(store, _COUNTING, lambda _, record: whole(record["at_s"]))
    return Past(began.get(_BEGAN, now_s), dict(models.values()), dict(callers.values()))


def remembered_patterns(store: RecordStore) -> Mapping[str, Pattern]:
    """When models were asked for, by the names that they were asked for by."""
    return read_records(store, _PATTERN, lambda _, record: Pattern.from_record(record))


def began_change(at_s: float) -> Change:
    """To write when the counting began, since the epoch."""
    return Change(_COUNTING, _BEGAN, {"at_s": int(at_s)})


def total_change(key: ModelKey | None, totals: ModelTotals) -> Change:
    """To write what was counted for a model; None: for none that is known."""
    return Change(_TOTAL, str(key) if key else _NO_MODEL, totals.to_record())


def caller_change(key: UsageKey, totals: CallerTotals | None) -> Change:
    """To write what was counted for a caller and model, or to forget it."""
    record: Record | None = totals.to_record() if totals else None
    return Change(_CALLER, usage_key_text(key), record)


def pattern_change(name: str, pattern: Pattern | None) -> Change:
    """To write when a model is asked for, or to forget it."""
    return Change(_PATTERN, name, pattern.to_record() if pattern else None)


def _read_model(text: str) -> ModelKey | None:
    return read_key(text) if text != _NO_MODEL else None
