"""A graph in fp16 for GPUs: its transformer fused and halved, its pooling left as it is.

    cut → fold constants → fuse → halve → join

Fusing is ONNX Runtime's own work (`onnxruntime.transformers`): attention with its three
projections becomes one node, and so do embeddings, residual + LayerNorm, bias + GELU.
It knows the patterns of BERT and its like; what it does not know stays as it is.

Pooling and L2 stay in float32: a sum over hundreds of tokens, and the square of a norm,
are more than fp16 can hold to three digits. The ends of the graph are cut off before
anything is touched, and put back afterwards.

`onnxruntime.transformers` would fold constants itself, and for that imports PyTorch. It is
given a graph in which ONNX Runtime has done so already.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from shoal_server.preparation.errors import Unsupported
from shoal_server.preparation.graph import TAIL_PREFIX, load_weights

_FOLDED = "folded.onnx"
_MICROSOFT = "com.microsoft"


def half_graph(model: onnx.ModelProto, weights: Path, scratch: Path) -> onnx.ModelProto:
    """Give a prepared graph in fp16.

    Args:
        model: Without its weights; int64[B, T] inputs that are padded on the right.
        weights: The folder of its weights.
        scratch: An empty folder.

    Returns:
        A graph with the same inputs, and the same outputs in float32.

    Raises:
        Unsupported: It is not a graph that `shoal models pull` made, or the runtime
            refuses it.
    """
    hidden = _hidden(model)
    encoder = _fold(_encoder(model, hidden), weights, scratch)
    halved = _halve(_fuse(encoder))
    return _join(halved, model, weights)


def fused_nodes(model: onnx.ModelProto) -> Mapping[str, int]:
    """How many nodes of each of ONNX Runtime's fused kinds a graph has."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        if node.domain == _MICROSOFT:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _hidden(model: onnx.ModelProto) -> str:
    """The tensor in which the transformer ends and the pooling begins."""
    tail = [node for node in model.graph.node if _is_tail(node)]
    if not tail or tail[0].op_type != "Cast":
        raise Unsupported("the graph does not end as `shoal models pull` ends it")
    return str(tail[0].input[0])


def _encoder(model: onnx.ModelProto, hidden: str) -> onnx.ModelProto:
    encoder = onnx.ModelProto()
    encoder.CopyFrom(model)
    graph = encoder.graph
    _keep_nodes(graph, [node for node in graph.node if not _is_tail(node)])
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(hidden, TensorProto.FLOAT, None))
    return encoder


def _fold(encoder: onnx.ModelProto, weights: Path, scratch: Path) -> onnx.ModelProto:
    """Fold constants, as the patterns that are fused have them folded."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(scratch / _FOLDED)
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(weights)
    )
    try:
        ort.InferenceSession(
            encoder.SerializeToString(),
            sess_options=options,
            providers=["CPUExecutionProvider"],
            # Constants that are shared hide the patterns.
            disabled_optimizers=["ConstantSharing"],
        )
    except Exception as error:  # ONNX Runtime raises many unrelated types
        raise Unsupported(f"the runtime refuses the graph: {error}") from error
    folded = onnx.load(str(scratch / _FOLDED), load_external_data=False)
    load_weights(folded, weights)
    return folded


def _fuse(encoder: onnx.ModelProto) -> onnx.ModelProto:
    with _quiet():
        # Only now: it puts its folder on the path, and takes a while.
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.optimizer import optimize_model

        options = FusionOptions("bert")
        # It would need sympy, and finds nothing more in graphs that are like BERT's.
        options.enable_shape_inference = False
        # Heads and width are read from the graph; level 0 leaves constants alone.
        optimized = optimize_model(encoder, "bert", optimization_options=options, opt_level=0)
    fused: onnx.ModelProto = optimized.model
    return fused


def _halve(encoder: onnx.ModelProto) -> onnx.ModelProto:
    with _quiet():
        from onnxruntime.transformers.float16 import convert_float_to_float16

        # All of it: the tensors' types are not known, so nothing could be left out.
        halved: onnx.ModelProto = convert_float_to_float16(
            encoder, keep_io_types=False, disable_shape_infer=True, op_block_list=[]
        )
    return halved


def _join(halved: onnx.ModelProto, model: onnx.ModelProto, weights: Path) -> onnx.ModelProto:
    """The halved encoder with the ends of `model`, which begin with a cast to float32."""
    joined = onnx.ModelProto()
    joined.CopyFrom(model)
    graph = joined.graph
    tail = [node for node in graph.node if _is_tail(node)]
    _keep_nodes(graph, tail)
    load_weights(joined, weights)
    nodes = [*halved.graph.node, *tail]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(halved.graph.initializer)
    del joined.opset_import[:]
    used = {node.domain for node in nodes}
    joined.opset_import.extend(entry for entry in halved.opset_import if entry.domain in used)
    return joined


def _keep_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Leave only some nodes, and the weights that they read."""
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _is_tail(node: onnx.NodeProto) -> bool:
    return str(node.name).startswith(TAIL_PREFIX)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a library prints and logs off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
