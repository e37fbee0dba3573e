"""Every metric and log field, with its unit, in one place.

Metrics live in a registry that the composition root makes, so that two servers
in one process (tests) do not share counters.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from shoal_server.core import ModelKey
from shoal_server.lifecycle import (
    Load,
    LoadReason,
    PressureLevel,
    Unloading,
    UnloadReason,
    WarmRelease,
)
from shoal_server.tallies import Counter, Gauge, Histogram

# From a tenth of a millisecond (one short text on a GPU) to a minute (a cold model).
_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_ITEMS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
_RATIO = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75)


# Of the request that the current task works on; in every log line of it.
request_id: ContextVar[str] = ContextVar("request_id")


class Metrics:
    """The metrics of one server. Changed on the event loop only."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "shoal_requests", "RPCs answered, by method and gRPC code.", ("method", "code"),
            registry=registry,
        )  # fmt: skip
        self.stream_requests = Counter(
            "shoal_stream_requests", "Requests answered on EmbedStreams, by gRPC code.", ("code",),
            registry=registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "shoal_request_duration_seconds", "From receiving an RPC to its answer.", ("method",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "shoal_queue_duration_seconds", "From the arrival of a request's items to the start "
            "of the last batch that holds one.", ("model",), buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.tokenize_seconds = Histogram(
            "shoal_tokenize_duration_seconds", "Tokenizing one request.", ("model",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.inference_seconds = Histogram(
            "shoal_inference_duration_seconds", "One run of a batch: collate, run, check.",
            ("model",), buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.batch_items = Histogram(
            "shoal_batch_items", "Items in a batch.", ("model",), buckets=_ITEMS,
            registry=registry,
        )  # fmt: skip
        self.batch_padding = Histogram(
            "shoal_batch_padding_ratio", "Share of the tokens that a batch computed that was "
            "padding.", ("model",), buckets=_RATIO, registry=registry,
        )  # fmt: skip
        self.padding_tokens = Counter(
            "shoal_padding_tokens", "Padding that was computed as if it were tokens.", ("model",),
            registry=registry,
        )  # fmt: skip
        self.items = Counter(
            "shoal_items", "Items answered with a vector.", ("model",), registry=registry
        )
        self.tokens = Counter(
            "shoal_tokens", "Tokens run, padding not included.", ("model",), registry=registry
        )
        self.dropped_items = Counter(
            "shoal_dropped_items", "Items whose caller left or whose deadline passed while they "
            "waited.", ("model",), registry=registry,
        )  # fmt: skip
        self.waiting_items = Gauge(
            "shoal_waiting_items", "Items that wait for a batch.", ("model",), registry=registry
        )
        self.items_in_flight = Gauge(
            "shoal_items_in_flight", "Items admitted and not yet answered.", (), registry=registry
        )
        self.bytes_in_flight = Gauge(
            "shoal_bytes_in_flight", "Bytes of the requests admitted and not yet answered.",
            (), registry=registry,
        )  # fmt: skip
        self.rejected = Counter(
            "shoal_rejected_requests", "Requests refused because a limit was reached, by limit.",
            ("limit",), registry=registry,
        )  # fmt: skip
        self.resident_models = Gauge(
            "shoal_resident_models", "Models in memory.", ("device",), registry=registry
        )
        self.resident_bytes = Gauge(
            "shoal_resident_bytes", "Bytes counted for models in memory, coming in and going out.",
            ("device",), registry=registry,
        )  # fmt: skip
        self.loads = Counter(
            "shoal_model_loads", "Loads ended, by result (ok, failed).", ("model", "result"),
            registry=registry,
        )  # fmt: skip
        self.load_seconds = Histogram(
            "shoal_model_load_duration_seconds", "Bringing a model into memory.", ("model",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.evictions = Counter(
            "shoal_model_evictions", "Models that left memory to make room for others.",
            ("model",), registry=registry,
        )  # fmt: skip
        self.events = Counter(
            "shoal_events", "Events published, by kind.", ("kind",), registry=registry
        )
        self.event_watchers = Gauge(
            "shoal_event_watchers", "WatchEvents streams that are open.", (), registry=registry
        )
        self.unloads = Counter(
            "shoal_model_unloads", "Models that left memory, by reason (evicted, asked, idle, "
            "keep_alive, pressure, shutdown).", ("model", "reason"), registry=registry,
        )  # fmt: skip
        self.warm_models = Gauge(
            "shoal_warm_models", "Models that left a GPU and stay warm in RAM.", (),
            registry=registry,
        )  # fmt: skip
        self.warm_bytes = Gauge(
            "shoal_warm_bytes", "Bytes of RAM that they take.", (), registry=registry
        )
        self.warm_loads = Counter(
            "shoal_warm_model_loads", "Models that came back to a GPU from RAM.", ("model",),
            registry=registry,
        )  # fmt: skip
        self.returns = Counter(
            "shoal_model_returns", "Loads of models that had been evicted, or released for memory "
            "pressure, less than a minute before.", ("model",), registry=registry,
        )  # fmt: skip
        self.preloads = Counter(
            "shoal_preloads", "Models that were loaded ahead, by what became of it (used, unused, "
            "failed).", ("model", "outcome"), registry=registry,
        )  # fmt: skip
        self.memory_use = Gauge(
            "shoal_memory_use_ratio", "Share of a device's memory in use, of the tightest limit.",
            ("device",), registry=registry,
        )  # fmt: skip
        self.memory_pressure = Gauge(
            "shoal_memory_pressure_level", "How short memory is on a device: 0 normal, 1 elevated, "
            "2 critical.", ("device",), registry=registry,
        )  # fmt: skip
        self.build_info = Gauge(
            "shoal_build_info", "Always 1; the labels say what runs.", ("version", "runtime"),
            registry=registry,
        )  # fmt: skip


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


class _StandardError:
    """Writes lines; those that nobody reads any longer are lost.

    A request must not fail because the log's reader is gone.
    """

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(message + "\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = msg


def configure_logging(level: str, log_format: str) -> None:
    """Send structlog to standard error, as JSON or for people.

    Args:
        level: Least level that is logged.
        log_format: `json`, `console`, or `auto`: console on a terminal.
    """
    for_people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            _add_request_id,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *([] if for_people else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=lambda *_: _StandardError(),
        cache_logger_on_first_use=False,
    )


def _add_request_id(
    _: structlog.typing.WrappedLogger, __: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if (value := request_id.get(None)) is not None:
        event["request_id"] = value
    return event
