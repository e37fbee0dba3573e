"""Graphs with matrix products, of a few kilobytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from .authors import TABLE, Float32

WEIGHTS: Float32 = np.random.default_rng(11).normal(size=(8, 8)).astype(np.float32)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, npt.NDArray[Any] | np.float32],
    *,
    channels: int,
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
) -> onnx.ModelProto:
    """A graph from `x` float32[B, T, K] to `outputs`."""
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "t", channels])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, x: Float32) -> list[Float32]:
    """All outputs of a graph for `x`."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
    outputs: list[Float32] = session.run(None, {"x": x})
    return outputs


def dense_graph(precision: str = "fp32") -> onnx.ModelProto:
    """Authors' graph from token ids to rows of TABLE times WEIGHTS.

    Args:
        precision: `fp32`; or `dynamic`: int8 with one scale for the whole batch, as
            onnxruntime.quantization.quantize_dynamic makes them.
    """
    node = helper.make_node
    nodes = [node("Gather", ["table", "input_ids"], ["rows"])]
    constants: dict[str, npt.NDArray[Any]] = {"table": TABLE}
    if precision == "fp32":
        constants["weights"] = WEIGHTS
        nodes.append(node("MatMul", ["rows", "weights"], ["last_hidden_state"]))
    else:
        scale = np.abs(WEIGHTS).max() / 127
        constants["weights"] = np.rint(WEIGHTS / scale).astype(np.int8)
        constants["weight_scale"] = scale
        nodes += [
            node("DynamicQuantizeLinear", ["rows"], ["quantized", "scale", "zero"]),
            node("MatMulInteger", ["quantized", "weights", "zero"], ["sums"]),
            node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
            node("Mul", ["scale", "weight_scale"], ["both"]),
            node("Mul", ["floats", "both"], ["last_hidden_state"]),
        ]
    graph = helper.make_graph(
        nodes,
        "dense",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "t", 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
