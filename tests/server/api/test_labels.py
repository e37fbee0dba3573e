"""Tags and deprecations: said to callers, kept over restarts, enforced when it is time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import timestamp_pb2

from shoal.v1 import embed_pb2 as pb
from shoal.v1 import model_control_pb2 as control_pb
from shoal.v1 import versions_pb2 as versions_pb
from tests.running import RunningServer
from tests.tiny_model import make_tiny_model

from .calls import TIMEOUT_S, Connection, assert_no_surprise, refusal

TEXT = "red"


class LabelBoard(Connection):
    """A connection that also says things of models."""

    def deprecate(self, model: str, **fields: object) -> versions_pb.Deprecation:
        refuse_in_s = fields.pop("refuse_in_s", None)
        deprecation = versions_pb.Deprecation(**fields)  # type: ignore[arg-type]
        if isinstance(refuse_in_s, float):
            deprecation.refuse_after.FromNanoseconds(int((time.time() + refuse_in_s) * 1e9))
        request = versions_pb.DeprecateModelRequest(model=model, deprecation=deprecation)
        return self.control.DeprecateModel(request, timeout=TIMEOUT_S).deprecation

    def undeprecate(self, model: str) -> None:
        self.control.DeprecateModel(
            versions_pb.DeprecateModelRequest(model=model), timeout=TIMEOUT_S
        )

    def tag(self, model: str, *add: str, remove: tuple[str, ...] = ()) -> list[str]:
        request = versions_pb.UpdateTagsRequest(model=model, add=add, remove=remove)
        return list(self.control.UpdateTags(request, timeout=TIMEOUT_S).tags)

    def embed_told(self, model: str) -> tuple[pb.EmbedResponse, str | None]:
        """An answer and what its trailing metadata says of a deprecation."""
        request = pb.EmbedRequest(model=model, texts=[TEXT])
        answer, call = self.embedding.Embed.with_call(request, timeout=TIMEOUT_S)
        return answer, told(call)

    def get(self, model: str) -> control_pb.ModelInfo:
        request = control_pb.GetModelRequest(model=model)
        return self.control.GetModel(request, timeout=TIMEOUT_S).model


def told(call: grpc.Call) -> str | None:
    metadata = {str(key): value for key, value in call.trailing_metadata() or ()}
    assert metadata["x-request-id"]
    value = metadata.get("shoal-deprecated")
    return None if value is None else str(value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for version in ("1", "2"):
        make_tiny_model(tmp_path / "models", version=version)
    return tmp_path / "models"


@pytest.fixture
def server(root: Path) -> Iterator[RunningServer]:
    with RunningServer(model_dir=root, preload="none") as running:
        yield running


@pytest.fixture
def board(server: RunningServer) -> Iterator[LabelBoard]:
    with LabelBoard(server.address) as connection:
        yield connection
    assert_no_surprise(server)


def test_a_deprecated_version_serves_and_says_so(board: LabelBoard) -> None:
    """In the answer, in the metadata and in GetModel; the other version says nothing."""
    board.embed(TEXT, model="tiny@1")  # known before it is deprecated
    board.deprecate("tiny@1", replacement="tiny@2", message="vectors moved — see the wiki")
    answer, metadata = board.embed_told("tiny@1")
    assert answer.vectors
    assert answer.deprecation == ("tiny@1 is deprecated; use tiny@2: vectors moved — see the wiki")
    assert metadata == "tiny@1; replacement=tiny@2"
    assert board.get("tiny@1").deprecation.replacement == "tiny@2"
    answer, metadata = board.embed_told("tiny@2")
    assert (answer.deprecation, metadata) == ("", None)
    assert not board.get("tiny@2").HasField("deprecation")


def test_a_deprecated_model_is_deprecated_in_every_version(board: LabelBoard) -> None:
    """Until it is taken back; a version's own deprecation comes first."""
    board.deprecate("tiny", replacement="tiny@2")
    board.deprecate("tiny@2", replacement="tiny@1")
    assert board.embed_told("tiny@1")[1] == "tiny@1; replacement=tiny@2"
    assert board.embed_told("tiny@2")[1] == "tiny@2; replacement=tiny@1"
    board.undeprecate("tiny")
    assert board.embed_told("tiny@1")[1] is None


def test_streams_and_tokenize_say_so_too(board: LabelBoard) -> None:
    """Each answer of a stream, its end, and the metadata of Tokenize."""
    board.deprecate("tiny@1")
    request = pb.EmbedRequest(model="tiny@1", texts=[TEXT])
    stream = board.embedding.EmbedStream(
        iter([pb.EmbedStreamRequest(id=str(number), request=request) for number in range(3)]),
        timeout=TIMEOUT_S,
    )
    assert [each.response.deprecation for each in stream] == ["tiny@1 is deprecated"] * 3
    assert told(stream) == "tiny@1"
    tokenize = pb.TokenizeRequest(model="tiny@1", texts=[TEXT])
    _, call = board.embedding.Tokenize.with_call(tokenize, timeout=TIMEOUT_S)
    assert told(call) == "tiny@1"


def test_the_log_says_it_once_in_a_while(board: LabelBoard, server: RunningServer) -> None:
    """Not once a request."""
    board.deprecate("tiny@1", replacement="tiny@2")
    for _ in range(50):
        board.embed(TEXT, model="tiny@1")
    server.stop()
    lines = [line for line in server.output if "deprecated_model_used" in line]
    assert len(lines) == 1
    assert "use tiny@2" in lines[0]


def test_it_is_refused_from_a_date_on(board: LabelBoard) -> None:
    """Not before it; the refusal names the replacement."""
    board.deprecate("tiny@1", replacement="tiny@2", refuse_in_s=3600.0)
    answer, metadata = board.embed_told("tiny@1")
    assert "refused after" in answer.deprecation
    assert metadata is not None
    assert "refused-after=" in metadata
    board.deprecate("tiny@1", replacement="tiny@2", refuse_in_s=-1.0)
    refused = refusal(lambda: board.embed(TEXT, model="tiny@1"))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.metadata["replacement"] == "tiny@2"
    assert board.embed_told("tiny@2")[1] is None


def test_the_end_of_time_is_a_date(board: LabelBoard) -> None:
    """datetime.max, say, for never: the model serves, and can be described."""
    never = timestamp_pb2.Timestamp()
    never.FromDatetime(datetime.max)
    told = board.deprecate("tiny@1", refuse_after=never)
    assert told.refuse_after.ToDatetime().year == 9999
    assert "refused after 9999" in board.embed_told("tiny@1")[0].deprecation
    assert board.get("tiny@1").HasField("deprecation")


def test_tags_are_added_and_taken_away(board: LabelBoard) -> None:
    """A version has its own and its model's; each call answers with what it changed."""
    assert board.tag("tiny", "team:search", "prod") == ["prod", "team:search"]
    assert board.tag("tiny@1", "old") == ["old"]
    assert list(board.get("tiny@1").tags) == ["old", "prod", "team:search"]
    assert board.tag("tiny", "prod", remove=("prod", "never-there")) == ["team:search"]
    assert list(board.get("tiny@2").tags) == ["team:search"]


def test_what_is_wrong_is_refused_and_named(board: LabelBoard) -> None:
    """Tags, replacements, models."""
    assert refusal(lambda: board.tag("tiny", "good", "not good")).fields == ("add[1]",)
    assert refusal(lambda: board.tag("tiny", *map(str, range(33)))).fields == ("add",)
    assert refusal(lambda: board.tag("nobody", "x")).code is grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: board.deprecate("tiny@9")).code is grpc.StatusCode.NOT_FOUND
    bad = refusal(lambda: board.deprecate("tiny", replacement="../x"))
    assert bad.fields == ("deprecation.replacement",)
    long = refusal(lambda: board.deprecate("tiny", message="x" * 501))
    assert long.fields == ("deprecation.message",)


@pytest.mark.parametrize("replacement", ["nope", "nope@1", "tiny@9"])
def test_a_replacement_must_be_there(board: LabelBoard, replacement: str) -> None:
    """Else callers would be told to ask for what is not; an alias will do."""
    bad = refusal(lambda: board.deprecate("tiny@1", replacement=replacement))
    assert bad.code is grpc.StatusCode.NOT_FOUND
    assert bad.message.startswith("deprecation.replacement: ")
    assert not board.get("tiny@1").HasField("deprecation")
    target = versions_pb.AliasTarget(model="tiny@2")
    request = versions_pb.SwitchModelRequest(alias="prod", targets=[target])
    board.control.SwitchModel(request, timeout=TIMEOUT_S)
    assert board.deprecate("tiny@1", replacement="prod").replacement == "prod"


def test_labels_outlast_the_server(board: LabelBoard, server: RunningServer, root: Path) -> None:
    """Tags and deprecations are there after a restart, also what was taken back."""
    board.tag("tiny@1", "old")
    board.deprecate("tiny@1", replacement="tiny@2", message="moved")
    board.deprecate("tiny@2")
    board.undeprecate("tiny@2")
    before = board.get("tiny@1")
    server.process.kill()
    server.wait()
    with (
        RunningServer(model_dir=root, preload="none") as again,
        LabelBoard(again.address) as later,
    ):
        after = later.get("tiny@1")
        assert (after.tags, after.deprecation) == (before.tags, before.deprecation)
        assert later.embed_told("tiny@1")[1] == "tiny@1; replacement=tiny@2"
        assert later.embed_told("tiny@2")[1] is None


def listed(board: LabelBoard, **fields: Any) -> tuple[list[str], control_pb.ListModelsResponse]:
    """The names that ListModels answers with, and the answer."""
    request = control_pb.ListModelsRequest(**fields)
    answer = board.control.ListModels(request, timeout=TIMEOUT_S)
    return [model.name for model in answer.models], answer


def test_models_are_listed_by_what_is_asked_for(board: LabelBoard, root: Path) -> None:
    """State, device, tag, text and size; sorted, a page at a time."""
    for name in ("large", "small"):
        make_tiny_model(root, name)
    board.load("small")
    board.tag("large", "team:search")
    assert listed(board)[0] == ["large", "small", "tiny"]
    assert listed(board, states=[control_pb.MODEL_STATE_READY])[0] == ["small"]
    assert listed(board, device="cpu")[0] == ["small"]
    assert listed(board, tags=["team:search"])[0] == ["large"]
    assert listed(board, text="SEARCH team")[0] == ["large"]
    assert listed(board, dimensions=8)[0] == ["large", "small", "tiny"]
    assert listed(board, dimensions=9)[0] == []
    by_use = {"order_by": control_pb.MODEL_ORDER_LAST_USED, "descending": True, "page_size": 2}
    first, answer = listed(board, **by_use)
    assert (first, answer.total) == (["small", "tiny"], 3)
    last, answer = listed(board, **by_use, page_token=answer.next_page_token)
    assert (last, answer.next_page_token) == (["large"], "")


def test_lists_that_make_no_sense_are_refused(board: LabelBoard) -> None:
    """The field is named."""
    assert refusal(lambda: listed(board, page_size=1001)).fields == ("page_size",)
    assert refusal(lambda: listed(board, page_token="x")).fields == ("page_token",)
    assert refusal(lambda: listed(board, states=[99])).fields == ("states",)
    assert refusal(lambda: listed(board, order_by=99)).fields == ("order_by",)
    assert refusal(lambda: listed(board, device="moon")).fields == ("device",)
