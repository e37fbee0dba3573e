"""A model's states as callers see them: in GetModel, in ListModels and in events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import versions_pb2
from tests.running import RunningServer
from tests.tiny_model import make_tiny_model

from .calls import TIMEOUT_S, Connection, assert_no_surprise

State = tuple[str, str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("tiny", "broken"):
        make_tiny_model(tmp_path / "models", name)
    (tmp_path / "models" / "none").mkdir()
    (tmp_path / "models" / "none" / "model.toml").write_text('description = "not yet"\n')
    return tmp_path / "models"


@pytest.fixture
def connection(root: Path) -> Iterator[Connection]:
    with RunningServer(model_dir=root, preload="none", default_model="tiny") as server:
        with Connection(server.address) as connection:
            yield connection
        assert_no_surprise(server)


def state(connection: Connection, model: str) -> State:
    found = connection.control.GetModel(pb.GetModelRequest(model=model), timeout=TIMEOUT_S).model
    return _name(found.state), found.state_reason


def events(connection: Connection, model: str, count: int) -> list[State]:
    """The first states that were told of a model."""
    request = pb.WatchEventsRequest(
        after_sequence=0, models=[model], kinds=[pb.EVENT_KIND_MODEL_STATE_CHANGED]
    )
    found: list[pb.ModelStateChanged] = []
    answers = connection.control.WatchEvents(request, timeout=TIMEOUT_S)
    for answer in answers:
        if answer.HasField("event"):
            found.append(answer.event.model_state_changed)
        if len(found) == count:
            break
    answers.cancel()
    assert [each.before for each in found[1:]] == [each.after for each in found[:-1]]
    return [(_name(each.after), each.reason) for each in found]


def test_what_is_remembered_is_told_though_nobody_looks(root: Path) -> None:
    """Of each version, when it is said and when the server has read it after a restart."""
    make_tiny_model(root, version="2")
    for is_first in (True, False):
        with (
            RunningServer(model_dir=root, preload="none", default_model="tiny") as server,
            Connection(server.address) as connection,
        ):
            if is_first:
                request = versions_pb2.DeprecateModelRequest(model="tiny")
                request.deprecation.message = "no more"
                connection.control.DeprecateModel(request, timeout=TIMEOUT_S)
            for version in ("1", "2"):
                (told,) = events(connection, f"tiny@{version}", 1)
                assert told == ("deprecated", f"tiny@{version} is deprecated: no more")


def _name(value: pb.ModelState.ValueType) -> str:
    return pb.ModelState.Name(value).removeprefix("MODEL_STATE_").lower()


def test_a_deprecation_shows_in_memory_and_out_of_it(connection: Connection) -> None:
    """With its notice; residency says whether it is in memory, a filter finds it."""
    notice = "tiny@1 is deprecated; use broken"
    deprecation = versions_pb2.Deprecation(replacement="broken")
    connection.control.DeprecateModel(
        versions_pb2.DeprecateModelRequest(model="tiny", deprecation=deprecation),
        timeout=TIMEOUT_S,
    )
    assert state(connection, "tiny") == ("deprecated", notice)
    assert connection.load("tiny").HasField("residency")
    assert state(connection, "tiny") == ("deprecated", notice)
    request = pb.ListModelsRequest(states=[pb.MODEL_STATE_DEPRECATED])
    listed = connection.control.ListModels(request, timeout=TIMEOUT_S).models
    assert [each.name for each in listed] == ["tiny"]
    connection.unload("tiny")
    assert events(connection, "tiny", 5) == [
        ("deprecated", notice),
        ("loading", "asked"),
        ("deprecated", notice),
        ("unloading", "asked"),
        ("deprecated", notice),
    ]


def test_broken_files_are_an_error_and_are_told(connection: Connection, root: Path) -> None:
    """Once somebody looks; and so is that they were mended."""
    manifest = root / "broken" / "1" / "version.toml"
    whole = manifest.read_text()
    manifest.write_text("no manifest")
    found, reason = state(connection, "broken@1")
    assert found == "error"
    assert "version.toml" in reason
    manifest.write_text(whole)
    assert state(connection, "broken@1") == ("registered", "")
    assert events(connection, "broken@1", 2) == [("error", reason), ("registered", "")]


def test_a_model_without_a_version_is_registered(connection: Connection) -> None:
    """The reason says how to prepare one."""
    assert state(connection, "none") == ("registered", "run `shoal models pull none`")
