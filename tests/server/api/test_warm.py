"""Models that leave a GPU stay warm in RAM, on a server whose GPU is only thought."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.v1 import model_control_pb2 as control_pb
from shoal_client import Client
from shoal_server.registry.manifest import GRAPH_FILE
from tests.running import RunningServer
from tests.tiny_model import TinyModel, make_tiny_model

from .calls import TIMEOUT_S, Connection, eventually, rows, unharmed


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    root = tmp_path_factory.mktemp("models")
    make_tiny_model(root, "default", serving={"pinned": True})
    make_tiny_model(root, "brief", serving={"ram_idle_s": 0.4})
    return make_tiny_model(root, seed=1)


@pytest.fixture(scope="module")
def running(tiny: TinyModel) -> Iterator[RunningServer]:
    """A server that lets idle models off the GPU very soon."""
    with RunningServer(
        "tests.fake_gpu",
        model_dir=tiny.root,
        default_model="default",
        precision="fp32",
        gpu_idle_s=0.1,
    ) as server:
        yield server


@pytest.fixture
def gpu(running: RunningServer) -> Iterator[Connection]:
    with unharmed(running) as connection:
        for name in ("tiny", "brief"):
            connection.unload(name)
        yield connection


def warm(connection: Connection) -> dict[str, control_pb.WarmModel]:
    return {each.model: each for each in connection.info().warm_models}


def make_warm(connection: Connection, name: str) -> control_pb.WarmModel:
    """Use a model and wait until it is off the GPU and in RAM."""
    connection.embed("red", model=name)
    eventually(
        lambda: name in warm(connection) and not warm(connection)[name].reading, f"{name} is warm"
    )
    return warm(connection)[name]


def told_until_released(connection: Connection, after: int) -> list[tuple[str, bool | str]]:
    """What became of the model behind this event, up to its leaving RAM."""
    answers = connection.control.WatchEvents(
        control_pb.WatchEventsRequest(models=["tiny"], after_sequence=after), timeout=TIMEOUT_S
    )
    told: list[tuple[str, bool | str]] = []
    for answer in answers:
        event = answer.event
        if event.HasField("model_loaded"):
            told.append(("loaded", event.model_loaded.from_warm))
        elif event.HasField("model_unloaded"):
            told.append(("unloaded", event.model_unloaded.stays_warm))
        elif event.HasField("warm_model_released"):
            reason = event.warm_model_released.reason
            told.append(("released", control_pb.UnloadReason.Name(reason)))
            break
    answers.cancel()
    return told


def last_event(connection: Connection) -> int:
    """The number of the one that was told last."""
    answers = connection.control.WatchEvents(control_pb.WatchEventsRequest(), timeout=TIMEOUT_S)
    mark = next(answers).mark
    answers.cancel()
    return mark.sequence


def test_an_idle_model_leaves_the_gpu_and_stays_warm(
    gpu: Connection, running: RunningServer
) -> None:
    """It is not ready, says why, counts in RAM and not on the GPU, and has its time left there."""
    form = make_warm(gpu, "tiny")
    assert form.version == "1"
    assert 1000 < form.idle_left.ToTimedelta().total_seconds() <= 1800
    model = gpu.models()["tiny"]
    assert model.state == control_pb.MODEL_STATE_REGISTERED
    assert model.state_reason == "warm in RAM"
    assert model.last_unload_reason == control_pb.UNLOAD_REASON_IDLE
    assert not model.HasField("residency")
    cpu, cuda = gpu.info().devices
    assert (cpu.resident_models, cpu.resident_bytes) == (0, form.memory_bytes)
    assert (cuda.device, cuda.resident_models) == ("cuda:0", 1)  # the pinned one
    assert running.metric("shoal_warm_models") == 1
    assert running.metric("shoal_warm_bytes") == form.memory_bytes


def test_it_comes_back_with_the_same_vectors(
    gpu: Connection, running: RunningServer, tiny: TinyModel
) -> None:
    """The next request loads it from RAM, and it serves as before."""
    before = rows(gpu.embed("red blue", model="tiny"))
    make_warm(gpu, "tiny")
    loads = running.metric("shoal_warm_model_loads_total", model="tiny")
    answer = gpu.embed("red blue", model="tiny", keep_alive_s=-1.0)
    assert answer.timings.load_us > 0
    assert rows(answer).tobytes() == before.tobytes()
    assert rows(answer)[0] == pytest.approx(tiny.vector("red blue"), abs=1e-6)
    residency = gpu.models()["tiny"].residency
    assert (residency.device, residency.from_warm) == ("cuda:0", True)
    assert residency.load_reason == control_pb.LOAD_REASON_REQUEST
    assert running.metric("shoal_warm_model_loads_total", model="tiny") == loads + 1
    assert warm(gpu) == {}
    assert running.metric("shoal_warm_bytes") == 0


def test_it_leaves_ram_by_its_own_time(gpu: Connection) -> None:
    """`ram_idle_s` of its model.toml, though it was on a GPU."""
    make_warm(gpu, "brief")
    eventually(lambda: not warm(gpu), "it has left RAM")
    assert gpu.models()["brief"].state_reason == "idle"
    assert gpu.info().devices[0].resident_bytes == 0


def test_unload_takes_it_out_of_ram(gpu: Connection) -> None:
    """All of its memory is free when UnloadModel answers."""
    make_warm(gpu, "tiny")
    gpu.unload("tiny")
    assert warm(gpu) == {}
    assert gpu.info().devices[0].resident_bytes == 0


def test_keep_alive_zero_releases_it_wholly(gpu: Connection) -> None:
    """Nothing of it stays, on the GPU or in RAM."""
    gpu.embed("red", model="tiny", keep_alive_s=0.0)
    eventually(lambda: not gpu.models()["tiny"].HasField("residency"), "it has left the GPU")
    assert warm(gpu) == {}
    assert gpu.info().devices[0].resident_bytes == 0


def test_events_tell_the_whole_way(gpu: Connection) -> None:
    """Off the GPU and warm, loaded again from there, warm again, and gone."""
    after = last_event(gpu)
    make_warm(gpu, "tiny")
    make_warm(gpu, "tiny")
    gpu.unload("tiny")
    assert told_until_released(gpu, after) == [
        ("loaded", False),
        ("unloaded", True),
        ("loaded", True),
        ("unloaded", True),
        ("released", "UNLOAD_REASON_ASKED"),
    ]


def test_the_sdk_shows_it(gpu: Connection, running: RunningServer) -> None:
    """In the answer of `server_info`."""
    make_warm(gpu, "tiny")
    with Client(running.address) as client:
        assert [each.model for each in client.server_info().warm_models] == ["tiny"]


def test_short_memory_of_the_gpu_lets_models_off_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its driver tells it: the least recently used one leaves and stays warm in RAM."""
    names = ("first", "second")
    graphs = [make_tiny_model(tmp_path, name).folder / GRAPH_FILE for name in names]
    size_bytes = max(graph.stat().st_size for graph in graphs)
    # With both of them 87% of it is in use: above the threshold, below critical.
    monkeypatch.setenv("FAKE_GPU_BYTES", str(int(2.3 * size_bytes)))
    with (
        RunningServer(
            "tests.fake_gpu",
            model_dir=tmp_path,
            default_model="second",
            precision="fp32",
            preload="none",
            cuda_memory_budget_bytes=1 << 30,
            pressure_interval_s=0.05,
            pressure_hold_s=0.2,
        ) as running,
        Connection(running.address) as connection,
    ):
        for name in names:
            connection.embed("red", model=name)
        eventually(lambda: warm(connection), "one of them is warm")
        assert warm(connection).keys() == {"first"}
        models = connection.models()
        assert models["first"].last_unload_reason == control_pb.UNLOAD_REASON_PRESSURE
        assert models["second"].residency.device == "cuda:0"
        eventually(
            lambda: connection.info().devices[1].pressure == control_pb.PRESSURE_LEVEL_NORMAL,
            "the GPU's memory is no longer short",
        )
        assert running.metric("shoal_memory_use_ratio", device="cuda:0") < 0.5
