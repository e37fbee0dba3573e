"""Makes the form of a graph that the `PackedCache` keeps.

Padding is folded away (see `padding_free`), ONNX Runtime optimises the graph, and packs
its weights for this CPU's kernels into a file of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import structlog

from shoal_server.inference.onnx_model import OnnxModel
from shoal_server.inference.packed import WEIGHTS
from shoal_server.inference.padding_free import Run, fold_padding, same_vectors

log = structlog.get_logger(__name__)

# Smaller tensors stay in the graph.
_EXTERNAL_MIN_BYTES = 1024
_PAD_ID = 0  # any token id does: the mask hides it
_REASON_MAX = 300


def save_packed(source: Path, target: Path, *, vocabulary_size: int, max_tokens: int) -> None:
    """Write the packed form of a graph, and its weights beside it.

    Args:
        source: A graph; its external weights lie beside it.
        target: Where its packed form goes; `WEIGHTS` lies beside it.
        vocabulary_size: Token ids are below.
        max_tokens: What the model takes.
    """
    folded = without_padding(source, vocabulary_size=vocabulary_size, max_tokens=max_tokens)
    graph = source.read_bytes() if folded is None else folded.SerializeToString()
    _open(
        graph,
        source.parent,
        optimized_model_filepath=target,
        entries={
            "session.optimized_model_external_initializers_file_name": WEIGHTS,
            "session.optimized_model_external_initializers_min_size_in_bytes": (
                str(_EXTERNAL_MIN_BYTES)
            ),
            "session.save_external_prepacked_constant_initializers": "1",
        },
    )


def without_padding(
    source: Path, *, vocabulary_size: int, max_tokens: int
) -> onnx.ModelProto | None:
    """A graph that computes no padding, its weights left where they are.

    Args:
        source: A graph; its external weights lie beside it.
        vocabulary_size: Token ids are below.
        max_tokens: What the model takes.

    Returns:
        The changed graph; None where there is little to gain, where it would give other
        bits, and where changing it does not work out, whatever the reason.
    """
    model = onnx.load(source, load_external_data=False)
    try:
        if not fold_padding(model):
            return None
        folded = OnnxModel(_open(model.SerializeToString(), source.parent), _PAD_ID)
        plain = OnnxModel.open(source, threads=1, pad_id=_PAD_ID)
        if same_vectors(_runs(folded), _runs(plain), vocabulary_size, max_tokens):
            return model
        log.info("padding_kept", graph=source.name, reason="other bits without it")
    except Exception as error:
        # Graphs of all kinds come here, and the plain one always serves.
        log.info("padding_kept", graph=source.name, reason=repr(error)[:_REASON_MAX])
    return None


def _runs(model: OnnxModel) -> Run:
    def run(batch: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        return np.array(model.run(batch, [False] * len(batch)).rows)

    return run


def _open(
    graph: bytes,
    weights_folder: Path,
    *,
    optimized_model_filepath: Path | None = None,
    entries: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # it warns that the form depends on the CPU: we know
    if optimized_model_filepath is not None:
        options.optimized_model_filepath = str(optimized_model_filepath)
    folder = {"session.model_external_initializers_file_folder_path": str(weights_folder)}
    for name, value in (folder | dict(entries or {})).items():
        options.add_session_config_entry(name, value)
    return ort.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])
