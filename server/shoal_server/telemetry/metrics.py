"""Every metric, with its unit, in one place.

They live in a registry that the composition root makes, so that two servers
in one process (tests) do not share counters.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from shoal_server.tallies import Counter, Gauge, Histogram

# From a tenth of a millisecond (one short text on a GPU) to a minute (a cold model).
_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_ITEMS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
_RATIO = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75)


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
