"""Statistics of both clients: what the server answers, in seconds and plain numbers."""

from __future__ import annotations

from datetime import UTC, datetime

import grpc
import pytest
from google.protobuf import duration_pb2, timestamp_pb2

from shoal.v1 import statistics_pb2 as pb
from shoal_client import Client, Latency, ModelNotFoundError, Statistics, Totals, UsageCounts
from tests.client.fake import FakeServer, status


@pytest.fixture
def answered(client: Client, fake: FakeServer) -> Statistics:
    """One model, one caller, two GPUs."""
    traffic = pb.ModelTraffic(
        requests=30,
        errors={"OVERLOADED": 5, "CANCELLED": 1},
        items=40,
        tokens=2000,
        truncated=3,
        latency=pb.Latency(
            mean_us=2500, p50_us=2000, p90_us=4000, p95_us=5000, p99_us=9000, max_us=10_000
        ),
        batch_sizes={11: 10, 1: 10},
        batch_tokens=2100,
        padding_tokens=7,
        running=duration_pb2.Duration(seconds=1, nanos=500_000_000),
    )
    fake.statistics = pb.GetStatisticsResponse(
        recent=duration_pb2.Duration(seconds=20),
        since_start=duration_pb2.Duration(seconds=100),
        all_time_began=timestamp_pb2.Timestamp(seconds=1_800_000_000),
        models=[
            pb.ModelStatistics(
                model="fake",
                version="1",
                recent=traffic,
                since_start=traffic,
                all_time=pb.ModelTotals(
                    requests=300, errors={"OVERLOADED": 50}, items=400, tokens=20_000, truncated=30
                ),
            )
        ],
        usage=[
            pb.CallerUsage(
                caller="search",
                model="fake",
                recent=pb.UsageCounts(requests=1, failed=2, items=3, tokens=4),
                since_start=pb.UsageCounts(requests=5),
                all_time=pb.UsageCounts(requests=50, tokens=60),
            )
        ],
        gpus=[
            pb.GpuStatistics(device="cuda:0", utilization=0.0, memory_utilization=0.5),
            pb.GpuStatistics(device="cuda:1"),
        ],
    )
    return client.statistics()


def test_traffic_of_a_model(answered: Statistics) -> None:
    """Every number of the answer, times in seconds."""
    (model,) = answered.models
    recent = model.recent
    assert (model.model, model.version) == ("fake", "1")
    assert (recent.requests, recent.items, recent.tokens, recent.truncated) == (30, 40, 2000, 3)
    assert recent.errors == {"CANCELLED": 1, "OVERLOADED": 5}
    assert recent.latency == Latency(0.0025, 0.002, 0.004, 0.005, 0.009, 0.01)
    assert recent.queue == Latency(0, 0, 0, 0, 0, 0)
    assert (recent.batch_tokens, recent.padding_tokens, recent.running_s) == (2100, 7, 1.5)
    assert list(recent.batch_sizes.items()) == [(1, 10), (11, 10)]


def test_what_follows_from_the_numbers(answered: Statistics) -> None:
    """Rates over the time that the numbers are of."""
    (model,) = answered.models
    assert (model.recent.duration_s, model.since_start.duration_s) == (20, 100)
    assert (model.recent.requests_per_s, model.recent.items_per_s) == (1.5, 2)
    assert (model.recent.tokens_per_s, model.since_start.tokens_per_s) == (100, 20)
    assert (model.recent.failed, model.recent.mean_batch_size) == (6, 6)


def test_totals_of_all_time(answered: Statistics) -> None:
    """Of models and of callers, with when they began."""
    (model,), (usage,) = answered.models, answered.usage
    assert model.all_time == Totals(300, {"OVERLOADED": 50}, 400, 20_000, 30)
    assert model.all_time.failed == 50
    assert usage.all_time == UsageCounts(50, 0, 0, 60)
    assert answered.all_time_began == datetime.fromtimestamp(1_800_000_000, UTC)


def test_usage(answered: Statistics) -> None:
    """By caller and model."""
    (usage,) = answered.usage
    assert (usage.caller, usage.model) == ("search", "fake")
    assert (usage.recent, usage.since_start) == (UsageCounts(1, 2, 3, 4), UsageCounts(5, 0, 0, 0))


def test_a_gpu_that_does_not_tell_is_told_from_an_idle_one(answered: Statistics) -> None:
    """None is not 0."""
    assert [(each.utilization, each.memory_utilization) for each in answered.gpus] == [
        (0.0, 0.5),
        (None, None),
    ]


def test_nothing_counted_divides_by_nothing(client: Client, fake: FakeServer) -> None:
    """A server that has just started."""
    fake.statistics = pb.GetStatisticsResponse(models=[pb.ModelStatistics(model="fake")])
    (model,) = client.statistics("fake").models
    assert (model.recent.items_per_s, model.recent.mean_batch_size) == (0, 0)
    assert fake.calls[-1].request == pb.GetStatisticsRequest(model="fake")


def test_unknown_model(client: Client, fake: FakeServer) -> None:
    """NOT_FOUND is ModelNotFoundError."""
    fake.fail("GetStatistics", status(grpc.StatusCode.NOT_FOUND, reason="MODEL_NOT_FOUND"))
    with pytest.raises(ModelNotFoundError):
        client.statistics("none")
