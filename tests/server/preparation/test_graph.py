"""Pooling and L2 in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from shoal_server.core import Pooling
from shoal_server.preparation.errors import Unsupported
from shoal_server.preparation.graph import build_graph, precision_of, save_graph

from .authors import DIMENSIONS, TABLE, Float32, lookup_graph

OPSETS = (11, 13, 17, 18)
ROWS = ([2, 3, 4], [5], [6, 2])


def built(
    tmp_path: Path, source: onnx.ModelProto, pooling: Pooling, *, normalize: bool
) -> ort.InferenceSession:
    """A session of the prepared graph, by way of the files."""
    onnx.save(source, tmp_path / "source.onnx")
    target = tmp_path / "model.onnx"
    save_graph(build_graph(tmp_path / "source.onnx", pooling, normalize=normalize), target)
    return ort.InferenceSession(target, providers=["CPUExecutionProvider"])


def feed(rows: Sequence[Sequence[int]], tokens: int = 0) -> dict[str, npt.NDArray[np.int64]]:
    """Ids padded on the right, and their mask: int64[B, T]."""
    tokens = max(tokens, *map(len, rows))
    ids = np.zeros((len(rows), tokens), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def run(session: ort.InferenceSession, rows: Sequence[Sequence[int]], tokens: int = 0) -> Float32:
    vectors: Float32 = session.run(["embedding"], feed(rows, tokens))[0]
    return vectors


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("pooling", Pooling)
def test_pools_as_defined(tmp_path: Path, pooling: Pooling, opset: int) -> None:
    """Mean, first and last real token, whatever the padding and the opset."""
    session = built(tmp_path, lookup_graph(opset=opset), pooling, normalize=False)
    expected = {
        Pooling.MEAN: [TABLE[row].mean(axis=0) for row in ROWS],
        Pooling.CLS: [TABLE[row[0]] for row in ROWS],
        Pooling.LAST_TOKEN: [TABLE[row[-1]] for row in ROWS],
    }
    np.testing.assert_allclose(run(session, ROWS, tokens=7), expected[pooling], rtol=1e-6)


@pytest.mark.parametrize("opset", OPSETS)
def test_normalized_graph_gives_both(tmp_path: Path, opset: int) -> None:
    """`embedding` has unit length and `pooled` is what it was before."""
    session = built(tmp_path, lookup_graph(opset=opset), Pooling.MEAN, normalize=True)
    embedding, pooled = session.run(["embedding", "pooled"], feed(ROWS))
    expected = np.stack([TABLE[row].mean(axis=0) for row in ROWS])
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embedding, unit, rtol=1e-6)


def test_outputs_are_those_of_the_contract(tmp_path: Path) -> None:
    """Without L2 there is one output, and the shapes of all tensors are dynamic."""
    session = built(tmp_path, lookup_graph(), Pooling.MEAN, normalize=False)
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("embedding", ["batch", DIMENSIONS])
    ]
    assert {i.name: i.shape for i in session.get_inputs()} == {
        "input_ids": ["batch", "tokens"],
        "attention_mask": ["batch", "tokens"],
    }


@pytest.mark.parametrize("pooling", Pooling)
def test_padding_may_be_nan(tmp_path: Path, pooling: Pooling) -> None:
    """What padded positions compute reaches no vector, and a row of padding is zeros."""
    table = TABLE.copy()
    table[0] = np.nan
    session = built(tmp_path, lookup_graph(table), pooling, normalize=True)
    vectors = run(session, [[], [2, 3]], tokens=5)
    np.testing.assert_array_equal(vectors[0], np.zeros(DIMENSIONS))
    np.testing.assert_array_equal(vectors[1:], run(session, [[2, 3]]))


@pytest.mark.parametrize("pooling", Pooling)
def test_same_bits_in_any_batch(tmp_path: Path, pooling: Pooling) -> None:
    """A row's vector has the same bits alone and padded among others."""
    random = np.random.default_rng(3)
    table = random.normal(size=(100, 384)).astype(np.float32)
    session = built(tmp_path, lookup_graph(table), pooling, normalize=True)
    for _ in range(40):
        rows = [list(random.integers(1, 100, random.integers(1, 300))) for _ in range(4)]
        together = run(session, rows, tokens=int(random.integers(300, 600)))
        alone = np.concatenate([run(session, [row]) for row in rows])
        np.testing.assert_array_equal(together, alone)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    """Token vectors of fp16 are pooled and returned in float32."""
    source = lookup_graph(hidden_type=TensorProto.FLOAT16)
    session = built(tmp_path, source, Pooling.MEAN, normalize=False)
    vectors = run(session, ROWS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[1], TABLE[5], atol=2e-3)


def test_prefers_token_vectors(tmp_path: Path) -> None:
    """Of a graph with `sentence_embedding`, the token vectors are pooled by us."""
    source = lookup_graph(output="token_embeddings")
    wrong = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["b", 1])
    source.graph.node.append(helper.make_node("Cast", ["input_ids"], ["sentence_embedding"], to=1))
    source.graph.output.insert(0, wrong)
    session = built(tmp_path, source, Pooling.CLS, normalize=False)
    np.testing.assert_array_equal(run(session, [[3, 4]]), TABLE[[3]])


def test_takes_pooled_vectors_where_there_are_no_others(tmp_path: Path) -> None:
    """A graph that only gives `sentence_embedding` is taken as it is."""
    source = lookup_graph(output="tokens")
    source.graph.node.append(
        helper.make_node("ReduceMax", ["tokens"], ["sentence_embedding"], axes=[1], keepdims=0)
    )
    del source.graph.output[:]
    source.graph.output.append(
        helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["b", DIMENSIONS])
    )
    session = built(tmp_path, source, Pooling.MEAN, normalize=False)
    np.testing.assert_array_equal(run(session, [[3, 4]]), TABLE[[3, 4]].max(axis=0)[None])


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (lookup_graph(opset=10), "opset 10"),
        (lookup_graph(inputs=("input_ids", "attention_mask", "pixels")), "pixels"),
        (lookup_graph(inputs=("input_ids",)), "no input attention_mask"),
        (lookup_graph(input_type=TensorProto.INT32), "not int64"),
    ],
)
def test_refuses_what_it_can_not_feed(tmp_path: Path, source: onnx.ModelProto, told: str) -> None:
    """The error names what is in the way."""
    with pytest.raises(Unsupported, match=told):
        built(tmp_path, source, Pooling.MEAN, normalize=False)


def test_refuses_a_graph_without_vectors(tmp_path: Path) -> None:
    """The error names the outputs there are."""
    source = lookup_graph(output="logits")
    source.graph.output[0].type.tensor_type.shape.dim.pop()
    with pytest.raises(Unsupported, match="logits"):
        built(tmp_path, source, Pooling.MEAN, normalize=False)


def test_refuses_what_is_no_onnx(tmp_path: Path) -> None:
    """A file of something else is told from a graph."""
    (tmp_path / "source.onnx").write_bytes(b"not a graph")
    with pytest.raises(Unsupported, match="can not be read"):
        build_graph(tmp_path / "source.onnx", Pooling.MEAN, normalize=False)


def test_weights_lie_beside_the_graph(tmp_path: Path) -> None:
    """Large tensors are in `model.onnx.data`, where the runtime maps them."""
    table = np.ones((1000, 64), np.float32)
    built(tmp_path, lookup_graph(table), Pooling.MEAN, normalize=True)
    assert (tmp_path / "model.onnx").stat().st_size < 10_000
    assert (tmp_path / "model.onnx.data").stat().st_size >= table.nbytes


@pytest.mark.parametrize(
    ("dtype", "precision"), [(np.float32, "fp32"), (np.float16, "fp16"), (np.int8, "int8")]
)
def test_precision_is_that_of_the_weights(dtype: type, precision: str) -> None:
    """The type with the most bytes decides, not what the graph computes on the way."""
    assert precision_of(lookup_graph(TABLE.astype(dtype))) == precision
