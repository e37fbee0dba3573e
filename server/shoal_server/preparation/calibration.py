"""What a graph's tensors hold when it runs on ordinary texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from shoal_server.preparation.int8 import Seen
from shoal_server.preparation.running import TextRunner, read_texts

TEXTS_FILE = "calibration_texts.json"


def calibrate(
    graph: onnx.ModelProto, names: Sequence[str], weights: Path, tokenizer: Path, max_tokens: int
) -> dict[str, Seen]:
    """Run a graph on the texts of `calibration_texts.json` and watch some of its tensors.

    Args:
        graph: Without its weights.
        names: Of the tensors: float32[…, K].
        weights: The folder of the graph's weights.
        tokenizer: The model's `tokenizer.json`.
        max_tokens: Longer texts are cut.

    Returns:
        What each tensor held.

    Raises:
        Unsupported: The runtime refuses the graph.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    outputs = {output.name for output in graph.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in outputs
    )
    runner = TextRunner(watched.SerializeToString(), tokenizer, max_tokens, weights=weights)
    seen: dict[str, Seen] = {}
    for text in read_texts(TEXTS_FILE):
        for name, tensor in zip(names, runner.run([text], names), strict=True):
            rows = tensor.reshape(-1, tensor.shape[-1])
            now = Seen(np.abs(rows).max(axis=0), float(rows.min()), float(rows.max()))
            seen[name] = _both(seen[name], now) if name in seen else now
    return seen


def _both(one: Seen, other: Seen) -> Seen:
    return Seen(
        largest=np.maximum(one.largest, other.largest),
        least=min(one.least, other.least),
        most=max(one.most, other.most),
    )
