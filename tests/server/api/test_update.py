"""A model's bare name goes over to a newer version that was found to be good."""

from __future__ import annotations

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
from shoal_server.preparation.pull import Order, pull
from shoal_server.registry.manifest import MODEL_FILE, ModelManifest
from shoal_server.registry.repository import ModelRepository
from tests.reference import keep_vectors
from tests.running import RunningServer
from tests.server.preparation.authors import TABLE, WORDS, Float32, write_authors_model
from tests.server.preparation.fake_hub import FakeHub, FakeRepository
from tests.server.preparation.fakes import RecordingProgress, no_environment
from tests.tiny_model import TinyModel, make_tiny_model

from .calls import (
    TIMEOUT_S,
    Connection,
    assert_idle,
    assert_no_surprise,
    eventually,
    refusal,
    rows,
)

TEXT = "red blue"
FIRST, SECOND = "a" * 40, "b" * 40


class Updating(Connection):
    """A connection that also updates models."""

    def update(
        self, model: str, source: pb.UpdateSource.ValueType = pb.UPDATE_SOURCE_UNSPECIFIED
    ) -> pb.UpdateModelResponse:
        request = pb.UpdateModelRequest(model=model, source=source)
        return self.control.UpdateModel(request, timeout=TIMEOUT_S)

    def get(self, model: str) -> control_pb.ModelInfo:
        request = control_pb.GetModelRequest(model=model)
        return self.control.GetModel(request, timeout=TIMEOUT_S).model

    def pin(self, model: str, version: str) -> None:
        request = versions_pb.SetVersionPolicyRequest(model=model, version=version)
        self.control.SetVersionPolicy(request, timeout=TIMEOUT_S)

    def version_of(self, model: str) -> str:
        """The version that answers."""
        return self.embed(TEXT, model=model).version

    def failure_of(self, model: str) -> pb.ModelUpdateFailed:
        """The first update of a model that failed."""
        request = control_pb.WatchEventsRequest(
            models=[model], kinds=[control_pb.EVENT_KIND_MODEL_UPDATE_FAILED], after_sequence=0
        )
        watch = self.control.WatchEvents(request, timeout=TIMEOUT_S)
        try:
            return next(each.event for each in watch if each.HasField("event")).model_update_failed
        finally:
            watch.cancel()


def add(root: Path, name: str, version: str, *, good: bool = True) -> TinyModel:
    """Prepare a version whose vectors are its own, and those that are kept with it or not.

    It appears whole, as prepared ones do.
    """
    staged = root.parent / "staged"
    model = make_tiny_model(staged, name, version=version, seed=int(version))
    kept = None if good else -np.stack([model.vector("red"), model.vector("blue")])
    keep_vectors(model, texts=("red", "blue"), vectors=kept)
    (root / name).mkdir(parents=True, exist_ok=True)
    model.folder.rename(root / name / version)
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository") / "models"
    for name in ("grows", "worse", "broken", "pinned", "cold"):
        add(root, name, "1")
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[RunningServer]:
    with RunningServer(model_dir=root, preload="none", default_model="grows") as it:
        yield it


@pytest.fixture
def board(server: RunningServer) -> Iterator[Updating]:
    with Updating(server.address) as connection:
        yield connection
        assert_idle(connection)
    assert_no_surprise(server)


def test_a_newer_version_that_is_good_is_served(board: Updating, root: Path) -> None:
    """It was verified and loaded before; the old one leaves memory."""
    assert board.version_of("grows") == "1"
    assert not board.update("grows").updated
    fresh = add(root, "grows", "2")
    assert board.version_of("grows") == "1"
    done = board.update("grows")
    assert (done.updated, done.before, done.after) == (True, "1", "2")
    assert done.accuracy.passed
    answer = board.embed(TEXT, model="grows")
    assert (answer.version, answer.timings.load_us) == ("2", 0)
    np.testing.assert_allclose(rows(answer)[0], fresh.vector(TEXT), atol=1e-6)
    eventually(lambda: not board.get("grows@1").HasField("residency"), "the old one is gone")


def test_one_that_is_no_good_is_left_with_its_reason(board: Updating, root: Path) -> None:
    """The name stays as it was; the version is marked, and not in memory."""
    assert board.version_of("worse") == "1"
    add(root, "worse", "2", good=False)
    refused = refusal(lambda: board.update("worse"))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "least cosine" in refused.message
    assert board.version_of("worse") == "1"
    shown = board.get("worse@2")
    assert (shown.state, shown.HasField("residency")) == (control_pb.MODEL_STATE_ERROR, False)
    event = board.failure_of("worse")
    assert (event.model, event.version, event.candidate) == ("worse", "1", "2")
    assert "least cosine" in event.reason


def test_one_that_can_not_be_loaded_is_left(board: Updating, root: Path) -> None:
    """As a switch to it would be refused."""
    assert board.version_of("broken") == "1"
    make_tiny_model(root, "broken", version="2", replaced={"model.onnx": b"no graph"})
    assert "broken@2" in refusal(lambda: board.update("broken")).message
    assert board.version_of("broken") == "1"


def test_what_is_pinned_does_not_move(board: Updating, root: Path) -> None:
    """Neither a name that an operator pinned nor an alias: those have calls of their own."""
    board.pin("pinned", "1")
    add(root, "pinned", "2")
    assert "pinned to version 1" in refusal(lambda: board.update("pinned")).message
    request = versions_pb.SwitchModelRequest(
        alias="alias", targets=[versions_pb.AliasTarget(model="pinned@1")]
    )
    board.control.SwitchModel(request, timeout=TIMEOUT_S)
    assert refusal(lambda: board.update("alias")).fields == ("model",)
    assert refusal(lambda: board.update("pinned@1")).code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(lambda: board.update("nobody")).code is grpc.StatusCode.NOT_FOUND


def test_an_unknown_source_is_refused(board: Updating) -> None:
    """The field is named."""
    unknown = 99
    refused = refusal(lambda: board.update("cold", unknown))  # type: ignore[arg-type]
    assert refused.fields == ("source",)


def test_names_in_memory_follow_by_themselves(tmp_path: Path) -> None:
    """At an interval, each; one that is no good is tried once, until its files are others."""
    root = tmp_path / "models"
    for name in ("good", "worse"):
        add(root, name, "1")
    settings = {"model_dir": root, "default_model": "good", "preload": "good,worse"}
    with (
        RunningServer(**settings, auto_update="repository", auto_update_interval_s=0.05) as server,
        Updating(server.address) as board,
    ):
        add(root, "worse", "2", good=False)
        for version in ("2", "3", "4"):
            add(root, "good", version)
            eventually(partial(is_served, board, "good", version), f"version {version}")
        assert board.version_of("worse") == "1"
        assert board.failure_of("worse").candidate == "2"
        assert server.metric("shoal_events_total", kind="model_update_failed") == 1
        add(root, "worse", "3")
        eventually(lambda: board.version_of("worse") == "3", "the next version")
        assert_no_surprise(server)


def is_served(board: Updating, model: str, version: str) -> bool:
    return board.version_of(model) == version


def repository_at(tables: dict[str, Float32], folder: Path, newest: str) -> FakeRepository:
    """A hub's repository with a commit for each table."""
    revisions = {}
    for commit, table in tables.items():
        files = write_authors_model(folder / commit, table=table)
        revisions[commit] = {
            str(path.relative_to(files)): path.read_bytes()
            for path in files.rglob("*")
            if path.is_file()
        }
    revisions["main"] = revisions[newest]
    return FakeRepository(revisions, commits={"main": newest})


def expected(table: Float32) -> Float32:
    """The vector of TEXT, float32[D]."""
    mean: Float32 = table[[WORDS.index(word) for word in TEXT.split()]].mean(axis=0)
    scaled: Float32 = mean / np.linalg.norm(mean)
    return scaled


def test_a_newer_revision_of_the_hub_is_prepared_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load: nobody fails; the version's vectors are those of the new files."""
    root, tables = tmp_path / "models", {FIRST: TABLE, SECOND: TABLE[:, ::-1].copy()}
    pull(
        Order(str(write_authors_model(tmp_path / "tiny"))),
        ModelRepository(root), no_environment(tmp_path), RecordingProgress(),
    )  # fmt: skip
    (root / "tiny" / MODEL_FILE).write_text(ModelManifest(source="org/tiny").to_toml())
    hub_state = {"org/tiny": repository_at(tables, tmp_path / "hub", FIRST)}
    stop, problems = threading.Event(), list[object]()
    with FakeHub(hub_state) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        with (
            RunningServer(
                model_dir=root, default_model="tiny", export_env=tmp_path / "none"
            ) as server,
            Updating(server.address) as board,
        ):

            def call() -> None:
                with Connection(server.address) as connection:
                    while not stop.is_set():
                        try:
                            connection.embed(TEXT)
                        except grpc.RpcError as error:
                            problems.append(error)
                            return

            caller = threading.Thread(target=call)
            caller.start()
            try:
                done = board.update("tiny", pb.UPDATE_SOURCE_HUB)
                assert (done.updated, done.before, done.after) == (True, "1", "2")
                hub_state["org/tiny"] = repository_at(tables, tmp_path / "again", SECOND)
                done = board.update("tiny", pb.UPDATE_SOURCE_HUB)
                assert (done.updated, done.after) == (True, "3")
                assert done.accuracy.passed
            finally:
                stop.set()
                caller.join()
            assert problems == []
            answer = board.embed(TEXT)
            assert answer.version == "3"
            np.testing.assert_allclose(rows(answer)[0], expected(tables[SECOND]), atol=1e-6)
            assert ModelRepository(root).version_manifest("tiny", "3").source.revision == SECOND
            del hub_state["org/tiny"]
            refused = refusal(lambda: board.update("tiny", pb.UPDATE_SOURCE_HUB))
            assert refused.reason == "UPDATE_FAILED"
            assert "org/tiny" in refused.message
            assert board.version_of("tiny") == "3"
            assert_no_surprise(server)
