"""A graph that computes nothing for padding where that makes no difference.

Most of a transformer works on each token by itself: matrix products with weights,
normalisation, activation functions, residuals. Only attention relates the tokens of a
text, and takes the rectangle [B, T] for it. Around attention the rectangle is folded to
the tokens that are there and back,

    fold    [B, T, C] → [1, N, C]   the rows of the tokens, one text after the other
    unfold  [1, N, C] → [B, T, C]   padding repeats its text's last token

so that a batch of texts of different lengths costs what its tokens cost; what padding
is left is attention's, which is a small share unless texts are long (ByteTransformer,
arXiv 2210.03052, does the same on GPUs). A row's products do not depend on which rows
stand beside it, masked places count for exactly nothing in attention, and so the bits
are those of the graph as it was. `same_vectors` checks that for a given graph.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from shoal_server.registry.manifest import ATTENTION_MASK

METADATA_KEY = "shoal.padding_free"
"""Set in the metadata of a graph that was changed."""

# Of the folded form of a tensor, and of what tells where tokens are.
_FOLDED = "shoal/tokens/"
_INDEX = "shoal/places/"
_PRODUCTS = frozenset({"MatMul", "MatMulInteger"})
# Below this share of the weights of all products, padding is still computed for the most.
_LEAST_SHARE = 0.75
# What these give for a token depends on that token alone, whatever the opset.
_ELEMENTWISE = frozenset(
    {
        *("Abs", "Add", "BiasGelu", "Cast", "Clip", "Div", "Erf", "Exp", "FastGelu", "Gelu"),
        *("HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish"),
        *("Mul", "Neg", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Silu", "Softplus"),
        *("Softsign", "Sqrt", "Sub", "Tanh", "Where"),
    }
)
# And these, when they work along the last axis.
_ALONG_LAST_AXIS = frozenset(
    {
        *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Split"),
        *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"),
    }
)
# Lengths of the texts that `same_vectors` compares, batch by batch.
_CHECKED = ((7,), (1, 9), (12, 3, 33), (5, 40, 2, 17, 64))

Run = Callable[[Sequence[Sequence[int]]], npt.NDArray[np.float32]]
"""From token ids to the vectors, float32[B, D], of one run."""


def fold_padding(model: onnx.ModelProto) -> bool:
    """Change a graph so that it works on tokens instead of on the rectangle.

    Args:
        model: From int64[B, T] inputs, padded on the right; weights may be elsewhere.
            Changed in place.

    Returns:
        Whether it was changed: not if it was before, or if there is little to gain.
    """
    if any(each.key == METADATA_KEY for each in model.metadata_props):
        return False
    shapes, types = _shapes(model)
    if len(shapes.get(ATTENTION_MASK, ())) != 2:
        return False
    return _Folding(model, shapes, types).fold()


def same_vectors(one: Run, other: Run, vocabulary_size: int, max_tokens: int) -> bool:
    """Whether two graphs give the same bits for batches of texts of several lengths.

    Args:
        one: Runs the first.
        other: Runs the second.
        vocabulary_size: Token ids are below.
        max_tokens: What the model takes.
    """
    draw = random.Random(0)  # noqa: S311
    for lengths in _CHECKED:
        batch = [
            [draw.randrange(vocabulary_size) for _ in range(min(length, max_tokens))]
            for length in lengths
        ]
        if not np.array_equal(one(batch), other(batch), equal_nan=True):
            return False
    return True


class _Folding:
    """One graph on its way."""

    def __init__(
        self,
        model: onnx.ModelProto,
        shapes: dict[str, list[int | str]],
        types: dict[str, int],
    ) -> None:
        self._model = model
        self._graph = model.graph
        self._constants = _constants(self._graph)
        self._shapes, self._types = shapes, types
        self._tokens = self._shapes[ATTENTION_MASK]
        # By the name of a rectangle: the folded tensor that holds the same.
        self._folded: dict[str, str] = {}
        # Rectangles that nothing computes any longer unless they are unfolded.
        self._gone: set[str] = set()
        # What the graph will be made of.
        self._nodes: list[onnx.NodeProto] = []
        self._added: list[onnx.TensorProto] = []
        self._known: list[onnx.ValueInfoProto] = []
        self._weights_folded = 0

    def fold(self) -> bool:
        for node in list(self._graph.node):
            if self._is_product(node) or self._is_tokenwise(node):
                self._work_folded(node)
            elif node.op_type == "Shape" and node.input[0] in self._gone and not node.attribute:
                self._add("Concat", [_INDEX + "batch_tokens", self._width_of(node.input[0])],
                          node.output[0], axis=0)  # fmt: skip
            else:
                self._unfold_all(names_read([node]))
                self._nodes.append(node)
        self._unfold_all([each.name for each in self._graph.output])
        if self._weights_folded <= _LEAST_SHARE * self._weights():
            return False
        index = list(self._index())
        del self._graph.node[:]
        self._graph.node.extend([*index, *self._nodes])
        self._graph.initializer.extend(self._added)
        self._graph.value_info.extend(self._known)
        self._model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value="1"))
        return True

    def _weights(self) -> int:
        """Numbers in the weights of all products."""
        return sum(
            math.prod(self._constants[node.input[1]])
            for node in self._graph.node
            if node.op_type in {*_PRODUCTS, "Gemm"}
            and len(self._constants.get(node.input[1], ())) == 2
        )

    # -- what can be folded --------------------------------------------------------

    def _is_product(self, node: onnx.NodeProto) -> bool:
        return (
            node.op_type in _PRODUCTS
            and len(self._constants.get(node.input[1], ())) == 2
            and all(name in self._constants for name in node.input[1:])
            and self._is_rectangle(node.input[0])
            and self._width(node.output[0]) is not None
        )

    def _is_tokenwise(self, node: onnx.NodeProto) -> bool:
        """Whether a node works on folded tensors, or could, and on nothing else."""
        if node.op_type in _ALONG_LAST_AXIS:
            if not self._works_along_last_axis(node):
                return False
        elif node.op_type not in _ELEMENTWISE:
            return False
        varying = [name for name in node.input if name and name not in self._constants]
        return (
            any(name in self._gone for name in varying)
            and all(name in self._folded or self._is_worth_folding(name) for name in varying)
            and all(self._width(name) is not None for name in node.output)
            and all(
                _is_row(self._constants[name]) for name in node.input if name in self._constants
            )
        )

    def _is_worth_folding(self, name: str) -> bool:
        """Whether a rectangle is what products are made of, and no mask with its one column."""
        return self._is_rectangle(name) and self._width(name) != 1

    def _works_along_last_axis(self, node: onnx.NodeProto) -> bool:
        attributes = {each.name: each for each in node.attribute}
        if node.op_type.startswith("Reduce"):
            if "keepdims" in attributes and not attributes["keepdims"].i:
                return False
            if "axes" in attributes:
                axes = list(attributes["axes"].ints)
            else:
                axes = self._values(node.input[1]) if len(node.input) > 1 else []
            return axes in ([-1], [2])
        default = 0 if node.op_type == "Split" else -1
        axis = attributes["axis"].i if "axis" in attributes else default
        return axis in (-1, 2)

    def _values(self, name: str) -> list[int]:
        """The numbers of a small constant."""
        for tensor in self._graph.initializer:
            if tensor.name == name:
                return [int(each) for each in numpy_helper.to_array(tensor).ravel()]
        for node in self._graph.node:
            if node.op_type == "Constant" and node.output[0] == name:
                return [int(each) for each in numpy_helper.to_array(node.attribute[0].t).ravel()]
        return []

    def _is_rectangle(self, name: str) -> bool:
        """Whether a tensor is [B, T, C], as far as shape inference can tell.

        Where a dimension got lost on the way, it is taken for B or T: a graph in which
        that is wrong does not run, or gives other vectors, which `same_vectors` finds.
        """
        if name in self._folded:
            return True
        shape = self._shapes.get(name)
        return (
            shape is not None
            and len(shape) == 3
            and isinstance(shape[2], int)
            and all(
                not isinstance(dim, int) and (dim == wanted or _is_unknown(dim))
                for dim, wanted in zip(shape[:2], self._tokens, strict=True)
            )
        )

    def _width(self, name: str) -> int | None:
        shape = self._shapes.get(name)
        width = shape[-1] if shape is not None and len(shape) == 3 else None
        return width if isinstance(width, int) else None

    # -- the nodes that do it -------------------------------------------------------

    def _work_folded(self, node: onnx.NodeProto) -> None:
        folded = onnx.NodeProto()
        folded.CopyFrom(node)
        for at, name in enumerate(node.input):
            if name and name not in self._constants:
                folded.input[at] = self._fold(name)
        for at, name in enumerate(node.output):
            folded.output[at] = self._name_folded(name)
            self._gone.add(name)
        if node.op_type in _PRODUCTS:
            self._weights_folded += math.prod(self._constants[node.input[1]])
        self._nodes.append(folded)

    def _fold(self, name: str) -> str:
        if name not in self._folded:
            folded = self._name_folded(name)
            width = self._shapes[name][2]
            self._add("Reshape", [name, self._constant([-1, width])], f"{folded}/flat")
            self._add("Gather", [f"{folded}/flat", _INDEX + "kept"], f"{folded}/rows", axis=0)
            self._add("Reshape", [f"{folded}/rows", self._constant([1, -1, width])], folded)
        return self._folded[name]

    def _name_folded(self, name: str) -> str:
        folded = self._folded[name] = _FOLDED + name
        # The optimiser fuses what it sees to be of one shape. It is to fuse what it would
        # have fused in the rectangles, no less and no more: fused nodes round otherwise.
        known = self._shapes[name][:2] == self._tokens
        number = _INDEX + "number" if known else None
        self._known.append(
            helper.make_tensor_value_info(folded, self._types[name], [1, number, self._width(name)])
        )
        return folded

    def _unfold_all(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._gone:
                continue
            self._gone.discard(name)
            folded = self._folded[name]
            width = self._width(name)
            unfolded = f"{folded}/unfolded"
            self._add("Reshape", [folded, self._constant([-1, width])], f"{folded}/list")
            self._add("Gather", [f"{folded}/list", _INDEX + "row"], unfolded, axis=0)
            self._add("Concat", [_INDEX + "batch_tokens", self._width_of(name)],
                      f"{folded}/shape", axis=0)  # fmt: skip
            self._add("Reshape", [unfolded, f"{folded}/shape"], name)

    def _index(self) -> Iterator[onnx.NodeProto]:
        """What tells which places of the rectangle hold tokens.

        The first place of a text counts as one whatever the mask says, so that a text
        without tokens is computed as it was, and no text's padding repeats another's.
        """

        def at(name: str) -> str:
            return _INDEX + name

        node, mask = helper.make_node, ATTENTION_MASK
        zero, one, end = (self._constant([each]) for each in (0, 1, np.iinfo(np.int64).max))
        flat = self._constant([-1])
        ones = helper.make_tensor("", TensorProto.INT64, [1], [1])
        yield node("Shape", [mask], [at("batch_tokens")])
        yield node("Slice", [at("batch_tokens"), zero, one], [at("batch")])
        yield node("Concat", [at("batch"), one], [at("column")], axis=0)
        yield node("ConstantOfShape", [at("column")], [at("first")], value=ones)
        yield node("Slice", [mask, one, end, one], [at("others")])
        yield node("Concat", [at("first"), at("others")], [at("mask")], axis=1)
        yield node("Reshape", [at("mask"), flat], [at("flat")])
        yield node("NonZero", [at("flat")], [at("places")])
        yield node("Reshape", [at("places"), flat], [at("kept")])
        yield node("CumSum", [at("flat"), self._scalar(0)], [at("count")])
        yield node("Sub", [at("count"), one], [at("row")])

    def _add(
        self, kind: str, inputs: Sequence[str], output: str, *, axis: int | None = None
    ) -> None:
        node = helper.make_node(kind, inputs, [output])
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self._nodes.append(node)

    def _width_of(self, name: str) -> str:
        return self._constant([self._width(name)])

    def _constant(self, values: Sequence[int | str | None]) -> str:
        name = _INDEX + "x".join(map(str, values))
        return self._initializer(name, np.array(values, np.int64))

    def _scalar(self, value: int) -> str:
        return self._initializer(f"{_INDEX}scalar{value}", np.array(value, np.int64))

    def _initializer(self, name: str, value: npt.NDArray[np.int64]) -> str:
        if name not in self._constants:
            self._constants[name] = list(value.shape)
            self._added.append(numpy_helper.from_array(value, name))
        return name


def names_read(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Names of the tensors that nodes read, in their subgraphs too."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from names_read(graph.node)
                yield from (output.name for output in graph.output)


def _constants(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Shapes of what is the same in every run, by name."""
    constants = {each.name: list(each.dims) for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = list(node.attribute[0].t.dims)
        elif node.op_type == "Identity" and node.input[0] in constants:
            # How exporters share equal weights.
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def _shapes(model: onnx.ModelProto) -> tuple[dict[str, list[int | str]], dict[str, int]]:
    """Of the tensors by name: shapes (sizes, or names of sizes, empty if unknown), and types."""
    # What exporters wrote down may use other names for B and T than the inputs do.
    stored = list(model.graph.value_info)
    del model.graph.value_info[:]
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    model.graph.value_info.extend(stored)
    shapes: dict[str, list[int | str]] = {}
    types: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = [
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param
                for dim in tensor.shape.dim
            ]
    return shapes, types


def _is_unknown(dim: int | str) -> bool:
    # Shape inference names dimensions that it can not follow.
    return isinstance(dim, str) and (not dim or dim.startswith("unk__"))


def _is_row(shape: Sequence[int]) -> bool:
    """Whether a constant is the same for every token."""
    return all(size == 1 for size in shape[:-1])
