"""What a benchmark run found: plain values, as they are written to JSON and read back."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from loadtests.bare import BareWindow
from loadtests.rows import Row
from loadtests.stats import Percentiles


@dataclass(frozen=True, slots=True)
class LimitResult:
    """The bare limit on one workload."""

    layout: str
    """The best of those tried."""
    tried: dict[str, float]
    """CPU µs per embedding, by layout."""
    windows: list[BareWindow]


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """One measurement of one row on one server."""

    embeddings_per_s: float
    cpu_us: float
    """Of the server, per embedding."""
    generator_cpu_us: float
    limit_per_s: float
    """The bare limit's embeddings a second, measured just before and after."""
    limit_cpu_us: float
    latency: Percentiles | None
    """None: nothing was answered within the window."""
    batch_items: float
    padding_waste: float
    errors: int
    least_cosine: float
    """Of a sample of answers, to the bare run's vectors."""
    others_share: float = 0.0
    """Of the machine's CPU time, what neither server nor generator took."""

    @property
    def share(self) -> float:
        """Of the limit's throughput."""
        return self.embeddings_per_s / self.limit_per_s

    @property
    def cpu_ratio(self) -> float:
        """Server CPU per embedding ÷ bare CPU per embedding."""
        return self.cpu_us / self.limit_cpu_us


@dataclass(frozen=True, slots=True)
class ClosedResult:
    """One row on one server."""

    server: str
    row: Row
    windows: list[ClosedWindow] = field(default_factory=list)

    def median(self, of: Callable[[ClosedWindow], float]) -> float:
        """Median over the repetitions."""
        return statistics.median(map(of, self.windows))

    def spread(self, of: Callable[[ClosedWindow], float]) -> float:
        """(most − least) ÷ median over the repetitions."""
        values = [of(window) for window in self.windows]
        middle = statistics.median(values)
        return (max(values) - min(values)) / middle if middle else 0.0


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """One measurement at one arrival rate. Latencies count from the scheduled time."""

    capacity_per_s: float
    """What the closed loop reached just before."""
    arrivals_per_s: float
    goodput_per_s: float
    latency: Percentiles | None
    """Of what was answered well."""
    refused_latency: Percentiles | None
    """Of what was answered with an error."""
    statuses: dict[int, int]
    lateness_p99_ms: float
    """How late the generator itself sent."""
    others_share: float = 0.0
    """Of the machine's CPU time, what neither server nor generator took."""


@dataclass(frozen=True, slots=True)
class OpenResult:
    """One arrival rate on one server."""

    server: str
    workload: str
    load: float
    """Arrivals as a share of capacity."""
    windows: list[OpenWindow] = field(default_factory=list)

    def median(self, of: Callable[[OpenWindow], float]) -> float:
        """Median over the repetitions."""
        return statistics.median(map(of, self.windows))


ALONE_PARTS = ("tokenizer", "queue", "run", "rest of the server", "outside it")


@dataclass(frozen=True, slots=True)
class AloneWindow:
    """One caller with one text a request beside the same texts in a bare process."""

    server_p50_ms: float
    bare_p50_ms: float
    """Tokenizer and runtime, one thread."""
    bare_all_cores_p50_ms: float
    spent_ms: dict[str, float] = field(default_factory=dict)
    """Medians of where the time over the wire went, as answers tell it; by `ALONE_PARTS`."""


@dataclass(frozen=True, slots=True)
class AloneResult:
    """One caller on one server."""

    server: str
    workload: str
    windows: list[AloneWindow] = field(default_factory=list)

    def median(self, of: Callable[[AloneWindow], float]) -> float:
        """Median over the repetitions."""
        return statistics.median(map(of, self.windows))


@dataclass(frozen=True, slots=True)
class ServerResult:
    """One server and how it starts."""

    name: str
    description: str
    start_s: list[float]
    """From starting the process to its ready line."""
    cold_ms: list[float]
    """First answers of a model that was not in memory."""


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """What was sent."""

    texts: int
    mean_tokens: float
    fingerprint: str


@dataclass(frozen=True, slots=True)
class PolicyCost:
    """CPU time of the batching policy, per item."""

    us_with_few_waiting: float
    us_with_many_waiting: float
    few: int
    many: int


@dataclass(frozen=True, slots=True)
class ManagementResult:
    """What managing models takes at one server."""

    server: str
    times_ms: dict[str, list[float]] = field(default_factory=dict)
    """By operation, as the server itself counted them."""

    def median_ms(self, operation: str) -> float:
        """Of one operation."""
        return statistics.median(self.times_ms[operation])


@dataclass(slots=True)
class Results:
    """One run of the benchmark."""

    made_at: str
    command: str
    machine: dict[str, str]
    model: str
    precision: str
    workloads: dict[str, WorkloadInfo] = field(default_factory=dict)
    limit: dict[str, LimitResult] = field(default_factory=dict)
    servers: list[ServerResult] = field(default_factory=list)
    closed: list[ClosedResult] = field(default_factory=list)
    open: list[OpenResult] = field(default_factory=list)
    alone: list[AloneResult] = field(default_factory=list)
    management: list[ManagementResult] = field(default_factory=list)
    policy: PolicyCost | None = None
    took_s: float = 0.0

    def find_closed(self, server: str, rows: Iterable[Row]) -> list[ClosedResult]:
        """Those rows of one server that were measured."""
        wanted = set(rows)
        return [each for each in self.closed if each.server == server and each.row in wanted]

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_bytes(_ADAPTER.dump_json(self, indent=1))

    @classmethod
    def read(cls, path: Path) -> Results:
        """What `write` wrote."""
        return _ADAPTER.validate_json(path.read_bytes())


_ADAPTER = TypeAdapter(Results)
