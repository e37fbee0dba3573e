"""What models can do is told, found by, and true of their graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.v1 import capabilities_pb2 as capabilities_pb
from shoal.v1 import model_control_pb2 as pb
from tests.running import RunningServer
from tests.tiny_model import add_tiny_variant, make_tiny_model

from .calls import TIMEOUT_S, Connection, refusal


def edit(root: Path, name: str, old: str, new: str) -> None:
    """Change a manifest by hand."""
    path = root / name / "1" / "version.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Of a server with a plain model, one with variants and languages, and one that lies."""
    root = tmp_path_factory.mktemp("models")
    make_tiny_model(root, "plain")
    rich = make_tiny_model(root, "rich", serving={"precision": "int8"})
    add_tiny_variant(rich, "int8")
    add_tiny_variant(rich, "fp16")
    edit(root, "rich", "languages = []", 'languages = ["en", "zh-Hant"]')
    edit(root, "rich", "matryoshka_dimensions = []", "matryoshka_dimensions = [4]")
    make_tiny_model(root, "liar")
    edit(root, "liar", "dimensions = 8", "dimensions = 16")
    with (
        RunningServer(model_dir=root, default_model="plain", preload="none") as server,
        Connection(server.address) as connected,
    ):
        yield connected


def found(connection: Connection, **fields: Any) -> list[str]:
    """Names that ListModels answers with."""
    answer = connection.control.ListModels(pb.ListModelsRequest(**fields), timeout=TIMEOUT_S)
    return [model.name for model in answer.models]


def test_they_are_told(connection: Connection) -> None:
    """Languages, inputs, devices, and each graph with what it costs."""
    rich = connection.models()["rich"]
    assert list(rich.languages) == ["en", "zh-Hant"]
    assert list(rich.input_types) == [
        capabilities_pb.INPUT_TYPE_TEXT,
        capabilities_pb.INPUT_TYPE_TOKENS,
    ]
    assert rich.devices[0] == "cpu"
    graphs = {each.precision: each for each in rich.variants}
    assert list(graphs) == ["fp32", "fp16", "int8"]
    assert [each.prepared for each in graphs.values()] == [True, False, False]
    assert [each.served for each in graphs.values()] == [False, False, True]
    assert not graphs["fp32"].HasField("mean_cosine")
    assert graphs["int8"].mean_cosine == pytest.approx(0.99)
    assert graphs["int8"].least_cosine == pytest.approx(0.98)
    assert all(each.file_bytes > 0 for each in graphs.values())
    assert "cpu" in graphs["int8"].devices
    assert "cpu" not in graphs["fp16"].devices


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"languages": ["EN"]}, ["rich"]),
        ({"languages": ["zh"]}, ["rich"]),
        ({"languages": ["zh", "fr"]}, []),
        ({"precision": "int8"}, ["rich"]),
        ({"precision": "fp32"}, ["liar", "plain", "rich"]),
        ({"input_type": capabilities_pb.INPUT_TYPE_TOKENS}, ["liar", "plain", "rich"]),
        ({"runs_on": "cpu"}, ["liar", "plain", "rich"]),
        ({"runs_on": "cuda:63"}, []),
        ({"prompt": "query"}, ["liar", "plain", "rich"]),
        ({"prompt": "passage"}, []),
        ({"tokens": 16}, ["liar", "plain", "rich"]),
        ({"tokens": 17}, []),
        ({"dimensions": 4}, ["rich"]),
    ],
)
def test_they_are_found_by(
    connection: Connection, fields: dict[str, Any], expected: list[str]
) -> None:
    """Each filter alone."""
    assert found(connection, **fields) == expected


def test_filters_that_make_no_sense_are_refused(connection: Connection) -> None:
    """The field is named."""
    assert refusal(lambda: found(connection, input_type=99)).fields == ("input_type",)
    assert refusal(lambda: found(connection, runs_on="moon")).fields == ("runs_on",)
    assert refusal(lambda: found(connection, runs_on="auto")).fields == ("runs_on",)
    too_many = refusal(lambda: found(connection, languages=["en"] * 33))
    assert too_many.fields == ("languages",)


def test_a_manifest_that_contradicts_its_graph_is_found_at_load(connection: Connection) -> None:
    """The graph is the truth; the error names field, what is written and what is so."""
    refused = refusal(lambda: connection.embed("red", model="liar"))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "MODEL_FILE_CORRUPT"
    assert "version.toml says dimensions = 16, the graph itself says 8" in refused.message
    assert connection.embed("red", model="plain").dimensions == 8
