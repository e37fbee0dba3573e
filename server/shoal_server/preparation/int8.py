"""A graph's matrix products in int8, with a scale for every token.

Of a product x · W with a constant W, the weights become int8 once, symmetric, with a
scale for each output channel, and x becomes uint8 in every run, with a scale for each
row. The usual dynamic quantisation has one scale for the whole of x, so that a text's
vector changes with its batch mates; here every row is by itself, and the int32 sums are
exact, so that a vector is the same to the bit in any batch.

    q   = uint8(round(x / scale) + 128),  scale = max|x| / 127 of the row
    x·W ≈ (q − 128)·Q · weight_scale · scale

- **Signs.** Products of signed by signed run several times slower on x86, hence uint8
  with a zero point.
- **Two scales, two steps.** `MatMulIntegerToFloat` takes the weights' scales. It would
  take a scale of x for a scalar, and ONNX Runtime fuses a product of both scales into it
  without looking: the rows' scales are multiplied in afterwards.
- **Outlier channels** make a row's scale coarse. Each channel is divided by s and the
  row of W multiplied by it, s = max|x|^a / max|W|^(1−a) (SmoothQuant, arXiv 2211.10438).
  The division is a pass of its own: in a post-LN model the LayerNorm's output is also
  the residual and can not absorb it.
- **One-sided activations**, such as those of GELU, never go far below zero: half of the
  symmetric range would be lost on them. With a lowest value of −f, scale = f / z for a
  whole zero point z as large as the row's maximum allows, so that scale · z = f in every
  row, and what it adds to the product is one constant vector.
- **A bias** is subtracted, negated: after an Add, ONNX Runtime fuses GELU to BiasGelu,
  which is slower than GELU.
- **Large tables** (the words' embeddings) are int8 with a scale a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from shoal_server.inference.padding_free import names_read
from shoal_server.preparation.errors import Unsupported

Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]

_MIN_OPSET = 13  # the first whose QuantizeLinear takes a scale for each row
_AXES_AS_INPUT = 18  # the first whose ReduceMax does
_MICROSOFT = "com.microsoft"
_PREFIX = "shoal/int8/"
_MAX = 127.0
_ZERO_POINT = 128
# SmoothQuant's a. With all-MiniLM-L6-v2 0.6 to 0.9 are alike (mean cosine 0.9981 to
# 0.9985) and 0.5 is worse.
_SMOOTHING = 0.75
# GELU goes down to -0.17, SiLU to -0.28, ReLU to 0; their largest values are several.
_ONE_SIDED_LEAST = -0.3
_ONE_SIDED_RATIO = 8.0
# A zero point of at least 1 bounds what a one-sided row can hold to 254 times its floor;
# this leaves room for four times the largest value seen.
_FLOOR_SHARE = 1 / 64
_TABLE_MIN_BYTES = 1 << 20
# Of rows of zeros.
_LEAST_SCALE = np.float32(1e-30)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a tensor held when the graph ran on texts.

    Attributes:
        largest: float32[K], of the absolute values in each channel.
        least: The lowest value.
        most: The highest value.
    """

    largest: Float32
    least: float
    most: float


def activations(model: onnx.ModelProto) -> list[str]:
    """The tensors that `quantize_graph` would quantise, and wants to have seen.

    Raises:
        Unsupported: There is none.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    names = [node.input[0] for node in model.graph.node if _is_product(node, weights)]
    if not names:
        raise Unsupported("the graph has no matrix product with weights in float32")
    return list(dict.fromkeys(names))


def quantize_graph(model: onnx.ModelProto, seen: Mapping[str, Seen]) -> None:
    """Change a graph's products, and its large tables, to int8.

    Args:
        model: With its weights; changed.
        seen: For each tensor of `activations`.

    Raises:
        Unsupported: The graph's opset is too old, or there is nothing to do.
    """
    opset = max((e.version for e in model.opset_import if e.domain in {"", "ai.onnx"}), default=0)
    if opset < _MIN_OPSET:
        raise Unsupported(f"the graph has opset {opset}; int8 needs {_MIN_OPSET} or later")
    activations(model)
    if all(entry.domain != _MICROSOFT for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
    _Rewriter(model.graph, seen, axes_as_input=opset >= _AXES_AS_INPUT).rewrite()


@dataclass(frozen=True, slots=True)
class _Rows:
    """A tensor in uint8.

    Attributes:
        quantized: uint8[…, K]
        scale: float32[…, 1]
        zero_point: Constant, uint8.
        smoothing: float32[K], what the channels were divided by; None: nothing.
        floor: What the constant part of the product is of; 0: there is none.
    """

    quantized: str
    scale: str
    zero_point: str
    smoothing: Float32 | None
    floor: float


class _Rewriter:
    """Goes through a graph's nodes once and writes them anew."""

    def __init__(
        self, graph: onnx.GraphProto, seen: Mapping[str, Seen], *, axes_as_input: bool
    ) -> None:
        self._graph = graph
        self._seen = seen
        self._axes_as_input = axes_as_input
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._constants = set[str]()
        self._nodes: list[onnx.NodeProto] = []
        self._rows: dict[str, _Rows] = {}
        self._biases = _biases(graph, self._weights)
        self._absorbed: dict[str, Float32] = {}
        """By the node that takes a product: the constant part it subtracts."""

    def rewrite(self) -> None:
        nodes = list(self._graph.node)
        for node in nodes:
            if _is_product(node, self._weights):
                self._product(node)
            elif node.output and node.output[0] in self._absorbed:
                self._bias(node)
            elif _is_table(node, self._weights):
                self._table(node)
            else:
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = set(names_read(self._nodes)) | {output.name for output in self._graph.output}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _product(self, node: onnx.NodeProto) -> None:
        x, name, output = node.input[0], node.input[1], node.output[0]
        weights = numpy_helper.to_array(self._weights[name])
        rows = self._rows.get(x)
        if rows is None:
            readers = self._readers(x)
            rows = self._rows[x] = self._quantize(x, self._seen[x], readers)
        if rows.smoothing is not None:
            weights = weights * rows.smoothing[:, None]
        quantized, scale = quantize_columns(weights)
        sums = quantized.sum(axis=0, dtype=np.int32)
        constant = (rows.floor * sums * scale).astype(np.float32)
        bias = self._biases.get(output)
        if bias is not None:
            self._absorbed[bias] = constant
        scaled = output if bias is not None or rows.floor == 0 else f"{output}/scaled"
        product = self._append(
            "MatMulIntegerToFloat",
            [
                rows.quantized,
                self._constant(f"{output}/weights", quantized),
                self._constant("one", np.float32(1)),
                self._constant(f"{output}/weight_scale", scale),
                rows.zero_point,
            ],
            f"{output}/product",
            domain=_MICROSOFT,
        )
        self._node("Mul", [product, rows.scale], scaled)
        if scaled != output:
            self._node("Sub", [scaled, self._constant(f"{output}/constant", constant)], output)

    def _bias(self, node: onnx.NodeProto) -> None:
        """`product + bias` as `product - (constant part - bias)`."""
        output = node.output[0]
        product, bias = _product_and_bias(node, self._weights)
        constant = self._absorbed[output] - numpy_helper.to_array(self._weights[bias])
        self._node("Sub", [product, self._constant(f"{output}/negated", constant)], output)

    def _table(self, node: onnx.NodeProto) -> None:
        table, ids, output = node.input[0], node.input[1], node.output[0]
        columns, scale = quantize_columns(numpy_helper.to_array(self._weights[table]).T)
        rows = self._append(
            "Gather", [self._constant(table, np.ascontiguousarray(columns.T)), ids], output
        )
        scales = self._append(
            "Gather", [self._constant(f"{table}/scale", scale[:, None]), ids], f"{output}/scale"
        )
        floats = self._append("Cast", [rows], f"{output}/float", to=TensorProto.FLOAT)
        self._node("Mul", [floats, scales], output)

    def _readers(self, x: str) -> list[Float32]:
        """The weights of all products that read `x`."""
        return [
            numpy_helper.to_array(self._weights[node.input[1]])
            for node in self._graph.node
            if _is_product(node, self._weights) and node.input[0] == x
        ]

    def _quantize(self, x: str, seen: Seen, readers: Sequence[Float32]) -> _Rows:
        if _is_one_sided(seen):
            return self._quantize_one_sided(x, seen)
        smoothing = _smoothing(seen, readers)
        reciprocal = self._constant(f"{x}/smoothing", np.float32(1) / smoothing)
        smooth = self._append("Mul", [x, reciprocal], f"{x}/smooth")
        most = self._reduce("ReduceMax", smooth, f"{x}/most")
        least = self._reduce("ReduceMin", smooth, f"{x}/least")
        negated = self._append("Neg", [least], f"{x}/negated")
        guard = self._constant("least_scale", _LEAST_SCALE)
        largest = self._append("Max", [most, negated, guard], f"{x}/largest")
        step = self._constant("step", np.float32(1 / _MAX))
        scale = self._append("Mul", [largest, step], f"{x}/scale")
        flat = self._flat(scale, f"{x}/scale")
        shape = self._append("Shape", [flat], f"{x}/count")
        zero = numpy_helper.from_array(np.array([_ZERO_POINT], np.uint8))
        zeros = self._append("ConstantOfShape", [shape], f"{x}/zeros", value=zero)
        quantized = self._linear(smooth, flat, zeros, len(smoothing))
        zero_point = self._constant("zero_point", np.uint8(_ZERO_POINT))
        return _Rows(quantized, scale, zero_point, smoothing, 0.0)

    def _quantize_one_sided(self, x: str, seen: Seen) -> _Rows:
        value = np.float32(max(-seen.least, _FLOOR_SHARE * seen.most))
        floor = self._constant(f"{x}/floor", value)
        # Of 255 steps over [-floor, most]: so many are below zero.
        most = self._reduce("ReduceMax", x, f"{x}/most")
        range_ = self._append("Add", [most, floor], f"{x}/range")
        range_ = self._append("Max", [range_, floor], f"{x}/range_at_least")
        steps = self._constant(f"{x}/steps", 255 * value)
        below = self._append("Div", [steps, range_], f"{x}/below")
        below = self._append("Floor", [below], f"{x}/below_whole")
        below = self._append("Max", [below, self._constant("one", np.float32(1))], f"{x}/zero")
        scale = self._append("Div", [floor, below], f"{x}/scale")
        zeros = self._append(
            "Cast", [self._flat(below, f"{x}/zero")], f"{x}/zeros", to=TensorProto.UINT8
        )
        quantized = self._linear(x, self._flat(scale, f"{x}/scale"), zeros, len(seen.largest))
        no_zero_point = self._constant("no_zero_point", np.uint8(0))
        return _Rows(quantized, scale, no_zero_point, None, float(value))

    def _linear(self, x: str, scale: str, zero_points: str, channels: int) -> str:
        """uint8 of `x`, by scales and zero points of its rows: one pass with saturation."""
        rows = self._constant(f"rows_of_{channels}", np.array([-1, channels], np.int64))
        matrix = self._append("Reshape", [x, rows], f"{x}/matrix")
        quantized = self._append(
            "QuantizeLinear", [matrix, scale, zero_points], f"{x}/quantized", axis=0
        )
        shape = self._append("Shape", [x], f"{x}/shape")
        return self._append("Reshape", [quantized, shape], f"{x}/uint8")

    def _flat(self, tensor: str, name: str) -> str:
        shape = self._constant("flat", np.array([-1], np.int64))
        return self._append("Reshape", [tensor, shape], f"{name}/flat")

    def _reduce(self, operator: str, tensor: str, name: str) -> str:
        if not self._axes_as_input:
            return self._append(operator, [tensor], name, axes=[-1], keepdims=1)
        axes = self._constant("last_axis", np.array([-1], np.int64))
        return self._append(operator, [tensor, axes], name, keepdims=1)

    def _constant(self, name: str, value: np.generic | NDArray[np.generic]) -> str:
        name = _PREFIX + name
        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _append(
        self,
        operator: str,
        inputs: Sequence[str],
        name: str,
        *,
        domain: str = "",
        **attributes: int | list[int] | TensorProto,
    ) -> str:
        output = name if name.startswith(_PREFIX) else _PREFIX + name
        self._node(operator, inputs, output, domain=domain, **attributes)
        return output

    def _node(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str,
        *,
        domain: str = "",
        **attributes: int | list[int] | TensorProto,
    ) -> None:
        node = helper.make_node(operator, inputs, [output], name=output, domain=domain)
        node.attribute.extend(helper.make_attribute(*item) for item in attributes.items())
        self._nodes.append(node)


def quantize_columns(weights: Float32) -> tuple[Int8, Float32]:
    """Round float32[K, N] to int8[K, N], symmetric, and a scale for each column, float32[N].

    Raises:
        Unsupported: A weight is not finite: it would become a number like any other.
    """
    if not np.isfinite(weights).all():
        raise Unsupported("the graph has weights that are not finite")
    largest = np.abs(weights).max(axis=0)
    scale = np.where(largest > 0, largest / np.float32(_MAX), np.float32(1)).astype(np.float32)
    return np.clip(np.rint(weights / scale), -_MAX, _MAX).astype(np.int8), scale


def _smoothing(seen: Seen, readers: Sequence[Float32]) -> Float32:
    """What each channel is divided by, float32[K]."""
    weights = np.max([np.abs(each).max(axis=1) for each in readers], axis=0)
    # Channels that were silent, or that nobody weighs, stay as they are.
    live = (seen.largest > 0) & (weights > 0)
    ratio = np.ones_like(seen.largest)
    np.divide(seen.largest**_SMOOTHING, weights ** (1 - _SMOOTHING), out=ratio, where=live)
    return ratio


def _is_one_sided(seen: Seen) -> bool:
    is_near_zero = _ONE_SIDED_LEAST <= seen.least <= 0
    return is_near_zero and seen.most > 0 and seen.most >= -_ONE_SIDED_RATIO * seen.least


def _is_product(node: onnx.NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    if node.op_type != "MatMul" or node.input[0] in weights:
        return False
    return _is_float_matrix(weights.get(node.input[1]))


def _is_table(node: onnx.NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    if node.op_type != "Gather" or any(a.name == "axis" and a.i != 0 for a in node.attribute):
        return False
    table = weights.get(node.input[0])
    return _is_float_matrix(table) and 4 * int(np.prod(table.dims)) >= _TABLE_MIN_BYTES


def _is_float_matrix(tensor: TensorProto | None) -> TypeGuard[TensorProto]:
    return tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2


def _biases(graph: onnx.GraphProto, weights: Mapping[str, TensorProto]) -> dict[str, str]:
    """By product: the output of the node that adds a bias to it and is its only reader."""
    readers = Counter(names_read(graph.node)) + Counter(output.name for output in graph.output)
    products = {n.output[0]: n.input[1] for n in graph.node if _is_product(n, weights)}
    found = {}
    for node in graph.node:
        product, bias = _product_and_bias(node, weights)
        if product in products and readers[product] == 1:
            columns = weights[products[product]].dims[1]
            if list(weights[bias].dims) == [columns]:
                found[product] = node.output[0]
    return found


def _product_and_bias(node: onnx.NodeProto, weights: Mapping[str, TensorProto]) -> tuple[str, str]:
    """The two summands of an Add of a constant, that one last; empty when it is none."""
    if node.op_type == "Add":
        for tensor, constant in (tuple(node.input), tuple(node.input)[::-1]):
            if constant in weights and tensor not in weights:
                return tensor, constant
    return "", ""
