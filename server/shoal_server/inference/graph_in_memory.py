"""A graph and its weights in RAM, to be opened without a look at the disk.

ONNX Runtime takes weights that lie beside a graph as values, and copies none that it can
use in place; handed over as the contents of files they would be copied twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from shoal_server.errors import ModelLoadFailed


@dataclass(frozen=True, slots=True)
class GraphInMemory:
    """What a session is opened from."""

    graph: bytes
    """The ONNX file."""
    weights: Mapping[str, ort.OrtValue]
    """Of the graph, by name: those that are not in that file."""


def hold(graph: bytes, beside: Mapping[str, bytes]) -> GraphInMemory:
    """Make a graph ready to be opened; blocks.

    Args:
        graph: The ONNX file.
        beside: Contents of the files that it refers to, by the names that it has for them.

    Raises:
        ModelLoadFailed: Its weights are in places that can not be handed over.
    """
    if not beside:
        return GraphInMemory(graph, {})
    try:
        model = onnx.load_model_from_string(graph)
        if any(_is_beside(each) for each in _in_bodies(model.graph.node)):
            raise ModelLoadFailed("weights of a loop's or a condition's body lie beside the graph")
        weights = {
            each.name: _value(each, beside) for each in model.graph.initializer if _is_beside(each)
        }
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelLoadFailed(f"its weights can not be held in memory: {error}") from error
    return GraphInMemory(graph, weights)


def _is_beside(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _value(tensor: onnx.TensorProto, beside: Mapping[str, bytes]) -> ort.OrtValue:
    where = {entry.key: entry.value for entry in tensor.external_data}
    view = np.frombuffer(
        beside[where["location"]],
        dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type),
        count=int(np.prod(tensor.dims)),
        offset=int(where.get("offset", "0")),
    )
    # Each in memory of its own: one that a session keeps does not keep the whole file.
    return ort.OrtValue.ortvalue_from_numpy(view.reshape(tuple(tensor.dims)).copy())


def _in_bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Weights of graphs inside the graph."""
    for node in nodes:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from body.initializer
                yield from _in_bodies(body.node)
