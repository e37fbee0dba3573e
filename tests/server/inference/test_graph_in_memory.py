"""Weights that lie beside a graph, handed over in RAM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from shoal_server.errors import ModelLoadFailed
from shoal_server.inference.graph_in_memory import hold

TABLE = np.arange(6, dtype=np.float16).reshape(2, 3)
LIST = np.arange(4, dtype=np.int64)


def graph_with_weights_beside(folder: Path) -> tuple[bytes, bytes]:
    """The ONNX file and the one of its weights, `weights`."""
    tensors = [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(LIST, "list")]
    graph = helper.make_graph([], "graph", [], [], tensors)
    path = folder / "model.onnx"
    onnx.save(
        helper.make_model(graph),
        path,
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    return path.read_bytes(), (folder / "weights").read_bytes()


def test_weights_are_what_was_saved(tmp_path: Path) -> None:
    """Each at its place in the file, with its type and shape."""
    graph, weights = graph_with_weights_beside(tmp_path)
    held = hold(graph, {"weights": weights}).weights
    assert held.keys() == {"table", "list"}
    for name, expected in (("table", TABLE), ("list", LIST)):
        np.testing.assert_array_equal(held[name].numpy(), expected, strict=True)


def test_a_graph_with_all_its_weights_inside_is_left_alone() -> None:
    """It is not even read: the runtime does that."""
    assert hold(b"whatever it is", {}).graph == b"whatever it is"


@pytest.mark.parametrize("beside", [{"other": b"1234"}, {"weights": b"too short"}])
def test_weights_that_are_not_there_are_told(tmp_path: Path, beside: dict[str, bytes]) -> None:
    """A file of another name, or with less in it than the graph says."""
    graph, _ = graph_with_weights_beside(tmp_path)
    with pytest.raises(ModelLoadFailed, match="can not be held in memory"):
        hold(graph, beside)


def test_weights_of_a_body_are_told() -> None:
    """The runtime takes those of the graph itself only: such a model is read from its files."""
    tensor = numpy_helper.from_array(TABLE, "table")
    onnx.external_data_helper.set_external_data(tensor, "weights")
    body = helper.make_graph([], "body", [], [], [tensor])
    node = helper.make_node("If", ["condition"], [], then_branch=body, else_branch=body)
    graph = helper.make_model(helper.make_graph([node], "graph", [], []))
    with pytest.raises(ModelLoadFailed, match="body"):
        hold(graph.SerializeToString(), {"weights": b""})
