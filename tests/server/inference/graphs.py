"""A graph of a few nodes whose vectors say what it was fed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from shoal_server.errors import ShoalError
from shoal_server.inference.backend import Backend, Row
from shoal_server.inference.cuda import CudaOptions

CUDA = CudaOptions(None, "kSameAsRequested", "HEURISTIC", tf32=False)
PAD = 7
# The row of id 0 is 0/0; ids from 100 up are in no table.
BAD, UNKNOWN = 0, 100


def write_graph(
    path: Path, *, extra: tuple[str, ...] = (), outputs: tuple[str, ...] = ("embedding", "pooled")
) -> Path:
    """A graph whose vectors say what it was fed.

    `embedding` is [Σ id, Σ of each extra input, number of tokens], over the places that
    the mask leaves; `pooled` is the same, negated. 0 / Σ id is added, which is nothing,
    or NaN where the ids sum up to 0.
    """
    inputs = ("input_ids", "attention_mask", *extra)
    node = helper.make_node
    nodes = [node("Gather", ["table", "input_ids"], ["known_ids"])]
    columns = []
    for name in inputs:
        source = "known_ids" if name == "input_ids" else name
        nodes += [
            node("Mul", [source, "attention_mask"], [f"{name}.kept"]),
            node("ReduceSum", [f"{name}.kept", "last"], [f"{name}.sum"], keepdims=1),
            node("Cast", [f"{name}.sum"], [f"{name}.column"], to=TensorProto.FLOAT),
        ]
        columns.append(f"{name}.column")
    nodes += [
        node("Concat", [columns[0], *columns[2:], columns[1]], ["row"], axis=1),
        node("Sub", [columns[0], columns[0]], ["zero"]),
        node("Div", ["zero", columns[0]], ["nothing"]),
        node("Add", ["row", "nothing"], ["embedding"]),
        node("Neg", ["embedding"], ["pooled"]),
    ]
    constants = {
        "table": np.arange(UNKNOWN, dtype=np.int64),
        "last": np.array([1], dtype=np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "says-what-it-was-fed",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["B", "T"]) for n in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", len(inputs)]) for n in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def values(row: Row | ShoalError) -> list[float]:
    """The numbers of a row that is one."""
    assert isinstance(row, np.ndarray), row
    assert row.dtype == np.float32
    return [float(value) for value in row]


def run(model: Backend, *sequences: list[int], pooled: tuple[bool, ...] = ()) -> list[list[float]]:
    """The rows of one run."""
    result = model.run(sequences, pooled or (False,) * len(sequences))
    return [values(row) for row in result.rows]
