"""Models as their authors publish them, of a few kilobytes.

The graph looks token vectors up in a table, so what a pooling must give can be
computed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

Float32 = npt.NDArray[np.float32]

DIMENSIONS = 8
WORDS = ("[PAD]", "[UNK]", "red", "green", "blue", "Hello,", "world!")
TABLE: Float32 = np.random.default_rng(7).normal(size=(len(WORDS), DIMENSIONS)).astype(np.float32)

_MODULES = ("Transformer", "Pooling", "Normalize")


def write_authors_model(
    folder: Path,
    *,
    onnx_file: str | None = "onnx/model.onnx",
    pooling: str | None = "mean",
    normalized: bool = True,
    table: Float32 = TABLE,
    files: Mapping[str, object] | None = None,
) -> Path:
    """Write a model in the layout of sentence-transformers.

    Args:
        folder: Made when it is missing.
        onnx_file: Where its graph is; None for a model that must be exported.
        pooling: As sentence-transformers names it; None for plain transformers.
        normalized: Whether the modules end with Normalize.
        table: float32[V, D], the vectors of WORDS.
        files: Further files, or others in place of these: JSON, text or bytes; None
            leaves the file out.

    Returns:
        The folder.
    """
    modules = _MODULES[: 2 + normalized]
    written: dict[str, object] = {
        "config.json": {"vocab_size": len(WORDS), "max_position_embeddings": 64},
        "tokenizer.json": _tokenizer().to_str(),
        "README.md": "---\nlicense: mit\n---\n# A tiny model\n",
        "model.safetensors": b"weights",
    }
    if onnx_file is not None:
        written[onnx_file] = lookup_graph(table).SerializeToString()
    if pooling is not None:
        written["modules.json"] = [
            {"type": f"sentence_transformers.models.{kind}", "path": f"{index}_{kind}" * index}
            for index, kind in enumerate(modules)
        ]
        written["1_Pooling/config.json"] = {"pooling_mode": pooling}
        written["sentence_bert_config.json"] = {"max_seq_length": 16}
    for name, content in {**written, **(files or {})}.items():
        if content is not None:
            _write(folder / name, content)
    return folder


def lookup_graph(
    table: Float32 = TABLE,
    *,
    opset: int = 17,
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    input_type: int = TensorProto.INT64,
    output: str = "last_hidden_state",
    hidden_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A graph from token ids to their rows of `table`: [B, T, D]."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["rows"], [output], to=hidden_type),
    ]
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info(name, input_type, ["b", "t"]) for name in inputs],
        [helper.make_tensor_value_info(output, hidden_type, ["b", "t", table.shape[1]])],
        [numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _tokenizer() -> Tokenizer:
    words = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # A fixed padding and truncation, as files in the wild carry them.
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(4)
    return tokenizer


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
