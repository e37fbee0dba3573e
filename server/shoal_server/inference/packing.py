"""Makes the form of a graph that the `PackedCache` keeps.

Padding is folded away (see `padding_free`), ONNX Runtime optimises the graph, and packs
its weights for this CPU's kernels into a file of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def save_packed(source: Path, target: Path, *, vocabulary_size: int, max_tokens: int) -> None:
    """Write the packed form of a graph, and its weights beside it.

    A graph that gives other bits when padding is folded away is packed as it is.

    Args:
        source: A graph; its external weights lie beside it.
        target: Where its packed form goes; `WEIGHTS` lies beside it.
        vocabulary_size: Token ids are below.
        max_tokens: What the model takes.
    """
    model = onnx.load(source, load_external_data=False)
    if fold_padding(model):
        folded = _save(model.SerializeToString(), source.parent, target)
        plain = OnnxModel.open(source, threads=1, pad_id=_PAD_ID)
        runs = _runs(OnnxModel(folded, _PAD_ID)), _runs(plain)
        if same_vectors(*runs, vocabulary_size, max_tokens):
            return
        log.warning("padding_kept", graph=str(source), reason="other bits without padding")
        target.unlink()
        target.with_name(WEIGHTS).unlink(missing_ok=True)
    _save(source.read_bytes(), source.parent, target)


def _runs(model: OnnxModel) -> Run:
    def run(batch: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        return np.array(model.run(batch, [False] * len(batch)).rows)

    return run


def _save(graph: bytes, weights_folder: Path, target: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # it warns that the form depends on the CPU: we know
    options.optimized_model_filepath = str(target)
    for name, value in (
        ("session.model_external_initializers_file_folder_path", str(weights_folder)),
        ("session.optimized_model_external_initializers_file_name", WEIGHTS),
        (
            "session.optimized_model_external_initializers_min_size_in_bytes",
            str(_EXTERNAL_MIN_BYTES),
        ),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(name, value)
    return ort.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])
