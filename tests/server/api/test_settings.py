"""UpdateSettings over a real channel: changes take hold at once, the rest says restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shoal.v1 import embed_pb2 as pb
from shoal.v1 import model_control_pb2 as control_pb
from shoal.v1 import settings_pb2
from shoal_server.settings import Settings
from tests.running import RunningServer
from tests.tiny_model import make_tiny_model

from .calls import TIMEOUT_S, Connection, eventually, refusal, unharmed


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = make_tiny_model(tmp_path_factory.mktemp("models"))
    with RunningServer(
        model_dir=model.root, default_model="tiny", cpu_slots=1, pressure_interval_s=0.05
    ) as server:
        yield server


@pytest.fixture
def tiny(running: RunningServer) -> Iterator[Connection]:
    """After each test the settings are as at the start."""
    with unharmed(running) as connection:
        yield connection
        changed = {
            each.name: each.configured_value
            for each in update(connection).values()
            if each.HasField("configured_value")
        }
        update(connection, **changed)


def update(connection: Connection, **settings: str) -> dict[str, settings_pb2.Setting]:
    """Every setting as it is then, by name."""
    request = settings_pb2.UpdateSettingsRequest(settings=settings)
    answer = connection.control.UpdateSettings(request, timeout=TIMEOUT_S)
    return {each.name: each for each in answer.settings}


def test_all_settings_are_told(tiny: Connection) -> None:
    """Their values, and which a restart takes."""
    found = update(tiny)
    assert list(found) == list(Settings.model_fields)
    assert (found["default_model"].value, found["default_model"].changeable) == ("tiny", False)
    assert (found["log_level"].value, found["log_level"].changeable) == ("info", True)
    assert not found["log_level"].HasField("configured_value")


def test_every_setting_can_be_changed_or_says_that_it_takes_a_restart(tiny: Connection) -> None:
    """By what is told of it; setting it to what it is changes nothing."""
    for name, setting in update(tiny).items():
        if setting.changeable:
            assert not update(tiny, **{name: setting.value})[name].HasField("configured_value")
        else:
            found = refusal(lambda: update(tiny, **{name: setting.value}))  # noqa: B023
            assert found.code == grpc.StatusCode.FAILED_PRECONDITION
            assert name in found.message
            assert "restart" in found.message


def test_a_change_tells_what_it_was(tiny: Connection) -> None:
    """So that it can be taken back."""
    found = update(tiny, slow_request_ms="250")["slow_request_ms"]
    assert (found.value, found.configured_value) == ("250.0", "1000.0")


def test_a_wrong_one_is_refused(tiny: Connection) -> None:
    """With the setting's name and what is wrong; nothing changes."""
    found = refusal(lambda: update(tiny, log_level="debug", max_batch_items="0"))
    assert found.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "max_batch_items" in found.message
    assert update(tiny)["log_level"].value == "info"


def test_a_limit_is_one_that_can_be_told(tiny: Connection) -> None:
    """What GetServerInfo has no room for, or no float holds, is refused."""
    for name in ("max_waiting_items", "rate_limit_tokens_per_min", "max_inflight_bytes"):
        found = refusal(lambda: update(tiny, **{name: "1" + "0" * 400}))  # noqa: B023
        assert found.fields == (f"settings[{name}]",)
    update(tiny, max_waiting_items=str(2**31 - 1), max_inflight_bytes=str(2**63 - 1))
    assert tiny.info().limits.bytes_in_flight == 2**63 - 1


def test_log_requests(tiny: Connection, running: RunningServer) -> None:
    """The next request is in the log, those before are not."""

    def logged() -> int:
        return sum('"event": "request"' in line for line in list(running.output))

    tiny.embed("red")
    before = logged()
    update(tiny, log_requests="true")
    tiny.embed("red")
    eventually(lambda: logged() > before, "the request in the log")


def test_log_level(tiny: Connection, running: RunningServer) -> None:
    """What was logged before is not any more."""

    def fail(request_id: str) -> None:
        metadata = (("x-request-id", request_id),)
        request = pb.EmbedRequest()
        refusal(lambda: tiny.embedding.Embed(request, timeout=TIMEOUT_S, metadata=metadata))

    def is_logged(text: str) -> bool:
        return any(text in line for line in list(running.output))

    update(tiny, log_level="error")
    fail("hidden")
    update(tiny, log_level="info")
    fail("shown")
    eventually(lambda: is_logged("shown"), "a line in the log")
    assert not is_logged("hidden")


def test_rate_limits(tiny: Connection) -> None:
    """Turned on, and off again."""
    update(tiny, rate_limit_requests_per_min="1")
    tiny.embed("red")
    assert refusal(lambda: tiny.embed("red")).reason == "RATE_LIMITED"
    update(tiny, rate_limit_requests_per_min="unset")
    tiny.embed("red")


def test_batches_of_models_in_memory(tiny: Connection) -> None:
    """They are formed by the new limits from the next one on."""
    assert tiny.embed(*["red"] * 8).timings.batch_size > 1
    update(tiny, max_batch_items="1")
    assert tiny.embed(*["red"] * 8).timings.batch_size == 1
    assert tiny.info().limits.batch_items == 1


def test_what_may_be_in_flight(tiny: Connection) -> None:
    """A smaller limit refuses what a larger one took: two requests, where one item may wait."""
    update(tiny, max_waiting_items="1")
    assert tiny.info().limits.items_in_flight == 1
    request = pb.EmbedRequest(texts=["slow slow slow", "slow"])
    calls = [tiny.embedding.Embed.future(request, timeout=TIMEOUT_S) for _ in range(20)]
    codes = [call.code() for call in calls]
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
    assert grpc.StatusCode.OK in codes


def test_idle_time_outs(tiny: Connection) -> None:
    """A model that waits for the longer one leaves after the shorter one."""
    tiny.embed("red")
    update(tiny, ram_idle_s="0.05")
    eventually(lambda: not tiny.models()["tiny"].HasField("residency"), "the model to leave")
    update(tiny, ram_idle_s="1800")


def test_memory_pressure(tiny: Connection) -> None:
    """Thresholds that are below what is in use now."""
    tiny.embed("red")
    thresholds = {"pressure_lower_threshold": "1e-7", "pressure_threshold": "2e-7"}
    update(tiny, pressure_hold_s="0", **thresholds)
    eventually(
        lambda: tiny.info().devices[0].pressure == control_pb.PRESSURE_LEVEL_ELEVATED,
        "memory to count as short",
    )


def test_watchers_are_told(tiny: Connection) -> None:
    """With the values before and after."""
    request = control_pb.WatchEventsRequest()
    watch = tiny.control.WatchEvents(request, timeout=TIMEOUT_S)
    next(watch)  # the mark that it watches
    update(tiny, slow_request_ms="250")
    event = next(each.event for each in watch if each.HasField("event"))
    (change,) = event.settings_changed.changes
    watch.cancel()
    assert (change.name, change.before, change.after) == ("slow_request_ms", "1000.0", "250.0")


def test_changes_are_in_the_log(tiny: Connection, running: RunningServer) -> None:
    """Who reads it later can tell why the server behaves otherwise."""
    update(tiny, slow_request_ms="250")
    found = eventually(
        lambda: [line for line in list(running.output) if '"settings_changed"' in line],
        "a line in the log",
    )
    assert "slow_request_ms" in json.loads(found[0])


def test_what_is_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    """Also where the configuration says otherwise; and it is told that it is kept."""
    make_tiny_model(tmp_path)
    settings = {"model_dir": tmp_path, "default_model": "tiny", "max_batch_items": 7}
    with RunningServer(**settings) as server, Connection(server.address) as connection:
        request = settings_pb2.UpdateSettingsRequest(
            settings={"max_batch_items": "5"}, persist=True
        )
        connection.control.UpdateSettings(request, timeout=TIMEOUT_S)
    with RunningServer(**settings) as server, Connection(server.address) as connection:
        found = update(connection)["max_batch_items"]
        assert (found.value, found.configured_value, found.persistent) == ("5", "7", True)
        assert connection.info().limits.batch_items == 5
        connection.embed("red")
