"""Who listens to batches, the pool, events and memory, and counts and logs what they tell."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from shoal_server.core import ModelKey
from shoal_server.lifecycle import (
    Load,
    LoadReason,
    PressureLevel,
    Unloading,
    UnloadReason,
    WarmRelease,
)
from shoal_server.telemetry.metrics import Metrics


class BatchTelemetry:
    """Counts the batches of one model (see `batching.batcher.BatchObserver`)."""

    def __init__(
        self, metrics: Metrics, model: str, ended: Callable[[int, int, int, float], None]
    ) -> None:
        """Count into `metrics`.

        Args:
            metrics: Of the server.
            model: Its name.
            ended: Told of a batch, too; takes what `batch_ended` takes.
        """
        self._ended = ended
        self._items = metrics.batch_items.labels(model)
        self._padding_ratio = metrics.batch_padding.labels(model)
        self._padding = metrics.padding_tokens.labels(model)
        self._seconds = metrics.inference_seconds.labels(model)
        self._waiting = metrics.waiting_items.labels(model)
        self._dropped = metrics.dropped_items.labels(model)

    def batch_ended(self, items: int, tokens: int, computed_tokens: int, seconds: float) -> None:
        """A run ended well."""
        self._items.observe(items)
        self._padding_ratio.observe(1 - tokens / computed_tokens)
        self._padding.inc(computed_tokens - tokens)
        self._seconds.observe(seconds)
        self._ended(items, tokens, computed_tokens, seconds)

    def waiting_changed(self, waiting: int) -> None:
        """So many items wait now."""
        self._waiting.set(waiting)

    def items_dropped(self, count: int) -> None:
        """Items left the queue because nobody wants them any longer."""
        self._dropped.inc(count)


class PoolTelemetry:
    """Counts and logs loads and evictions (see `residency.resident.PoolObserver`)."""

    def __init__(self, metrics: Metrics, changed: Callable[[ModelKey], None]) -> None:
        """Count into `metrics`.

        Args:
            metrics: Of the server.
            changed: Told that a load, good or bad, or an unloading has ended.
        """
        self._metrics = metrics
        self._changed = changed
        self._log = structlog.get_logger(__name__)

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        """So much is counted on the device now."""
        self._metrics.resident_models.labels(device).set(models)
        self._metrics.resident_bytes.labels(device).set(size_bytes)

    def load_began(self, key: ModelKey, why: LoadReason) -> None:
        """A model is on its way into memory."""

    def load_ended(self, load: Load) -> None:
        """A load ended, well or not."""
        name, shown, error = load.key.name, str(load.key), load.error
        if error is None:
            self._metrics.loads.labels(name, "ok").inc()
            self._metrics.load_seconds.labels(name).observe(load.seconds)
            load_s = round(load.seconds, 3)
            self._log.info("model_loaded", model=shown, load_s=load_s, why=str(load.why))
        else:
            self._metrics.loads.labels(name, "failed").inc()
            self._log.warning("model_load_failed", model=shown, error=error.message)
        self._changed(load.key)

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        """A session is lent no more."""

    def stayed(self, key: ModelKey) -> None:
        """A session that was to leave is lent again."""

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        """A session left memory."""
        if why.reason is UnloadReason.EVICTED:
            self._metrics.evictions.labels(key.name).inc()
        self._metrics.unloads.labels(key.name, str(why.reason)).inc()
        self._log.info("model_unloaded", model=str(key), why=str(why))
        self._changed(key)


class WarmTelemetry:
    """Counts and logs what stays warm in RAM (see `residency.resident.WarmObserver`)."""

    def __init__(self, metrics: Metrics, released: Callable[[WarmRelease], None]) -> None:
        """Count into `metrics`.

        Args:
            metrics: Of the server.
            released: Told, too, of what went without having been loaded.
        """
        self._models, self._bytes = metrics.warm_models.labels(), metrics.warm_bytes.labels()
        self._loads = metrics.warm_loads
        self._released = released
        self._log = structlog.get_logger(__name__)

    def warm_changed(self, models: int, size_bytes: int) -> None:
        """So many there are now, and so much they take."""
        self._models.set(models)
        self._bytes.set(size_bytes)

    def warm_loaded(self, key: ModelKey) -> None:
        """One is a session again."""
        self._loads.labels(key.name).inc()

    def warm_released(self, release: WarmRelease) -> None:
        """One left RAM without having been loaded."""
        self._log.info("warm_model_released", model=str(release.key), why=str(release))
        self._released(release)


class EventTelemetry:
    """Counts events and those who watch (see `registry.event_log.EventLogObserver`)."""

    def __init__(self, metrics: Metrics) -> None:
        self._events = metrics.events
        self._watchers = metrics.event_watchers.labels()

    def event_published(self, kind: str) -> None:
        """One more of this kind."""
        self._events.labels(kind).inc()

    def watchers_changed(self, watchers: int) -> None:
        """So many watch now."""
        self._watchers.set(watchers)


class MemoryTelemetry:
    """Counts and logs what becomes of memory (see `residency.pressure_monitor`)."""

    def __init__(
        self,
        metrics: Metrics,
        changed: Callable[[str, PressureLevel, PressureLevel, float], None],
    ) -> None:
        """Count into `metrics`.

        Args:
            metrics: Of the server.
            changed: Told of levels, too; takes what `pressure_changed` takes.
        """
        self._metrics = metrics
        self._changed = changed
        self._log = structlog.get_logger(__name__)

    def memory_seen(self, device: str, used: float, level: PressureLevel) -> None:
        """A look at a device's memory: the share in use, and where it stands since."""
        self._metrics.memory_use.labels(device).set(used)
        self._metrics.memory_pressure.labels(device).set(level)

    def pressure_changed(
        self, device: str, before: PressureLevel, after: PressureLevel, used: float
    ) -> None:
        """A device's level changed."""
        tell = self._log.warning if after > PressureLevel.NORMAL else self._log.info
        tell("memory_pressure", device=device, before=before.name.lower(),
             after=after.name.lower(), used=round(used, 3))  # fmt: skip
        self._changed(device, before, after, used)

    def model_returned(
        self, key: ModelKey, *, after_s: float, times: int, worth_telling: bool
    ) -> None:
        """A model came back soon after it had been pushed out."""
        self._metrics.returns.labels(key.name).inc()
        if worth_telling:
            self._log.warning("model_churn", model=str(key), away_s=round(after_s, 1), times=times,
                              hint="loaded and pushed out back and forth: memory is too small "
                              "for what is asked for")  # fmt: skip


class PreloadTelemetry:
    """Counts what became of models that were loaded ahead (see `preloading`)."""

    def __init__(self, metrics: Metrics) -> None:
        self._preloads = metrics.preloads

    def preload_ended(self, key: ModelKey, outcome: str) -> None:
        """It was used, left memory unused, or could not be loaded."""
        self._preloads.labels(key.name, outcome).inc()
