"""Patterns of use over a real channel, models that are loaded ahead, and totals over restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shoal.v1 import model_control_pb2 as control_pb
from shoal.v1 import statistics_pb2, usage_pb2
from shoal_client import Client
from shoal_server.registry.remembered_counts import pattern_change
from shoal_server.registry.store import STATE_FILE, RecordStore
from shoal_server.usage.history import HOURS_PER_WEEK, Pattern, hour_of, hour_of_week
from tests.running import RunningServer
from tests.tiny_model import make_tiny_model

from .calls import KNOWN_TEXT, TIMEOUT_S, Connection, assert_no_surprise, eventually, refusal

WEEKS = 4
REQUESTS = 1000
NAMES = ("usual", "unusual")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models; one was asked for a lot in these hours of the last weeks."""
    root = tmp_path_factory.mktemp("models")
    for name in NAMES:
        make_tiny_model(root, name)
    asyncio.run(_remember_habits(root / STATE_FILE))
    return root


async def _remember_habits(path: Path) -> None:
    now = hour_of(time.time())
    pattern = Pattern(now - WEEKS * HOURS_PER_WEEK, now)
    for week in range(WEEKS, 0, -1):
        for hour in range(3):  # the test may last past the hour
            for _ in range(REQUESTS):
                pattern.asked(now + hour - week * HOURS_PER_WEEK)
    store = await RecordStore.open(path)
    await store.write(pattern_change("usual", pattern))
    await store.close()


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[RunningServer]:
    with RunningServer(
        model_dir=root,
        default_model="unusual",
        preload="none",
        preload_ahead=True,
        statistics_write_s=0.1,
    ) as running:
        yield running


@pytest.fixture
def server(running: RunningServer) -> Iterator[Connection]:
    with Connection(running.address) as connection:
        yield connection
        assert_no_surprise(running)


def usage(connection: Connection, model: str = "") -> usage_pb2.GetUsageResponse:
    return connection.control.GetUsage(usage_pb2.GetUsageRequest(model=model), timeout=TIMEOUT_S)


def statistics(connection: Connection) -> statistics_pb2.GetStatisticsResponse:
    return connection.control.GetStatistics(
        statistics_pb2.GetStatisticsRequest(), timeout=TIMEOUT_S
    )


def test_what_is_usually_wanted_is_loaded_ahead(server: Connection, running: RunningServer) -> None:
    """With its reason, an event, and, once it has left after a use, its outcome; nothing else."""
    eventually(lambda: server.models()["usual"].HasField("residency"), "usual is in memory")
    models = server.models()
    assert models["usual"].residency.load_reason == control_pb.LOAD_REASON_PRELOADED
    assert models["usual"].residency.uses == 0
    assert not models["unusual"].HasField("residency")
    request = control_pb.WatchEventsRequest(
        kinds=[control_pb.EVENT_KIND_PRELOAD_DECIDED], after_sequence=0
    )
    answers = server.control.WatchEvents(request, timeout=TIMEOUT_S)
    event = next(each.event.preload_decided for each in answers if each.HasField("event"))
    answers.cancel()
    assert (event.model, event.version, event.asked_for_as) == ("usual", "1", "usual")
    assert 0.5 < event.probability < 1
    assert event.horizon.seconds == 900
    server.embed(KNOWN_TEXT, model="usual")
    server.unload("usual")
    assert running.metric("shoal_preloads_total", model="usual", outcome="used") == 1
    assert running.metric("shoal_preloads_total") == 1


def test_the_pattern_and_the_prediction(server: Connection) -> None:
    """Hours from Monday midnight, UTC; and why it is not loaded ahead now."""
    answer = usage(server, "usual")
    (pattern,) = answer.patterns
    now = hour_of(time.time())
    assert len(pattern.requests_by_hour) == HOURS_PER_WEEK
    assert pattern.requests_by_hour[hour_of_week(now + 1)] == pytest.approx(REQUESTS)
    assert pattern.first_asked.seconds <= (now - WEEKS * HOURS_PER_WEEK) * 3600
    (prediction,) = answer.predictions
    assert (prediction.model, prediction.version) == ("usual", "usual@1")
    # Four weeks of use: (1 + 0.75 + 0.75² + 0.75³) of one more.
    assert prediction.probability == pytest.approx(2.734 / 3.734, abs=0.01)
    assert (answer.preload_ahead, answer.threshold, answer.horizon.seconds) == (True, 0.5, 900)


def test_names_that_were_never_asked_for(server: Connection) -> None:
    """Told from names that there are not; the default model goes by its own name."""
    assert refusal(lambda: usage(server, "nobody")).code is grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: usage(server, "no/name")).code is grpc.StatusCode.INVALID_ARGUMENT
    server.embed(KNOWN_TEXT)
    server.embed(KNOWN_TEXT, model="unusual@1")
    assert {"unusual", "unusual@1"} <= {each.model for each in usage(server).patterns}
    assert [each.model for each in usage(server, "unusual").patterns] == ["unusual"]


def test_the_sdk_and_a_refused_request(server: Connection, running: RunningServer) -> None:
    """Whoever asks for a model wants it, whether it gets an answer or not."""
    refusal(lambda: server.embed(KNOWN_TEXT, model="unusual", dimensions=999))
    refusal(lambda: server.embed(KNOWN_TEXT, model="nobody"))
    with Client(running.address) as client:
        answer = client.get_usage("unusual")
        assert sum(answer.patterns[0].requests_by_hour) >= 1
        assert "nobody" not in {each.model for each in client.get_usage().patterns}


def test_totals_outlast_a_restart(tmp_path: Path) -> None:
    """Of models and callers, while what is since the start begins anew."""
    make_tiny_model(tmp_path, "tiny")
    for start in range(2):
        with (
            RunningServer(model_dir=tmp_path, default_model="tiny") as running,
            Connection(running.address) as connection,
        ):
            for _ in range(2):
                connection.embed("red blue", "red")
            refusal(lambda: connection.embed("red", dimensions=999))
            answer = statistics(connection)
            if start == 0:
                began = answer.all_time_began.seconds
                assert abs(began - time.time()) < TIMEOUT_S
            assert answer.all_time_began.seconds == began
            (model,), (caller,) = answer.models, answer.usage
            assert (model.since_start.requests, caller.since_start.requests) == (3, 3)
            restarts = start + 1
            assert model.all_time == statistics_pb2.ModelTotals(
                requests=3 * restarts,
                errors={"INVALID_INPUT": restarts},
                items=4 * restarts,
                tokens=6 * restarts,
            )
            assert caller.all_time == statistics_pb2.UsageCounts(
                requests=3 * restarts, failed=restarts, items=4 * restarts, tokens=6 * restarts
            )
            with Client(running.address) as client:
                found = client.statistics()
            assert found.models[0].all_time.requests == 3 * restarts
            assert found.models[0].since_start.requests == 3
            assert found.usage[0].all_time.failed == restarts
            assert found.all_time_began.timestamp() == began
