"""Models leave memory by themselves, and say so: idleness, keep-alive, pins, pressure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shoal.v1 import model_control_pb2 as control_pb
from shoal_client import Client
from shoal_server.api.residency import wall_clock
from tests.running import RunningServer
from tests.tiny_model import make_tiny_model

from .calls import TIMEOUT_S, Connection, eventually, refusal, unharmed

READY, REGISTERED = control_pb.MODEL_STATE_READY, control_pb.MODEL_STATE_REGISTERED
IDLE_S = 600.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of three models: one that is kept long, one not at all, and the default one."""
    root = tmp_path_factory.mktemp("models")
    make_tiny_model(root, "default", serving={"pinned": True})
    make_tiny_model(root, "kept", serving={"ram_idle_s": 0})
    make_tiny_model(root, "fleeting", serving={"ram_idle_s": 0.05})
    make_tiny_model(root, "plain")
    with RunningServer(
        model_dir=root, default_model="default", ram_idle_s=IDLE_S, pressure_interval_s=0.05
    ) as server:
        yield server


@pytest.fixture
def memory(running: RunningServer) -> Iterator[Connection]:
    with unharmed(running) as connection:
        for name in ("kept", "fleeting", "plain"):
            connection.unload(name)
        yield connection


def unloaded(connection: Connection, name: str) -> control_pb.ModelInfo:
    """The model, once it has left memory."""
    eventually(lambda: connection.models()[name].state == REGISTERED, f"{name} has left memory")
    return connection.models()[name]


def test_a_moment_is_told_to_the_millisecond() -> None:
    """So that the same one reads the same in the next answer, though the clocks are two."""
    assert wall_clock(1234.5678).nanos % 1_000_000 == 0


def test_an_idle_model_leaves_and_comes_back(memory: Connection) -> None:
    """By its own time-out; the next request loads it, and both say why."""
    memory.embed("red", model="fleeting")
    model = unloaded(memory, "fleeting")
    assert model.last_unload_reason == control_pb.UNLOAD_REASON_IDLE
    assert model.HasField("last_unloaded_at")
    assert memory.embed("red", model="fleeting").timings.load_us > 0


def test_keep_alive_zero_releases_the_model(memory: Connection, running: RunningServer) -> None:
    """As soon as nobody uses it, though the server would keep it."""
    before = running.metric("shoal_model_unloads_total", model="plain", reason="keep_alive")
    memory.embed("red", model="plain", keep_alive_s=0.0)
    assert unloaded(memory, "plain").last_unload_reason == control_pb.UNLOAD_REASON_KEEP_ALIVE
    after = running.metric("shoal_model_unloads_total", model="plain", reason="keep_alive")
    assert after == before + 1


def test_a_model_says_how_long_it_stays(memory: Connection) -> None:
    """The server's time-out, then the request's, then for ever; and why it was loaded."""
    left: list[float | None] = []
    for fields in ({}, {"keep_alive_s": 50.0}, {"keep_alive_s": -1.0}, {}):
        memory.embed("red", model="plain", **fields)
        residency = memory.models()["plain"].residency
        has_limit = residency.HasField("idle_left")
        left.append(residency.idle_left.ToTimedelta().total_seconds() if has_limit else None)
    assert left[0] is not None
    assert IDLE_S - 60 < left[0] <= IDLE_S
    assert left[1] is not None
    assert 0 < left[1] <= 50
    assert left[2:] == [None, None]
    assert memory.models()["plain"].residency.load_reason == control_pb.LOAD_REASON_REQUEST
    assert memory.load("kept").residency.load_reason == control_pb.LOAD_REASON_ASKED
    assert memory.models()["default"].residency.load_reason == control_pb.LOAD_REASON_START


def test_a_model_can_be_kept_for_ever_by_its_own_settings(memory: Connection) -> None:
    """`ram_idle_s = 0` in its model.toml."""
    memory.embed("red", model="kept")
    assert not memory.models()["kept"].residency.HasField("idle_left")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_keep_alive_that_is_no_number_is_refused(memory: Connection, value: float) -> None:
    """INVALID_ARGUMENT that names the field."""
    found = refusal(lambda: memory.embed("red", keep_alive_s=value))
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.fields == ("keep_alive_s",)


def test_a_pinned_model_outlives_its_time(memory: Connection) -> None:
    """Pinned without a load, it stays though it is idle for too long; unpinned, it leaves."""
    lived = "fleeting"
    memory.load(lived, pin=True)
    pinned = memory.control.PinModel(control_pb.PinModelRequest(model=lived)).model
    assert pinned.residency.pinned
    memory.embed("red", model=lived, keep_alive_s=0.0)
    # What is due at all is due before this one, which the same timer releases.
    memory.embed("red", model="plain", keep_alive_s=0.05)
    unloaded(memory, "plain")
    assert memory.models()[lived].state == READY
    let_go = memory.control.PinModel(control_pb.PinModelRequest(model=lived, pin=False)).model
    assert not let_go.residency.pinned
    assert unloaded(memory, lived).last_unload_reason == control_pb.UNLOAD_REASON_KEEP_ALIVE


def test_pinning_loads_nothing(memory: Connection) -> None:
    """FAILED_PRECONDITION for a model that is not in memory; unpinning it is done already."""
    pin = control_pb.PinModelRequest(model="plain")
    found = refusal(lambda: memory.control.PinModel(pin))
    assert found.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "not in memory" in found.message
    pin.pin = False
    assert memory.control.PinModel(pin).model.state == REGISTERED
    pin.model = "nobody"
    assert refusal(lambda: memory.control.PinModel(pin)).code is grpc.StatusCode.NOT_FOUND


def test_the_sdk_pins_and_keeps_alive(memory: Connection, running: RunningServer) -> None:
    """The same through `Client`."""
    with Client(running.address) as client:
        client.embed(["red"], model="plain", keep_alive_s=-1)
        assert client.pin_model("plain").residency.pinned
        assert not client.pin_model("plain", pin=False).residency.pinned
        assert not client.get_model("plain").residency.HasField("idle_left")


def test_the_server_says_how_short_memory_is(memory: Connection, running: RunningServer) -> None:
    """Of each device, in the answer and as metrics."""
    eventually(lambda: memory.info().devices[0].pressure, "the server has looked at its memory")
    device = memory.info().devices[0]
    assert device.device == "cpu"
    assert device.HasField("memory_use")
    assert 0 < device.memory_use < 1
    shown = running.metric("shoal_memory_use_ratio", device="cpu")
    assert shown == pytest.approx(device.memory_use, abs=0.2)


def test_the_server_lists_who_is_in_memory_and_who_left(memory: Connection) -> None:
    """All of them at once, those that would go first in front, with use and reasons."""
    memory.load("kept")
    for name in ("plain", "plain", "kept"):
        memory.embed("red", model=name)
    memory.embed("red", model="fleeting", keep_alive_s=0.0)
    unloaded(memory, "fleeting")
    info = memory.info()
    residents = {each.model: each for each in info.residents}
    assert [each.model for each in info.residents][-2:] == ["plain", "kept"]
    assert residents.keys() == {"default", "plain", "kept"}
    assert all(each.state == READY for each in info.residents)
    assert residents["plain"].residency.uses == 2
    assert residents["default"].residency.pinned
    assert residents["kept"].residency.load_reason == control_pb.LOAD_REASON_ASKED
    assert residents["kept"].residency.uses == 1
    left = info.departures[0]
    assert (left.model, left.version) == ("fleeting", "1")
    assert left.reason == control_pb.UNLOAD_REASON_KEEP_ALIVE
    assert left.HasField("at")


def test_at_critical_no_model_is_loaded(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo; what is in memory and pinned serves on."""
    make_tiny_model(tmp_path, "default", serving={"pinned": True})
    make_tiny_model(tmp_path, "plain")
    with (
        RunningServer(
            model_dir=tmp_path,
            default_model="default",
            pressure_interval_s=0.05,
            pressure_lower_threshold=1e-9,
            pressure_threshold=2e-9,
            pressure_critical_threshold=3e-9,
        ) as running,
        Connection(running.address) as connection,
    ):
        eventually(
            lambda: connection.info().devices[0].pressure == control_pb.PRESSURE_LEVEL_CRITICAL,
            "memory counts as critical",
        )
        found = refusal(lambda: connection.embed("red", model="plain"))
        assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert found.retry_s is not None
        assert "in use" in found.message
        assert connection.embed("red").model == "default"
        assert running.metric("shoal_memory_pressure_level", device="cpu") == 2
        told = pressure_event(connection)
        assert (told.device, told.before, told.after) == (
            "cpu",
            control_pb.PRESSURE_LEVEL_NORMAL,
            control_pb.PRESSURE_LEVEL_CRITICAL,
        )
        assert 0 < told.memory_use < 1


def pressure_event(connection: Connection) -> control_pb.PressureChanged:
    """The first change of a level that the server tells of."""
    request = control_pb.WatchEventsRequest(
        kinds=[control_pb.EVENT_KIND_PRESSURE_CHANGED], after_sequence=0
    )
    answers = connection.control.WatchEvents(request, timeout=TIMEOUT_S)
    try:
        return next(each.event for each in answers if each.HasField("event")).pressure_changed
    finally:
        answers.cancel()
