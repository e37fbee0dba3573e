"""What is known to be bad is passed over, told, and remembered; over a real channel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from shoal.v1 import model_control_pb2 as control_pb
from shoal.v1 import updates_pb2 as pb
from shoal.v1 import verification_pb2
from shoal.v1 import versions_pb2 as versions_pb
from shoal_server.registry.manifest import GRAPH_FILE
from tests.reference import keep_vectors
from tests.running import RunningServer
from tests.tiny_model import TinyModel, make_tiny_model

from .calls import TIMEOUT_S, Connection, assert_idle, eventually, refusal


class Board(Connection):
    """A connection that also keeps models as they should be."""

    def update(self, model: str) -> pb.UpdateModelResponse:
        return self.control.UpdateModel(pb.UpdateModelRequest(model=model), timeout=TIMEOUT_S)

    def reload(self, model: str) -> None:
        self.control.ReloadModel(pb.ReloadModelRequest(model=model), timeout=TIMEOUT_S)

    def verify(self, model: str) -> bool:
        request = verification_pb2.VerifyModelRequest(model=model)
        (result,) = self.control.VerifyModel(request, timeout=TIMEOUT_S).results
        return result.accuracy.passed

    def get(self, model: str) -> control_pb.ModelInfo:
        request = control_pb.GetModelRequest(model=model)
        return self.control.GetModel(request, timeout=TIMEOUT_S).model

    def set_policy(self, model: str, version: str = "") -> versions_pb.SetVersionPolicyResponse:
        request = versions_pb.SetVersionPolicyRequest(model=model, version=version)
        return self.control.SetVersionPolicy(request, timeout=TIMEOUT_S)

    def version_of(self, model: str) -> str:
        """The version that answers."""
        return self.embed("red", model=model).version


def add(root: Path, name: str, version: str, *, good: bool = True) -> TinyModel:
    """A version that passes its verification, or not."""
    model = make_tiny_model(root, name, version=version, seed=int(version))
    kept = None if good else -np.stack([model.vector("red"), model.vector("blue")])
    keep_vectors(model, texts=("red", "blue"), vectors=kept)
    return model


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def server(root: Path) -> Iterator[RunningServer]:
    add(root, "tiny", "1")
    with RunningServer(model_dir=root, default_model="tiny", preload="none") as running:
        yield running


@pytest.fixture
def board(server: RunningServer) -> Iterator[Board]:
    with Board(server.address) as connection:
        yield connection
        assert_idle(connection)


def test_a_bad_version_is_named_where_a_policy_meets_it(board: Board, root: Path) -> None:
    """Unpinned, the name passes over it; pinned to it, it serves; both say what is wrong."""
    assert board.version_of("tiny") == "1"
    add(root, "tiny", "2", good=False)
    assert "least cosine" in refusal(lambda: board.update("tiny")).message
    board.set_policy("tiny", "1")
    for version, serves in (("", "1"), ("2", "2")):
        answer = board.set_policy("tiny", version)
        assert answer.version == serves
        (bad,) = answer.bad_versions
        assert bad.model == "tiny@2"
        assert "least cosine" in bad.reason
    assert board.version_of("tiny") == "2"
    request = versions_pb.SwitchModelRequest(
        alias="prod", targets=[versions_pb.AliasTarget(model="tiny@2")]
    )
    switched = board.control.SwitchModel(request, timeout=TIMEOUT_S)
    assert [each.model for each in switched.bad_versions] == ["tiny@2"]


def test_an_update_takes_the_newest_that_is_good(board: Board, root: Path) -> None:
    """A bad one above it hides it neither from a call nor, once it is known, afterwards."""
    assert board.version_of("tiny") == "1"
    add(root, "tiny", "2")
    add(root, "tiny", "3", good=False)
    done = board.update("tiny")
    assert (done.updated, done.before, done.after) == (True, "1", "2")
    assert [each.model for each in done.bad_versions] == ["tiny@3"]
    assert board.version_of("tiny") == "2"
    assert not board.get("tiny@3").HasField("residency")


def test_what_was_found_outlasts_a_restart(root: Path) -> None:
    """The name stays with the good one, and the state says why, until the version is mended."""
    add(root, "tiny", "1")
    settings = {"model_dir": root, "default_model": "tiny", "preload": "none"}
    with RunningServer(**settings) as server, Board(server.address) as board:
        assert board.version_of("tiny") == "1"
        broken = make_tiny_model(root, version="2", replaced={GRAPH_FILE: b"no graph"})
        refusal(lambda: board.update("tiny"))
    with RunningServer(**settings) as server, Board(server.address) as board:
        assert board.version_of("tiny") == "1"
        shown = board.get("tiny@2")
        assert shown.state == control_pb.MODEL_STATE_ERROR
        assert shown.state_reason
        whole = make_tiny_model(root.parent / "side", version="2", seed=2)
        for path in whole.folder.iterdir():
            path.rename(broken.folder / path.name)
        assert board.update("tiny").after == "2"
        assert board.get("tiny@2").state == control_pb.MODEL_STATE_READY


def test_a_start_passes_over_what_does_not_load(root: Path) -> None:
    """Where a name is preloaded, the newest version that loads is; it needs no second start."""
    add(root, "tiny", "1")
    make_tiny_model(root, version="2", replaced={GRAPH_FILE: b"no graph"})
    with (
        RunningServer(model_dir=root, default_model="tiny", preload="tiny") as server,
        Board(server.address) as board,
    ):
        assert board.get("tiny@1").HasField("residency")
        assert board.version_of("tiny") == "1"


def test_a_request_finds_out_for_those_that_follow(server: RunningServer, root: Path) -> None:
    """A newest version that does not load fails one request; the next gets the one before it."""
    make_tiny_model(root, version="2", replaced={GRAPH_FILE: b"no graph"})
    with Board(server.address) as board:
        refusal(lambda: board.version_of("tiny"))
        eventually(lambda: board.set_policy("tiny").bad_versions, "it is known to be bad")
        assert board.version_of("tiny") == "1"


def test_an_update_of_a_name_that_does_not_load_finds_what_does(board: Board, root: Path) -> None:
    """It is not told that the newest serves; an older one that is good does then."""
    make_tiny_model(root, version="2", replaced={GRAPH_FILE: b"no graph"})
    done = board.update("tiny")
    assert (done.updated, done.before, done.after) == (True, "2", "1")
    assert [each.model for each in done.bad_versions] == ["tiny@2"]


@pytest.mark.parametrize("look", ["get", "list", "discover"])
def test_who_looks_sees_that_a_version_was_mended(board: Board, root: Path, look: str) -> None:
    """Without a load: it is registered again, and not the newest only."""
    add(root, "tiny", "3")
    broken = make_tiny_model(root, version="2", replaced={GRAPH_FILE: b"no graph"})
    refusal(lambda: board.version_of("tiny@2"))
    eventually(lambda: board.get("tiny@2").state == control_pb.MODEL_STATE_ERROR, "it is known")
    whole = make_tiny_model(root.parent / "side", version="2")
    for path in whole.folder.iterdir():
        path.rename(broken.folder / path.name)
    if look == "discover":
        board.control.DiscoverModels(versions_pb.DiscoverModelsRequest(), timeout=TIMEOUT_S)
    elif look == "list":
        request = control_pb.ListModelsRequest(scope=control_pb.MODEL_SCOPE_EVERY_VERSION)
        models = board.control.ListModels(request, timeout=TIMEOUT_S).models
        states = {each.version: each.state for each in models}
        assert states["2"] == control_pb.MODEL_STATE_REGISTERED
    assert board.get("tiny@2").state == control_pb.MODEL_STATE_REGISTERED


def test_what_is_in_memory_is_bad_though_its_files_are_others(board: Board, root: Path) -> None:
    """It serves the files as they were, until it is reloaded."""
    bad = add(root, "tiny", "2", good=False)
    board.embed("red", model="tiny@2")
    assert not board.verify("tiny@2")
    keep_vectors(bad, texts=("red", "blue"))
    assert board.get("tiny@2").state == control_pb.MODEL_STATE_ERROR
    board.reload("tiny@2")
    assert board.get("tiny@2").state == control_pb.MODEL_STATE_READY


def test_a_reload_that_failed_is_seen_afterwards(board: Board, root: Path) -> None:
    """As an event and beside the state, which stays ready; until one goes well."""
    board.load("tiny")
    graph = root / "tiny" / "1" / GRAPH_FILE
    whole = graph.read_bytes()
    fresh = graph.with_suffix(".new")
    fresh.write_bytes(b"no graph")
    fresh.rename(graph)
    refused = refusal(lambda: board.reload("tiny"))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    shown = board.get("tiny")
    assert shown.state == control_pb.MODEL_STATE_READY
    assert refused.message in shown.state_reason
    request = control_pb.WatchEventsRequest(
        kinds=[control_pb.EVENT_KIND_MODEL_RELOAD_FAILED], after_sequence=0
    )
    watch = board.control.WatchEvents(request, timeout=TIMEOUT_S)
    event = next(each.event for each in watch if each.HasField("event")).model_reload_failed
    watch.cancel()
    assert (event.model, event.version) == ("tiny", "1")
    assert (event.reason, event.message) == (refused.reason, refused.message)
    fresh.write_bytes(whole)
    fresh.rename(graph)
    board.reload("tiny")
    assert board.get("tiny").state_reason == ""


def test_a_reload_finds_out_whether_a_fault_is_mended(board: Board, root: Path) -> None:
    """Of the same files it is not; with others it is known to be bad no longer."""
    worse = add(root, "worse", "1", good=False)
    assert not board.verify("worse")
    board.reload("worse")
    assert board.get("worse").state == control_pb.MODEL_STATE_ERROR
    keep_vectors(worse, texts=("red", "blue"))
    board.reload("worse")
    assert board.get("worse").state == control_pb.MODEL_STATE_READY


def test_a_session_of_older_files_says_nothing_of_those_there_are(board: Board, root: Path) -> None:
    """An update does not compare it with vectors of other files; a reload reads them."""
    worse = add(root, "tiny", "2", good=False)
    assert board.version_of("tiny") == "2"
    assert not board.verify("tiny")
    worse.folder.rename(root.parent / "away")
    add(root, "tiny", "2")
    refused = refusal(lambda: board.update("tiny"))
    assert refused.reason == "UPDATE_FAILED"
    assert "shoal models reload tiny@2" in refused.message
    board.reload("tiny")
    assert board.get("tiny@2").state == control_pb.MODEL_STATE_READY
    assert board.set_policy("tiny").version == "2"
