"""A model's files are read again while requests go on."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest

from shoal.v1 import model_control_pb2 as control_pb
from shoal.v1 import updates_pb2 as pb
from shoal.v1 import versions_pb2 as versions_pb
from shoal_server.inference.packed import packed_key
from shoal_server.registry.manifest import GRAPH_FILE, VERSION_FILE, VersionManifest
from shoal_server.registry.verification import signature
from tests.running import RunningServer
from tests.tiny_model import TinyModel, make_tiny_model

from .calls import (
    SLOW,
    TIMEOUT_S,
    Connection,
    assert_idle,
    assert_no_surprise,
    eventually,
    refusal,
    rows,
)

TEXT = "red orange"
CALLERS = 8
RELOADS = 12


class Reloading(Connection):
    """A connection that also reads models again."""

    def reload(self, model: str) -> list[pb.ModelReloaded]:
        request = pb.ReloadModelRequest(model=model)
        return list(self.control.ReloadModel(request, timeout=TIMEOUT_S).results)

    def get(self, model: str) -> control_pb.ModelInfo:
        request = control_pb.GetModelRequest(model=model)
        return self.control.GetModel(request, timeout=TIMEOUT_S).model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository") / "models"


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[RunningServer]:
    """One for all tests, each of which has a model of its own."""
    make_tiny_model(root, "first")
    with RunningServer(model_dir=root, preload="none", default_model="first") as it:
        yield it


@pytest.fixture
def model(root: Path, request: pytest.FixtureRequest) -> TinyModel:
    name = request.node.name.removeprefix("test_")
    return make_tiny_model(root, name, serving={"max_batch_items": 4})


@pytest.fixture
def board(server: RunningServer) -> Iterator[Reloading]:
    with Reloading(server.address) as connection:
        yield connection
        assert_idle(connection)
    assert_no_surprise(server)


def put(path: Path, data: bytes) -> None:
    """Whoever reads it, such as the thread that packs it, reads what was there or this."""
    fresh = path.parents[2] / path.name
    fresh.write_bytes(data)
    fresh.rename(path)


def damaged(data: bytes) -> bytes:
    """The same but for one bit."""
    return data[:-1] + bytes([data[-1] ^ 1])


def seal_of(model: TinyModel) -> Path:
    """Where it is remembered what was checked of a model, once its graph was packed."""
    files = VersionManifest.read(model.folder / VERSION_FILE).files
    seal = model.root / ".packed" / packed_key(files) / "seal.json"
    eventually(seal.exists, "a packed graph")
    return seal


def change_manifest(model: TinyModel, **fields: object) -> None:
    path = model.folder / VERSION_FILE
    path.write_text(VersionManifest.read(path).model_copy(update=fields).to_toml())


def replace_graph(model: TinyModel, seed: int) -> TinyModel:
    """Put another graph in place of a model's, as if it had been prepared so."""
    other = make_tiny_model(model.root.parent / f"{model.name}-{seed}", seed=seed)
    write_graph(model, (other.folder / GRAPH_FILE).read_bytes())
    return other


def write_graph(model: TinyModel, data: bytes) -> None:
    put(model.folder / GRAPH_FILE, data)
    files = VersionManifest.read(model.folder / VERSION_FILE).files
    change_manifest(model, files={**files, GRAPH_FILE: hashlib.sha256(data).hexdigest()})


def test_what_is_on_the_disk_is_served_and_shown(board: Reloading, model: TinyModel) -> None:
    """Graph and prompts; until then what was read before is served."""
    board.load(model.name)
    other = replace_graph(model, seed=7)
    change_manifest(model, prompts={"fresh": "blue "})
    np.testing.assert_allclose(
        rows(board.embed(TEXT, model=model.name))[0], model.vector(TEXT), atol=1e-6
    )
    refused = refusal(lambda: board.embed(TEXT, prompt_name="fresh", model=model.name))
    assert refused.fields == ("prompt_name",)
    (done,) = board.reload(model.name)
    assert (done.model, done.version, done.device) == (model.name, "1", "cpu")
    np.testing.assert_allclose(
        rows(board.embed(TEXT, model=model.name))[0], other.vector(TEXT), atol=1e-6
    )
    prompted = rows(board.embed("red", prompt_name="fresh", model=model.name))[0]
    np.testing.assert_allclose(prompted, other.vector("blue red"), atol=1e-6)
    assert dict(board.get(model.name).prompts) == {"fresh": "blue "}


def test_loading_what_serves_changes_nothing_of_it(board: Reloading, model: TinyModel) -> None:
    """Nor does a tag or an alias: names go by the manifest that the session was made of."""
    board.load(model.name)
    change_manifest(model, prompts={"fresh": "blue "})
    board.load(model.name)
    board.control.UpdateTags(
        versions_pb.UpdateTagsRequest(model=model.name, add=["seen"]), timeout=TIMEOUT_S
    )
    targets = [versions_pb.AliasTarget(model=model.name)]
    request = versions_pb.SwitchModelRequest(alias="by-alias", targets=targets)
    board.control.SwitchModel(request, timeout=TIMEOUT_S)
    for name in (model.name, f"{model.name}@1", "by-alias"):
        refused = refusal(partial(board.embed, TEXT, prompt_name="fresh", model=name))
        assert refused.fields == ("prompt_name",)
        assert "fresh" not in board.get(name).prompts
    board.unload(model.name)
    board.load(model.name)
    board.embed(TEXT, prompt_name="fresh", model=model.name)
    assert dict(board.get(model.name).prompts) == {"fresh": "blue "}


def test_no_request_fails_or_waits_for_a_load(
    server: RunningServer, board: Reloading, model: TinyModel, tmp_path: Path
) -> None:
    """Under constant load; each answer is whole, of the old files or of the new ones."""
    models = [model, make_tiny_model(tmp_path, seed=5)]
    graphs = [(each.folder / GRAPH_FILE).read_bytes() for each in models]
    board.load(model.name)
    reloads = server.metric("shoal_events_total", kind="model_reloaded")
    stop = threading.Event()
    problems: list[object] = []

    def call() -> None:
        expected = [each.vector(TEXT) for each in models]
        with Connection(server.address) as connection:
            while not stop.is_set():
                try:
                    answer = connection.embed(TEXT, TEXT, model=model.name)
                except grpc.RpcError as error:
                    problems.append(error)
                    return
                if answer.timings.load_us:
                    problems.append("waited for a load")
                first, second = rows(answer)
                if not any(np.allclose(first, each, atol=1e-6) for each in expected):
                    problems.append(first)
                if not np.array_equal(first, second):
                    problems.append("an answer of both")

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        for number in range(RELOADS):
            write_graph(model, graphs[1 - number % 2])
            board.reload(model.name)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert problems == []
    in_memory = [each for each in board.models().values() if each.HasField("residency")]
    (device,) = board.info().devices
    assert device.resident_models == len(in_memory), "an old session was not given up"
    assert server.metric("shoal_events_total", kind="model_reloaded") == reloads + RELOADS


def test_a_request_in_flight_finishes_on_the_old_session(
    board: Reloading, model: TinyModel
) -> None:
    """It began with the old files, and its answer is theirs."""
    board.load(model.name)
    text = f"red {SLOW}"
    expected = rows(board.embed(text, model=model.name))[0]
    other = replace_graph(model, seed=7)
    slow = board.start(text, model=model.name)
    board.wait_in_flight(1)
    board.reload(model.name)
    np.testing.assert_array_equal(rows(slow.result())[0], expected)
    np.testing.assert_allclose(
        rows(board.embed(TEXT, model=model.name))[0], other.vector(TEXT), atol=1e-6
    )


def test_files_that_can_not_be_served_leave_the_old_ones_serving(
    board: Reloading, model: TinyModel
) -> None:
    """The refusal names the file; what was loaded serves on, ready as before."""
    board.load(model.name)
    before = board.embed(TEXT, model=model.name).vectors
    seal_of(model)
    graph = model.folder / GRAPH_FILE
    whole = graph.read_bytes()
    put(graph, damaged(whole))
    refused = refusal(lambda: board.reload(model.name))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "MODEL_FILE_CORRUPT"
    assert refused.metadata["file"] == GRAPH_FILE
    assert board.embed(TEXT, model=model.name).vectors == before
    assert board.get(model.name).state == control_pb.MODEL_STATE_READY
    put(graph, whole)
    board.reload(model.name)
    assert board.embed(TEXT, model=model.name).vectors == before


def test_a_manifest_that_can_not_be_read_changes_nothing(
    board: Reloading, model: TinyModel
) -> None:
    """Not even for names that are asked for the first time afterwards."""
    board.load(f"{model.name}@1")
    path = model.folder / VERSION_FILE
    whole = path.read_text()
    path.write_text("no TOML")
    assert VERSION_FILE in refusal(lambda: board.reload(f"{model.name}@1")).message
    np.testing.assert_allclose(
        rows(board.embed(TEXT, model=f"{model.name}@1"))[0], model.vector(TEXT), atol=1e-6
    )
    path.write_text(whole)


def test_nothing_that_is_remembered_of_the_files_is_trusted(
    board: Reloading, model: TinyModel
) -> None:
    """A file that was changed behind the server's back is found, though a load would not."""
    board.load(model.name)
    board.embed(TEXT, model=model.name)
    seal = seal_of(model)
    graph = model.folder / GRAPH_FILE
    put(graph, damaged(graph.read_bytes()))
    remembered = json.loads(seal.read_text())
    names = [path for path in model.folder.iterdir() if path.name != VERSION_FILE]
    remembered["verified"] = {str(path): signature(path) for path in names}
    seal.write_text(json.dumps(remembered))
    board.unload(model.name)
    board.load(model.name)
    assert refusal(lambda: board.reload(model.name)).metadata["file"] == GRAPH_FILE


def test_what_is_not_in_memory_is_checked_and_not_loaded(
    board: Reloading, model: TinyModel
) -> None:
    """A failure that was mended is forgotten: the next request loads it at once."""
    graph = model.folder / GRAPH_FILE
    whole = graph.read_bytes()
    put(graph, b"broken")
    refusal(lambda: board.load(model.name))
    assert refusal(lambda: board.reload(model.name)).reason == "MODEL_FILE_CORRUPT"
    put(graph, whole)
    (done,) = board.reload(model.name)
    assert done.device == ""
    assert not board.get(model.name).HasField("residency")
    assert len(board.embed(TEXT, model=model.name).vectors) > 0


def test_watchers_see_that_it_is_being_read_again(board: Reloading, model: TinyModel) -> None:
    """It goes from ready to updating and back, and nothing else happens to it."""
    board.load(model.name)
    board.reload(model.name)
    request = control_pb.WatchEventsRequest(
        models=[model.name],
        kinds=[control_pb.EVENT_KIND_MODEL_STATE_CHANGED, control_pb.EVENT_KIND_MODEL_RELOADED],
        after_sequence=0,
    )
    watch = board.control.WatchEvents(request, timeout=TIMEOUT_S)
    told = []
    for answer in watch:
        if answer.event.HasField("model_reloaded"):
            break
        if answer.HasField("event"):
            told.append(answer.event.model_state_changed.after)
    watch.cancel()
    assert told == [
        control_pb.MODEL_STATE_LOADING,
        control_pb.MODEL_STATE_READY,
        control_pb.MODEL_STATE_UPDATING,
        control_pb.MODEL_STATE_READY,
    ]


def test_unknown_models_are_told(board: Reloading) -> None:
    """As by every call."""
    assert refusal(lambda: board.reload("nobody")).code is grpc.StatusCode.NOT_FOUND
