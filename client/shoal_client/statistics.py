"""What models and callers asked of a server, and what it took."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.v1 import statistics_pb2 as pb


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took, in seconds; 0 when it never happened.

    Percentiles are within 1% of the value of that rank.
    """

    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one version of a model was asked for, and what it took, over some time.

    Attributes:
        duration_s: How long a time.
        requests: That ended, well or not.
        errors: Of these, those that failed, by reason, such as `OVERLOADED`.
        items: Inputs answered with a vector.
        tokens: Of these inputs, padding not included.
        truncated: Of these inputs, those that were cut.
        latency: Of the requests that were answered: from arrival to the vectors.
        queue: Of these: the longest wait of an input for its batch.
        inference: Of these: the longest run that an input took part in.
        batch_sizes: Batches that ran, by the inputs in each.
        batch_tokens: In these batches, padding not included.
        padding_tokens: Computed in these batches as if they were tokens.
        running_s: The time that these batches ran, added up.
    """

    duration_s: float
    requests: int
    errors: Mapping[str, int]
    items: int
    tokens: int
    truncated: int
    latency: Latency
    queue: Latency
    inference: Latency
    batch_sizes: Mapping[int, int]
    batch_tokens: int
    padding_tokens: int
    running_s: float

    @property
    def failed(self) -> int:
        """Requests that failed, for whatever reason."""
        return sum(self.errors.values())

    @property
    def requests_per_s(self) -> float:
        """Requests that ended in a second, on average."""
        return _rate(self.requests, self.duration_s)

    @property
    def items_per_s(self) -> float:
        """Vectors in a second, on average."""
        return _rate(self.items, self.duration_s)

    @property
    def tokens_per_s(self) -> float:
        """Tokens in a second, on average."""
        return _rate(self.tokens, self.duration_s)

    @property
    def mean_batch_size(self) -> float:
        """Inputs in a batch, on average; 0 when none ran."""
        batches = sum(self.batch_sizes.values())
        return _rate(sum(size * count for size, count in self.batch_sizes.items()), batches)


@dataclass(frozen=True, slots=True)
class Totals:
    """What one version of a model was ever asked for; attributes as those of `Traffic`."""

    requests: int
    errors: Mapping[str, int]
    items: int
    tokens: int
    truncated: int

    @property
    def failed(self) -> int:
        """Requests that failed, for whatever reason."""
        return sum(self.errors.values())


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Of one version of a model.

    Attributes:
        model: Its name; empty: requests whose model was not known.
        version: Its version.
        recent: Of the last minute or so.
        since_start: Of all time since the server started.
        all_time: Over restarts, since `Statistics.all_time_began`.
    """

    model: str
    version: str
    recent: Traffic
    since_start: Traffic
    all_time: Totals


@dataclass(frozen=True, slots=True)
class UsageCounts:
    """What a caller asked for, over some time.

    Attributes:
        requests: That ended, well or not.
        failed: Of these, those that failed or were refused.
        items: Inputs answered with a vector.
        tokens: Of these inputs, padding not included.
    """

    requests: int
    failed: int
    items: int
    tokens: int


@dataclass(frozen=True, slots=True)
class CallerUsage:
    """Of one caller with one model.

    Attributes:
        caller: The name that the operator gave it, else `key:` and digits of its API
            key's SHA-256, else its host; `(others)` when there were too many callers.
        model: The model's name; empty where it was not known.
        recent: Of the last minute or so.
        since_start: Of all time since the server started.
        all_time: Over restarts, since `Statistics.all_time_began`.
    """

    caller: str
    model: str
    recent: UsageCounts
    since_start: UsageCounts
    all_time: UsageCounts


@dataclass(frozen=True, slots=True)
class GpuStatistics:
    """Of one GPU, as its driver tells it; None where that does not tell.

    Attributes:
        device: `cuda:0`, …
        utilization: Share of the last second or less in which it worked, in [0, 1].
        memory_utilization: Share in which its memory was read or written, in [0, 1].
    """

    device: str
    utilization: float | None
    memory_utilization: float | None


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the server that answered.

    Attributes:
        models: By name and version; only of models that were ever used.
        usage: By caller and model; only of those that ever came.
        gpus: That models may run on.
        all_time_began: When the counting of all time began.
    """

    models: tuple[ModelStatistics, ...]
    usage: tuple[CallerUsage, ...]
    gpus: tuple[GpuStatistics, ...]
    all_time_began: datetime


def read_statistics(response: pb.GetStatisticsResponse) -> Statistics:
    """What an answer says."""
    recent_s = response.recent.ToNanoseconds() / 1e9
    since_start_s = response.since_start.ToNanoseconds() / 1e9
    return Statistics(
        models=tuple(
            ModelStatistics(
                model=each.model,
                version=each.version,
                recent=_traffic(each.recent, recent_s),
                since_start=_traffic(each.since_start, since_start_s),
                all_time=_totals(each.all_time),
            )
            for each in response.models
        ),
        usage=tuple(
            CallerUsage(
                caller=each.caller,
                model=each.model,
                recent=_usage(each.recent),
                since_start=_usage(each.since_start),
                all_time=_usage(each.all_time),
            )
            for each in response.usage
        ),
        gpus=tuple(_gpu(each) for each in response.gpus),
        all_time_began=response.all_time_began.ToDatetime(tzinfo=UTC),
    )


def _traffic(traffic: pb.ModelTraffic, duration_s: float) -> Traffic:
    return Traffic(
        duration_s=duration_s,
        requests=traffic.requests,
        errors=dict(traffic.errors),
        items=traffic.items,
        tokens=traffic.tokens,
        truncated=traffic.truncated,
        latency=_latency(traffic.latency),
        queue=_latency(traffic.queue),
        inference=_latency(traffic.inference),
        batch_sizes=dict(sorted(traffic.batch_sizes.items())),
        batch_tokens=traffic.batch_tokens,
        padding_tokens=traffic.padding_tokens,
        running_s=traffic.running.ToNanoseconds() / 1e9,
    )


def _totals(totals: pb.ModelTotals) -> Totals:
    return Totals(
        requests=totals.requests,
        errors=dict(totals.errors),
        items=totals.items,
        tokens=totals.tokens,
        truncated=totals.truncated,
    )


def _latency(latency: pb.Latency) -> Latency:
    return Latency(
        mean_s=latency.mean_us / 1e6,
        p50_s=latency.p50_us / 1e6,
        p90_s=latency.p90_us / 1e6,
        p95_s=latency.p95_us / 1e6,
        p99_s=latency.p99_us / 1e6,
        max_s=latency.max_us / 1e6,
    )


def _usage(usage: pb.UsageCounts) -> UsageCounts:
    return UsageCounts(
        requests=usage.requests, failed=usage.failed, items=usage.items, tokens=usage.tokens
    )


def _gpu(gpu: pb.GpuStatistics) -> GpuStatistics:
    return GpuStatistics(
        device=gpu.device,
        utilization=gpu.utilization if gpu.HasField("utilization") else None,
        memory_utilization=(gpu.memory_utilization if gpu.HasField("memory_utilization") else None),
    )


def _rate(count: float, over: float) -> float:
    return count / over if over else 0.0
