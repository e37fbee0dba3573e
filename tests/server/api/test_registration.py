"""Models become known, and are known no longer, one at a time and for good."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import versions_pb2 as versions_pb
from tests.running import RunningServer
from tests.tiny_model import make_tiny_model

from .calls import SLOW, TIMEOUT_S, Connection, assert_no_surprise, eventually, refusal


class Register(Connection):
    """A connection that also says what there is."""

    def register(self, model: str) -> pb.RegisterModelResponse:
        return self.control.RegisterModel(pb.RegisterModelRequest(model=model), timeout=TIMEOUT_S)

    def deregister(self, model: str, **fields: float) -> None:
        request = pb.DeregisterModelRequest(model=model)
        if "force_after_s" in fields:
            request.force_after.FromNanoseconds(int(fields["force_after_s"] * 1e9))
        self.control.DeregisterModel(request, timeout=TIMEOUT_S)

    def discover(self) -> versions_pb.DiscoverModelsResponse:
        return self.control.DiscoverModels(versions_pb.DiscoverModelsRequest(), timeout=TIMEOUT_S)

    def get(self, model: str) -> pb.ModelInfo:
        return self.control.GetModel(pb.GetModelRequest(model=model), timeout=TIMEOUT_S).model

    def switch(self, alias: str, target: str) -> None:
        self.control.SwitchModel(
            versions_pb.SwitchModelRequest(
                alias=alias, targets=[versions_pb.AliasTarget(model=target)]
            ),
            timeout=TIMEOUT_S,
        )

    def events(self) -> list[tuple[str, str]]:
        """Kind and model of what was told about registrations so far."""
        kinds = [pb.EVENT_KIND_MODEL_REGISTERED, pb.EVENT_KIND_MODEL_DEREGISTERED]
        request = pb.WatchEventsRequest(kinds=kinds, after_sequence=0)
        found: list[tuple[str, str]] = []
        stream = self.control.WatchEvents(request, timeout=TIMEOUT_S)
        for answer in stream:
            if answer.HasField("event"):
                kind = str(answer.event.WhichOneof("kind"))
                found.append((kind, getattr(answer.event, kind).model))
                if found[-1] == ("model_registered", "end"):
                    break
        stream.cancel()
        return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        make_tiny_model(tmp_path / "models", name)
    return tmp_path / "models"


@pytest.fixture
def server(root: Path) -> Iterator[RunningServer]:
    with RunningServer(model_dir=root, default_model="one", preload="none") as running:
        # From then on what is there is known.
        eventually(lambda: any("models_read" in line for line in running.output), "models read")
        yield running


@pytest.fixture
def books(server: RunningServer) -> Iterator[Register]:
    with Register(server.address) as connection:
        yield connection
    assert_no_surprise(server)


def test_a_new_folder_is_known_at_once(books: Register, root: Path) -> None:
    """It is listed, described and served; registering it again changes nothing."""
    make_tiny_model(root, "three")
    answer = books.register("three")
    assert (answer.model.name, answer.model.version, answer.added) == ("three", "1", True)
    assert "three" in books.models()
    assert books.embed("red", model="three").vectors
    again = books.register("three")
    assert (again.added, again.changed, again.outdated) == (False, False, False)


def test_a_new_version_is_meant_at_once(books: Register, root: Path) -> None:
    """By a name that was asked for and is not in memory."""
    books.register("two")
    assert books.embed("red", model="two").version == "1"
    books.unload("two")
    make_tiny_model(root / "side", "two", version="2")
    (root / "side" / "two" / "2").rename(root / "two" / "2")
    answer = books.register("two")
    assert (answer.added, answer.changed, answer.outdated) == (False, True, False)
    assert answer.model.version == "2"
    assert books.embed("red", model="two").version == "2"


def test_what_is_in_memory_serves_on(books: Register, root: Path) -> None:
    """By the version that it was, until it is loaded; the answer says so."""
    books.register("two")
    books.embed("red", model="two")
    make_tiny_model(root / "side", "two", version="2")
    (root / "side" / "two" / "2").rename(root / "two" / "2")
    assert books.register("two").outdated
    assert books.embed("red", model="two").version == "1"
    assert books.load("two").version == "2"


def test_a_deregistered_model_is_nowhere(books: Register) -> None:
    """Neither by name nor by version; the others are."""
    books.embed("red", model="two")
    books.deregister("two")
    assert set(books.models()) == {"one"}
    assert books.info().residents == []
    for call in (
        lambda: books.embed("red", model="two"),
        lambda: books.embed("red", model="two@1"),
        lambda: books.get("two"),
        lambda: books.load("two"),
        lambda: books.switch("prod", "two@1"),
    ):
        refused = refusal(call)
        assert refused.code is grpc.StatusCode.NOT_FOUND
        assert "shoal models register two" in refused.message
    assert books.embed("red", model="one").vectors
    books.deregister("two")  # idempotent


def test_only_register_brings_it_back(books: Register, server: RunningServer, root: Path) -> None:
    """Not DiscoverModels, and not a restart after a kill."""
    books.models()
    books.deregister("two")
    found = books.discover()
    assert [*found.added, *found.removed, *found.changed] == []
    assert set(books.models()) == {"one"}
    server.process.kill()
    server.wait()
    with (
        RunningServer(model_dir=root, default_model="two", preload="") as again,
        Register(again.address) as later,
    ):
        assert any("preload_left_out" in line for line in again.output)
        assert set(later.models()) == {"one"}
        answer = later.register("two")
        assert (answer.added, answer.model.name) == (True, "two")
        assert later.embed("red").model == "two"
        assert set(later.models()) == {"one", "two"}


def test_requests_in_flight_finish(books: Register) -> None:
    """The deregistration is answered after the last of them; new ones are refused meanwhile."""
    books.embed("red", model="two")
    running = books.start(SLOW, model="two")
    books.wait_in_flight(1)
    books.deregister("two")
    assert running.done()
    assert running.result().vectors


def test_they_fail_by_force(books: Register) -> None:
    """As with UnloadModel."""
    books.embed("red", model="two")
    running = [books.start(SLOW * 2, model="two") for _ in range(20)]
    books.wait_in_flight(20)
    books.deregister("two", force_after_s=0.0)
    ended = [each.exception() for each in running]
    codes = {each.code() if isinstance(each, grpc.Call) else None for each in ended}
    assert codes <= {None, grpc.StatusCode.UNAVAILABLE}
    assert grpc.StatusCode.UNAVAILABLE in codes
    assert books.info().residents == []


def test_a_caller_that_leaves_does_not_keep_it(books: Register) -> None:
    """It is deregistered, and leaves memory with its last request."""
    books.embed("red", model="two")
    running = books.start(SLOW * 2, model="two")
    books.wait_in_flight(1)
    call = books.control.DeregisterModel.future(pb.DeregisterModelRequest(model="two"), TIMEOUT_S)
    eventually(lambda: "two" not in books.models(), "the model to be deregistered")
    call.cancel()
    assert running.result().vectors
    eventually(lambda: not books.info().residents, "the model to leave memory")
    assert "two" not in books.models()


def test_a_request_that_waits_does_not_load_it_again(books: Register) -> None:
    """One that came while the model was leaving memory finds it deregistered."""
    books.embed("red", model="two")
    running = books.start(SLOW * 2, model="two")
    books.wait_in_flight(1)
    unload = books.control.UnloadModel.future(pb.UnloadModelRequest(model="two"), TIMEOUT_S)
    leaving = [pb.MODEL_STATE_UNLOADING]
    eventually(lambda: [each.state for each in books.info().residents] == leaving, "it to leave")
    waiting = books.start("red", model="two")
    books.wait_in_flight(2)
    books.deregister("two")
    assert running.result().vectors
    unload.result()
    assert refusal(waiting.result).code is grpc.StatusCode.NOT_FOUND
    assert books.info().residents == []


def test_a_request_that_waits_gets_what_its_alias_means_by_then(books: Register) -> None:
    """Where that was switched away from a model before it was deregistered."""
    books.switch("prod", "two@1")
    running = books.start(SLOW * 2, model="two")
    books.wait_in_flight(1)
    unload = books.control.UnloadModel.future(pb.UnloadModelRequest(model="two"), TIMEOUT_S)
    leaving = [pb.MODEL_STATE_UNLOADING]
    eventually(lambda: [each.state for each in books.info().residents] == leaving, "it to leave")
    waiting = books.start("red", model="prod")
    books.wait_in_flight(2)
    books.switch("prod", "one@1")
    books.deregister("two")
    assert running.result().vectors
    unload.result()
    assert waiting.result().model == "one"


def test_aliases_are_in_the_way(books: Register, root: Path) -> None:
    """Of a model that one stands for, and of a name that is one."""
    books.switch("prod", "two@1")
    for call in (
        lambda: books.deregister("two"),
        lambda: books.deregister("prod"),
        lambda: books.register("prod"),
    ):
        assert refusal(call).code is grpc.StatusCode.FAILED_PRECONDITION
    assert books.embed("red", model="prod").model == "two"


def test_what_is_not_there_is_not_found(books: Register, root: Path) -> None:
    """Nor what can not be a name."""
    assert refusal(lambda: books.register("nobody")).code is grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: books.deregister("nobody")).code is grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: books.register("../one")).fields == ("model",)
    assert refusal(lambda: books.deregister("one@1")).fields == ("model",)
    books.deregister("two")
    shutil.rmtree(root / "two")
    assert refusal(lambda: books.register("two")).code is grpc.StatusCode.NOT_FOUND


def test_both_are_told_as_events(books: Register, root: Path) -> None:
    """Once each, in order; what changes nothing is not told."""
    books.models()
    make_tiny_model(root, "three")
    books.register("three")
    books.register("three")
    books.deregister("three")
    books.deregister("three")
    make_tiny_model(root, "end")
    books.register("end")
    assert books.events() == [
        ("model_registered", "three"),
        ("model_deregistered", "three"),
        ("model_registered", "end"),
    ]


def test_tags_and_pins_are_there_when_it_comes_back(books: Register) -> None:
    """Nothing that was said of it is forgotten."""
    tags = versions_pb.UpdateTagsRequest(model="two", add=["prod"])
    books.control.UpdateTags(tags, timeout=TIMEOUT_S)
    books.deregister("two")
    refused = refusal(lambda: books.control.UpdateTags(tags, timeout=TIMEOUT_S))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert list(books.register("two").model.tags) == ["prod"]
