"""Halving a graph, on graphs of a few kilobytes; the real model is in test_fp16_real.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from shoal_server.core import ModelKey
from shoal_server.preparation.errors import ReferenceMismatch, Unsupported
from shoal_server.preparation.fp16 import fused_nodes, half_graph
from shoal_server.preparation.pull import Order, pull
from shoal_server.preparation.quantize import quantize
from shoal_server.registry.repository import ModelRepository
from tests.tiny_model import make_tiny_model

from .authors import write_authors_model
from .fakes import RecordingProgress, no_environment
from .graphs import dense_graph

KEY = ModelKey("dense", "1")


def prepared(tmp_path: Path, *, scale: float = 1.0) -> ModelRepository:
    """Holds dense@1, its weights `scale` times as large."""
    graph = dense_graph("fp32")
    for tensor in graph.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            scaled = numpy_helper.to_array(tensor) * np.float32(scale)
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    files = {"onnx/model.onnx": graph.SerializeToString()}
    source = write_authors_model(tmp_path / "dense", files=files)
    repository = ModelRepository(tmp_path / "models")
    pull(Order(str(source)), repository, no_environment(tmp_path), RecordingProgress())
    return repository


def halved(repository: ModelRepository, scratch: Path) -> onnx.ModelProto:
    folder = repository.version_folder("dense", "1")
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    scratch.mkdir()
    return half_graph(model, folder, scratch)


def test_patterns_that_are_not_known_stay(tmp_path: Path) -> None:
    """Such a graph is halved all the same, and it is told that nothing was fused."""
    repository, progress = prepared(tmp_path), RecordingProgress()
    quantize(KEY, repository, progress, precision="fp16")
    assert any("fused nodes: none" in step for step in progress.steps)
    graph = repository.version_folder("dense", "1") / "variants" / "fp16" / "model.onnx"
    assert fused_nodes(onnx.load(str(graph), load_external_data=False)) == {}


def test_weights_are_halved_and_pooling_is_not(tmp_path: Path) -> None:
    """Numbers of the transformer are fp16, those of pooling and L2 float32."""
    kinds: dict[bool, set[int]] = {False: set(), True: set()}
    for tensor in halved(prepared(tmp_path), tmp_path / "scratch").graph.initializer:
        kinds[tensor.name.startswith("shoal/")].add(tensor.data_type)
    assert TensorProto.FLOAT16 in kinds[False]
    assert TensorProto.FLOAT not in kinds[False]
    assert TensorProto.FLOAT in kinds[True]
    assert TensorProto.FLOAT16 not in kinds[True]


def test_inputs_and_outputs_stay_as_they_are(tmp_path: Path) -> None:
    """Whoever runs the graph need not know of its precision."""
    repository = prepared(tmp_path)
    folder = repository.version_folder("dense", "1")
    before = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    after = halved(repository, tmp_path / "scratch").graph
    assert list(before.input) == list(after.input)
    assert list(before.output) == list(after.output)


def test_a_model_that_fp16_can_not_hold_gets_no_variant(tmp_path: Path) -> None:
    """Above 65,504 its numbers would be infinite: told, and nothing is left."""
    repository = prepared(tmp_path, scale=1e6)
    with pytest.raises((ReferenceMismatch, Unsupported)):
        quantize(KEY, repository, RecordingProgress(), precision="fp16")
    assert repository.variants("dense", "1") == []


def test_a_graph_that_was_not_prepared_here_is_refused(tmp_path: Path) -> None:
    """Nobody knows where its transformer ends."""
    tiny = make_tiny_model(tmp_path)
    with pytest.raises(Unsupported, match="does not end as"):
        quantize(
            ModelKey("tiny", "1"),
            ModelRepository(tiny.root),
            RecordingProgress(),
            precision="fp16",
        )


def test_the_library_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What it prints and logs would stand in the midst of the command's own output."""
    quantize(KEY, prepared(tmp_path), RecordingProgress(), precision="fp16")
    assert capfd.readouterr() == ("", "")
