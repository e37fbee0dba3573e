"""A graph that is not the one its manifest describes is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from shoal_server.errors import ModelFileCorrupt
from shoal_server.inference.onnx_model import OnnxModel
from shoal_server.registry.manifest import VersionManifest
from tests.tiny_model import DIMENSIONS, make_tiny_model


@pytest.fixture(params=[True, False], ids=["normalized", "plain"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Of a model that ends with L2, and of one that does not."""
    return make_tiny_model(tmp_path, normalized=request.param).folder


def check(folder: Path, **changes: object) -> None:
    """Open the graph, and compare it with its manifest with some of it changed."""
    manifest = VersionManifest.read(folder / "version.toml")
    model = OnnxModel.open(folder / "model.onnx", threads=1, pad_id=0)
    model.check(manifest.model_copy(update=changes))


def test_a_prepared_graph_is_the_one(folder: Path) -> None:
    """Nothing is said."""
    check(folder)


def test_another_size_is_told(folder: Path) -> None:
    """What is written, and what the graph gives."""
    with pytest.raises(ModelFileCorrupt, match=r"dimensions = 384, the graph itself says 8"):
        check(folder, dimensions=384)


def test_another_end_is_told(folder: Path) -> None:
    """Whether vectors have unit length can be seen of the graph's outputs."""
    said = VersionManifest.read(folder / "version.toml").normalized
    with pytest.raises(ModelFileCorrupt, match="normalized"):
        check(folder, normalized=not said)


def save(
    folder: Path,
    *,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
    input_type: int = TensorProto.INT64,
    output: str = "embedding",
    size: int | str = DIMENSIONS,
) -> None:
    """Put another graph in the place of a plain one: the row of each first token."""
    table = np.ones((10, DIMENSIONS), dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Gather", ["rows", "zero"], [output], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "first",
        [helper.make_tensor_value_info(each, input_type, ["B", "T"]) for each in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["B", size])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array(0), "zero")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "model.onnx")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Of a model that does not end with L2."""
    return make_tiny_model(tmp_path, normalized=False).folder


def test_a_graph_that_does_not_say_its_size_is_run(plain: Path) -> None:
    """The vector that it gives has one."""
    save(plain, size="D")
    check(plain)
    with pytest.raises(ModelFileCorrupt, match=r"dimensions = 9, the graph itself says 8"):
        check(plain, dimensions=9)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (("input_ids",), "no attention_mask"),
        (("input_ids", "attention_mask", "pixel_values"), "pixel_values"),
    ],
)
def test_other_inputs_are_told(plain: Path, inputs: tuple[str, ...], told: str) -> None:
    """Those that are missing, and those that nobody feeds."""
    save(plain, inputs=inputs)
    with pytest.raises(ModelFileCorrupt, match=told):
        check(plain)


def test_other_types_and_names_are_told(plain: Path) -> None:
    """Of inputs and of the vector."""
    save(plain, input_type=TensorProto.INT32)
    with pytest.raises(ModelFileCorrupt, match=r"tensor\(int32\), not tensor\(int64\)"):
        check(plain)
    save(plain, output="sentence_embedding")
    with pytest.raises(ModelFileCorrupt, match="no embedding"):
        check(plain)
