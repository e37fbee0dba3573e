"""Matrix products in int8, each row by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from shoal_server.preparation.errors import Unsupported
from shoal_server.preparation.int8 import Seen, activations, quantize_columns, quantize_graph
from shoal_server.registry.manifest import GRAPH_FILE
from tests.tiny_model import make_tiny_model

from .authors import Float32
from .graphs import graph_of, run

CHANNELS, COLUMNS = 64, 48
RANDOM = np.random.default_rng(13)
X: Float32 = RANDOM.normal(size=(3, 5, CHANNELS)).astype(np.float32)
WEIGHTS: Float32 = RANDOM.normal(size=(CHANNELS, COLUMNS)).astype(np.float32)
BIAS: Float32 = RANDOM.normal(size=COLUMNS).astype(np.float32)
NOTHING: Mapping[str, np.float32] = {}
MATMUL = helper.make_node("MatMul", ["x", "weights"], ["y"])


def seen(x: Float32) -> Seen:
    """What a run on `x` alone would have shown."""
    largest = np.abs(x).reshape(-1, x.shape[-1]).max(axis=0)
    return Seen(largest, float(x.min()), float(x.max()))


def quantized(
    x: Float32 = X,
    weights: Float32 = WEIGHTS,
    *,
    nodes: Sequence[onnx.NodeProto] = (MATMUL,),
    opset: int = 18,
    outputs: Sequence[str] = ("y",),
    constants: Mapping[str, npt.NDArray[Any] | np.float32] = NOTHING,
) -> onnx.ModelProto:
    """A graph of products of `x`, in int8, that was calibrated with `x`."""
    model = graph_of(
        nodes,
        {"weights": weights, **constants},
        channels=x.shape[-1],
        opset=opset,
        outputs=outputs,
    )
    quantize_graph(model, {"x": seen(x)})
    return model


def relative_error(actual: Float32, expected: Float32) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_a_product_is_close(opset: int) -> None:
    """Within about a hundredth of the product in float32."""
    (y,) = run(quantized(opset=opset), X)
    assert y.shape == (3, 5, COLUMNS)
    assert relative_error(y, X @ WEIGHTS) < 0.015


@pytest.mark.parametrize("product_first", [True, False])
def test_a_bias_is_added(product_first: bool) -> None:
    """On whichever side of the Add it stands."""
    summands = ["product", "bias"] if product_first else ["bias", "product"]
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["product"]),
        helper.make_node("Add", summands, ["y"]),
    ]
    (y,) = run(quantized(nodes=nodes, constants={"bias": 100 * BIAS}), X)
    np.testing.assert_allclose(y, X @ WEIGHTS + 100 * BIAS, atol=0.5)


def test_a_product_that_others_read_too_keeps_its_value() -> None:
    """Only an Add that is alone in reading a product takes a part of it over."""
    x = np.maximum(X, 0)  # one-sided: the product has a constant part
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    model = quantized(x, nodes=nodes, outputs=("y", "product"), constants={"bias": BIAS})
    y, product = run(model, x)
    assert relative_error(product, x @ WEIGHTS) < 0.015
    np.testing.assert_allclose(y, product + BIAS, atol=1e-5)


@pytest.mark.parametrize("kind", ["symmetric", "one-sided"])
def test_a_row_does_not_see_its_mates(kind: str) -> None:
    """Whatever else is in the batch, however large, a row has the same bits as alone."""
    x = np.maximum(X, 0) if kind == "one-sided" else X
    model = quantized(x)
    (alone,) = run(model, x[:1, :1])
    mates = np.concatenate([x[:1] * 1000, x[1:]])
    mates[0, 0] = x[0, 0]
    (together,) = run(model, mates)
    assert together[0, 0].tobytes() == alone.tobytes()


def test_an_activation_is_quantized_once() -> None:
    """Products that read the same tensor, as those of Q, K and V, share it."""
    nodes = [helper.make_node("MatMul", ["x", name], ["y" + name]) for name in "qkv"]
    weights = {name: WEIGHTS * (1 + index) for index, name in enumerate("qkv")}
    model = quantized(nodes=nodes, outputs=("yq", "yk", "yv"), constants=weights)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("QuantizeLinear") == 1
    for found, used in zip(run(model, X), weights.values(), strict=True):
        assert relative_error(found, X @ used) < 0.015


def test_outlier_channels_do_not_drown_the_others() -> None:
    """A channel a hundred times as large as the rest costs little."""
    x = X.copy()
    x[..., 7] *= 100
    weights = WEIGHTS.copy()
    weights[7] /= 100
    (y,) = run(quantized(x, weights), x)
    assert relative_error(y, x @ weights) < 0.03


def test_one_sided_activations_use_the_whole_range() -> None:
    """What never goes far below zero loses half as much to rounding as it would otherwise."""
    x = np.where(X < 0, 0.1 * np.tanh(X), X).astype(np.float32)
    (y,) = run(quantized(x), x)
    rounded = np.rint(x / (np.abs(x).max(axis=-1, keepdims=True) / 127))
    symmetric = rounded * np.abs(x).max(axis=-1, keepdims=True) / 127
    columns, scale = quantize_columns(WEIGHTS)
    exact = (columns * scale).astype(np.float32)
    assert relative_error(y, x @ exact) < 0.7 * relative_error(symmetric @ exact, x @ exact)


@pytest.mark.parametrize("factor", [0.01, 4])
def test_one_sided_activations_may_be_others_than_those_seen(factor: float) -> None:
    """Rows far smaller, or four times as large, than while calibrating are no worse off."""
    x = np.maximum(X, 0)
    scaled = x * np.float32(factor)
    (y,) = run(quantized(x), scaled)
    assert relative_error(y, scaled @ WEIGHTS) < 0.05


@pytest.mark.parametrize("kind", ["symmetric", "one-sided"])
def test_a_row_of_zeros_gives_zeros(kind: str) -> None:
    """It has no scale of its own, and no use for one."""
    x = np.maximum(X, 0) if kind == "one-sided" else X
    (y,) = run(quantized(x), np.zeros_like(x))
    np.testing.assert_allclose(y, 0, atol=1e-5)


@pytest.mark.parametrize("kind", ["symmetric", "one-sided"])
def test_not_a_number_stays_so(kind: str) -> None:
    """A row that is not finite (a LayerNorm leaves none in part) does not come out as one."""
    x = np.maximum(X, 0) if kind == "one-sided" else X
    broken = x.copy()
    broken[0, 0] = np.nan
    model = quantized(x)
    (y,), (sound,) = run(model, broken), run(model, x)
    assert np.isnan(y[0, 0]).all()
    np.testing.assert_array_equal(y[1:], sound[1:])


def test_silent_channels_and_columns_are_left_alone() -> None:
    """Channels that are always zero, and columns of zeros, have no range to divide by."""
    x, weights = X.copy(), WEIGHTS.copy()
    x[..., 3] = 0
    weights[5] = 0
    weights[:, 9] = 0
    (y,) = run(quantized(x, weights), x)
    assert relative_error(y, x @ weights) < 0.02
    np.testing.assert_array_equal(y[..., 9], 0)


def test_large_tables_become_int8() -> None:
    """Looked-up rows are close, and the table takes a quarter of the room; small ones stay."""
    large = RANDOM.normal(size=(5000, CHANNELS)).astype(np.float32)
    small = large[:100]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["id"], to=TensorProto.INT64),
        helper.make_node("Gather", ["large", "id"], ["row"]),
        helper.make_node("Gather", ["small", "id"], ["same"]),
        MATMUL,
    ]
    model = quantized(
        nodes=nodes, outputs=("row", "same", "y"), constants={"large": large, "small": small}
    )
    x = np.zeros_like(X)
    x[0, 0, 0] = 42
    row, same, _ = run(model, x)
    assert relative_error(row, large[42]) < 0.01
    np.testing.assert_array_equal(same, small[42])
    assert model.ByteSize() < large.nbytes / 4 + 5 * 5000 + small.nbytes + 2 * WEIGHTS.nbytes


def test_what_subgraphs_read_stays() -> None:
    """A constant that only the body of a loop reads is not thrown away."""
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["product"]),
        helper.make_node("Greater", ["limit", "zero"], ["choice"]),
        helper.make_node(
            "If", ["choice"], ["y"], then_branch=_branch("Add"), else_branch=_branch("Sub")
        ),
    ]
    model = quantized(
        nodes=nodes,
        constants={"limit": np.float32(1), "zero": np.float32(0), "inner": np.float32(1000)},
    )
    (y,) = run(model, X)
    np.testing.assert_allclose(y, X @ WEIGHTS + 1000, atol=1)


def _branch(operator: str) -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node(operator, ["product", "inner"], ["result"])],
        operator,
        [],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
    )


def test_weights_that_are_not_finite_are_refused() -> None:
    """They would come out as numbers like any other."""
    weights = WEIGHTS.copy()
    weights[3, 5] = np.nan
    with pytest.raises(Unsupported, match="not finite"):
        quantized(weights=weights)


def test_an_old_opset_is_refused() -> None:
    """Scales of rows came with opset 13."""
    with pytest.raises(Unsupported, match="opset 12"):
        quantized(opset=12)


def test_a_graph_without_products_is_refused(tmp_path: Any) -> None:
    """There is nothing to gain."""
    tiny = make_tiny_model(tmp_path)
    with pytest.raises(Unsupported, match="no matrix product"):
        activations(onnx.load(tiny.folder / GRAPH_FILE))
