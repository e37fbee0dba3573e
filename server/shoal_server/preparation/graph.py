"""Pooling and L2 as part of the ONNX graph, so that a run returns one row for each input.

Token vectors that a pooling leaves out are replaced by zeros before they are summed,
not multiplied by zero: what an all-padding row computes may be NaN, and its vector
must be zeros. One formula serves every pooling,

    pooled = Σ_t selected[t] · hidden[t] / max(Σ_t selected[t], 1e-9)

as in sentence-transformers' Pooling; the poolings differ in what is selected.

The sum must have the same bits whatever the batch. ONNX Runtime's ReduceSum adds in one
order for one row and in another for several, and its matrix product by a single row
takes the last T mod 4 tokens apart; a product by two rows adds token after token. So the
selection is doubled, and one of the two equal results is taken.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from shoal_server.core import Pooling
from shoal_server.preparation.errors import Unsupported
from shoal_server.registry.manifest import (
    ATTENTION_MASK,
    EMBEDDING,
    INPUT_IDS,
    POOLED,
    POSITION_IDS,
    TOKEN_TYPE_IDS,
)

WEIGHTS_FILE = "model.onnx.data"

_MIN_OPSET = 11  # the first with CumSum
# The opset from which an operator takes its axes as an input, not as an attribute.
_AXES_AS_INPUT = {"ReduceSum": 13, "Unsqueeze": 13, "ReduceL2": 18}
_MIN_COUNT = 1e-9  # of sentence-transformers' Pooling
_MIN_NORM = 1e-12  # of torch.nn.functional.normalize
_TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
_SENTENCE_OUTPUT = "sentence_embedding"
_INPUTS = frozenset({INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS, POSITION_IDS})
# Weights smaller than this stay in model.onnx.
_EXTERNAL_MIN_BYTES = 1024
TAIL_PREFIX = "shoal/"
"""Of the names of the nodes that end a prepared graph: pooling and L2."""


def build_graph(source: Path, pooling: Pooling, *, normalize: bool) -> onnx.ModelProto:
    """Read an ONNX file and end it with pooling, and L2 where asked for.

    Args:
        source: The ONNX file; its external data, if any, lies beside it.
        pooling: How token vectors become one.
        normalize: Whether `embedding` is to have unit length.

    Returns:
        A graph from int64[B, T] inputs to `embedding` float32[B, D], and `pooled`
        float32[B, D], the vector before L2, where `normalize`.

    Raises:
        Unsupported: It is not ONNX, or has inputs or outputs that we do not know.
    """
    model = _load(source)
    _check_opset(model)
    _check_inputs(model.graph)
    output = _vector_output(model.graph)
    surgeon = _Surgeon(model)
    vectors = surgeon.as_float32(output.name)
    if len(output.type.tensor_type.shape.dim) == 3:
        vectors = surgeon.pool(vectors, pooling)
    surgeon.finish(vectors, normalize=normalize, dimensions=_last_dimension(output))
    return model


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph to `path` and its weights to `model.onnx.data` beside it, and check both.

    Weights lie outside of the graph whatever their size: the runtime maps them into
    memory instead of copying them, and one layout serves models below and above 2 GiB.
    `model` is left without its weights.

    Raises:
        OSError: The disk refuses.
        Unsupported: The result is not valid ONNX.
    """
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS_FILE,
        size_threshold=_EXTERNAL_MIN_BYTES,
    )
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise Unsupported(f"the graph is not valid ONNX: {error}") from error


def load_weights(model: onnx.ModelProto, folder: Path) -> None:
    """Read the weights of a graph that `save_graph` wrote into the graph.

    `onnx.load` refuses a file with several hard links, such as copies that share their
    content have; what lies in the repository is vouched for by its SHA-256.

    Args:
        model: Read without its external data; changed.
        folder: Where it lies.

    Raises:
        OSError: The disk refuses.
        Unsupported: The weights lie elsewhere.
    """
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where["location"] != WEIGHTS_FILE:
            raise Unsupported(f"the graph's weights are in {where['location']}, not beside it")
        with (folder / WEIGHTS_FILE).open("rb") as file:
            file.seek(int(where.get("offset", 0)))
            tensor.raw_data = file.read(int(where.get("length", -1)))
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def precision_of(model: onnx.ModelProto) -> str:
    """The type that most bytes of the weights have: fp32, fp16, bf16 or int8."""
    names: dict[int, str] = {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.INT8: "int8",
        TensorProto.UINT8: "int8",
    }
    sizes = dict.fromkeys(names.values(), 0)
    for tensor in model.graph.initializer:
        if tensor.data_type in names:
            item_bytes = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            sizes[names[tensor.data_type]] += int(np.prod(tensor.dims)) * item_bytes
    return max(sizes, key=lambda name: sizes[name])


class _Surgeon:
    """Appends nodes to a graph; every tensor it makes inside is named `shoal/…`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._opset = _opset(model)

    def as_float32(self, tensor: str) -> str:
        return self._append("Cast", [tensor], "hidden", to=TensorProto.FLOAT)

    def pool(self, hidden: str, pooling: Pooling) -> str:
        """From float32[B, T, D] to float32[B, D]."""
        selected = self._select(pooling)
        flags = self._append("Cast", [selected], "flags", to=TensorProto.BOOL)
        column = self._along("Unsqueeze", flags, 2, "column")
        kept = self._append("Where", [column, hidden, self._constant("zero", 0.0)], "kept")
        row = self._along("Unsqueeze", selected, 1, "row")
        rows = self._append("Concat", [row, row], "rows", axis=1)  # float32[B, 2, T]
        totals = self._append("MatMul", [rows, kept], "totals")  # float32[B, 2, D]
        first = self._constant("first_row", 0, np.int64)
        total = self._append("Gather", [totals, first], "total", axis=1)
        count = self._along("ReduceSum", selected, 1, "count", keepdims=1)
        divisor = self._append("Max", [count, self._constant("min_count", _MIN_COUNT)], "divisor")
        return self._append("Div", [total, divisor], "vectors")

    def _select(self, pooling: Pooling) -> str:
        """float32[B, T]: 1 where the token takes part in the pooling, else 0."""
        mask = self._append("Cast", [ATTENTION_MASK], "mask", to=TensorProto.FLOAT)
        if pooling is Pooling.MEAN:
            return mask
        axis = self._constant("axis", 1, np.int64)
        rank = self._append("CumSum", [mask, axis], "rank")  # among real tokens, from 1
        if pooling is Pooling.CLS:
            wanted = self._constant("first_rank", 1.0)
        else:
            wanted = self._along("ReduceSum", mask, 1, "last_rank", keepdims=1)
        is_wanted = self._append("Equal", [rank, wanted], "is_wanted")
        is_wanted = self._append("Cast", [is_wanted], "is_wanted_float", to=TensorProto.FLOAT)
        # Padding has the rank of the last real token before it.
        return self._append("Mul", [is_wanted, mask], "selected")

    def finish(self, vectors: str, *, normalize: bool, dimensions: int | str) -> None:
        """Make `vectors`, or `vectors` and their unit vectors, the graph's outputs."""
        del self._graph.output[:]
        if not normalize:
            self._output(vectors, EMBEDDING, dimensions)
        else:
            norm = self._along("ReduceL2", vectors, 1, "norm", keepdims=1)
            least = self._constant("min_norm", _MIN_NORM)
            divisor = self._append("Max", [norm, least], "norm_divisor")
            unit_vectors = self._append("Div", [vectors, divisor], "unit_vectors")
            self._output(unit_vectors, EMBEDDING, dimensions)
            self._output(vectors, POOLED, dimensions)
        for tensor in self._graph.input:
            _set_shape(tensor, ("batch", "tokens"))

    def _output(self, tensor: str, name: str, dimensions: int | str) -> None:
        self._graph.node.append(
            helper.make_node("Identity", [tensor], [name], name=TAIL_PREFIX + name)
        )
        shape = ("batch", dimensions)
        self._graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def _along(self, operator: str, tensor: str, axis: int, name: str, **attributes: int) -> str:
        if self._opset < _AXES_AS_INPUT[operator]:
            return self._append(operator, [tensor], name, axes=[axis], **attributes)
        axes = self._constant(f"{name}_axes", [axis], np.int64)
        return self._append(operator, [tensor, axes], name, **attributes)

    def _constant(self, name: str, value: object, dtype: type[np.generic] = np.float32) -> str:
        tensor = numpy_helper.from_array(np.asarray(value, dtype), TAIL_PREFIX + name)
        self._graph.initializer.append(tensor)
        return tensor.name

    def _append(
        self, operator: str, inputs: list[str], name: str, **attributes: int | list[int]
    ) -> str:
        output = TAIL_PREFIX + name
        node = helper.make_node(operator, inputs, [output], name=output)
        node.attribute.extend(helper.make_attribute(*item) for item in attributes.items())
        self._graph.node.append(node)
        return output


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path))
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise Unsupported(f"the ONNX file {path.name} can not be read: {error}") from error


def _opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}]
    return max(versions, default=0)


def _check_opset(model: onnx.ModelProto) -> None:
    if _opset(model) < _MIN_OPSET:
        raise Unsupported(
            f"the ONNX file has opset {_opset(model)}; pooling needs {_MIN_OPSET} or later"
        )


def _check_inputs(graph: onnx.GraphProto) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {tensor.name: tensor for tensor in graph.input if tensor.name not in weights}
    if unknown := sorted(inputs.keys() - _INPUTS):
        raise Unsupported(f"the ONNX file has inputs we can not feed: {', '.join(unknown)}")
    if missing := sorted({INPUT_IDS, ATTENTION_MASK} - inputs.keys()):
        raise Unsupported(f"the ONNX file has no input {' and no '.join(missing)}")
    for name, tensor in inputs.items():
        if tensor.type.tensor_type.elem_type != TensorProto.INT64:
            raise Unsupported(f"the ONNX file's input {name} is not int64")


def _vector_output(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    """The output that holds token vectors, else the one with pooled vectors."""
    outputs = {output.name: output for output in graph.output}
    for name in (*_TOKEN_OUTPUTS, _SENTENCE_OUTPUT):
        if name in outputs:
            return outputs[name]
    for output in graph.output:
        if len(output.type.tensor_type.shape.dim) == 3:
            return output
    raise Unsupported(
        f"the ONNX file gives no token vectors, only: {', '.join(outputs) or 'nothing'}"
    )


def _last_dimension(tensor: onnx.ValueInfoProto) -> int | str:
    dimension = tensor.type.tensor_type.shape.dim[-1]
    return dimension.dim_value or "dimensions"


def _set_shape(tensor: onnx.ValueInfoProto, names: tuple[str, ...]) -> None:
    shape = tensor.type.tensor_type.shape
    del shape.dim[:]
    for name in names:
        shape.dim.add().dim_param = name
