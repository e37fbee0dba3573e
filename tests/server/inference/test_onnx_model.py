"""Opening graphs for the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from shoal_server.errors import ModelLoadFailed
from shoal_server.inference.onnx_model import OnnxModel
from shoal_server.residency.probes import resident_set_bytes

from .graphs import PAD, write_graph

REAL = Path(__file__).parents[3] / "models" / "all-minilm-l6-v2" / "1" / "model.onnx"
MIB = 1 << 20


def open_model(path: Path) -> OnnxModel:
    return OnnxModel.open(path, threads=1, pad_id=PAD)


@pytest.mark.parametrize("content", [None, b"", b"no graph at all", b"\x08\x08\x12\x04junk"])
def test_a_file_that_is_no_graph_does_not_load(content: bytes | None, tmp_path: Path) -> None:
    """Missing or corrupt: a failed load, in brief, without the path to it."""
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadFailed, match="can not open the graph") as raised:
        open_model(path)
    assert str(tmp_path) not in raised.value.message
    assert tmp_path.name not in raised.value.message


def test_a_graph_without_its_weights_does_not_load(tmp_path: Path) -> None:
    """Weights beside the graph belong to it."""
    path = write_graph(tmp_path / "model.onnx")
    graph = onnx.load(path)
    # Only large tensors are moved out.
    graph.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.arange(4096, dtype=np.int64), "table")
    )
    onnx.save(graph, path, save_as_external_data=True, location="model.onnx.data")
    open_model(path)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(ModelLoadFailed) as raised:
        open_model(path)
    assert str(tmp_path) not in raised.value.message


def test_rows_keep_nothing_of_the_session(tmp_path: Path) -> None:
    """Whoever has a row has its numbers, and not the arena that they were computed in."""
    row = open_model(write_graph(tmp_path / "model.onnx")).run([[1, 2]], [False]).rows[0]
    assert isinstance(row, np.ndarray)
    owner: object = row
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    assert isinstance(owner, np.ndarray)


@pytest.mark.skipif(not REAL.is_file(), reason="the default model is not prepared")
def test_what_runs_leave_behind_can_be_given_back() -> None:
    """Shrinking returns the arena's memory to the system, and changes no vector."""
    model = open_model(REAL)
    texts = [[101, *range(2000, 2253), 102]] * 8  # just below what shrinks by itself
    before = model.run(texts, [False] * 8)
    grown = resident_set_bytes()
    model.shrink()
    shrunk = resident_set_bytes()
    after = model.run(texts, [False] * 8)
    assert grown is not None
    assert shrunk is not None
    assert grown - shrunk > 20 * MIB
    for one, other in zip(before.rows, after.rows, strict=True):
        assert isinstance(one, np.ndarray)
        assert isinstance(other, np.ndarray)
        np.testing.assert_array_equal(one, other)
