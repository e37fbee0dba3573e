"""The smallest graph that has all of a transformer's kinds of nodes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, VOCABULARY = 16, 50
NAN_ID = 49
"""A token whose row in the table is not finite."""


def transformer() -> onnx.ModelProto:
    """A layer of a transformer: attention of one head, a gated product, two residuals."""
    draw = np.random.default_rng(1)
    node = helper.make_node
    squares = ("query", "key", "value", "out", "down")
    constants: dict[str, npt.NDArray[np.generic]] = {
        "table": draw.standard_normal((VOCABULARY, WIDTH)).astype(np.float32),
        **{name: draw.standard_normal((WIDTH, WIDTH)).astype(np.float32) for name in squares},
        "up": draw.standard_normal((WIDTH, 2 * WIDTH)).astype(np.float32),
        "bias": draw.standard_normal(WIDTH).astype(np.float32),
        "scale": np.ones(WIDTH, np.float32),
        "one": np.array(1.0, np.float32),
        "far": np.array(-1e9, np.float32),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
        "halves": np.array([WIDTH, WIDTH], np.int64),
    }
    constants["table"][NAN_ID] = np.nan
    nodes = [
        node("Gather", ["table", "input_ids"], ["words"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Sub", ["one", "mask"], ["absent"]),
        node("Mul", ["absent", "far"], ["far_mask"]),
        node("Unsqueeze", ["far_mask", "axis1"], ["bias_of_scores"]),
        node("MatMul", ["words", "query"], ["q"]),
        node("MatMul", ["words", "key"], ["k"]),
        node("MatMul", ["words", "value"], ["v"]),
        node("Transpose", ["k"], ["k_t"], perm=[0, 2, 1]),
        node("MatMul", ["q", "k_t"], ["scores"]),
        node("Add", ["scores", "bias_of_scores"], ["masked"]),
        node("Softmax", ["masked"], ["weights"], axis=-1),
        node("MatMul", ["weights", "v"], ["context"]),
        node("MatMul", ["context", "out"], ["attended"]),
        node("Identity", ["bias"], ["shared_bias"]),  # as exporters share equal weights
        node("Add", ["attended", "shared_bias"], ["biased"]),
        node("Add", ["biased", "words"], ["residual"]),
        node("LayerNormalization", ["residual", "scale", "bias"], ["normed"], axis=-1),
        node("MatMul", ["normed", "up"], ["both"]),
        node("Split", ["both", "halves"], ["gate", "linear"], axis=2),
        node("Sigmoid", ["gate"], ["open"]),
        node("Mul", ["open", "linear"], ["gated"]),
        node("MatMul", ["gated", "down"], ["below"]),
        node("Add", ["below", "normed"], ["hidden"]),
        node("Unsqueeze", ["mask", "axis2"], ["mask3"]),
        node("Greater", ["mask3", "one_half"], ["there"]),
        node("Where", ["there", "hidden", "nothing"], ["kept"]),
        node("Transpose", ["kept"], ["kept_t"], perm=[0, 2, 1]),
        node("Concat", ["mask3", "mask3"], ["twice"], axis=2),
        node("MatMul", ["kept_t", "twice"], ["sums"]),
        node("Split", ["sums", "ones"], ["sum", "again"], axis=2),
        node("Squeeze", ["sum", "axis2"], ["embedding"]),
    ]
    constants |= {
        "one_half": np.array(0.5, np.float32),
        "nothing": np.array(0.0, np.float32),
        "ones": np.array([1, 1], np.int64),
    }
    rectangle = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    vector = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])
    graph = helper.make_graph(
        nodes,
        "transformer",
        rectangle,
        [vector],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
