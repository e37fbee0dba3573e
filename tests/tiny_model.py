"""A prepared model of a few kilobytes whose vectors can be computed by hand.

It maps words to rows of a table and takes their mean. Two of its words are for
tests of faults: `nan` has a row that is not finite, and each `slow` in a text makes
the run that holds it take longer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from shoal_server.core import Pooling
from shoal_server.registry.manifest import (
    GRAPH_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    VARIANT_FILE,
    VARIANTS_FOLDER,
    VERSION_FILE,
    Closeness,
    ModelManifest,
    Precision,
    Serving,
    Source,
    VariantManifest,
    VersionManifest,
)

Float32 = npt.NDArray[np.float32]

DIMENSIONS = 8
MAX_TOKENS = 16
PROMPTS = {"query": "red "}
WORDS = ("[PAD]", "[UNK]", "nan", "slow", "red", "orange", "yellow", "green", "blue", "violet")
_NAN, _SLOW = WORDS.index("nan"), WORDS.index("slow")
# A product of two such squares takes about 0.3 ms of one core; a `slow` is so many.
_SLOW_SIDE = 256
_SLOW_PRODUCTS = 100


@dataclass(frozen=True, slots=True)
class TinyModel:
    """What was prepared.

    Attributes:
        folder: Of the version's files.
        table: float32[V, D], the vector of each word.
        normalized: Whether the model's own vectors have unit length.
    """

    name: str
    folder: Path
    table: Float32
    normalized: bool

    @property
    def root(self) -> Path:
        """The model repository."""
        return self.folder.parents[1]

    def pooled(self, text: str) -> Float32:
        """The mean of the words' vectors, float32[D]."""
        ids = [WORDS.index(word) if word in WORDS else 1 for word in text.split()][:MAX_TOKENS]
        mean: Float32 = self.table[ids].mean(axis=0, dtype=np.float32)
        return mean

    def vector(self, text: str) -> Float32:
        """The vector as the model's authors define it, float32[D]."""
        pooled = self.pooled(text)
        scaled: Float32 = pooled / np.linalg.norm(pooled)
        return scaled if self.normalized else pooled


def make_tiny_model(
    root: Path,
    name: str = "tiny",
    *,
    version: str = "1",
    seed: int = 0,
    normalized: bool = True,
    serving: Mapping[str, object] | None = None,
    vocabulary_size: int = len(WORDS),
    ballast_bytes: int = 0,
    replaced: Mapping[str, bytes] | None = None,
    batch_invariant: bool = True,
) -> TinyModel:
    """Prepare a tiny model below the model repository `root`.

    Args:
        root: The repository.
        name: Of the model.
        version: Of its files.
        seed: Models of different seeds give different vectors.
        normalized: Whether its vectors have unit length.
        serving: The table `[serving]` of its `model.toml`.
        vocabulary_size: What its manifest claims; an id that is not among WORDS makes
            the run fail.
        ballast_bytes: Size of a file of holes beside the others, so that the model
            looks large and is not.
        replaced: Contents of files instead of the right ones; the manifest vouches for
            them.
        batch_invariant: What its manifest claims.
    """
    folder = root / name / version
    folder.mkdir(parents=True)
    table = _table(seed)
    onnx.save(_graph(table, normalized), folder / GRAPH_FILE)
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / TOKENIZER_FILE))
    for file_name, data in (replaced or {}).items():
        (folder / file_name).write_bytes(data)
    if ballast_bytes:
        with (folder / "ballast.bin").open("wb") as file:
            file.truncate(ballast_bytes)
    manifest = VersionManifest(
        dimensions=DIMENSIONS,
        max_tokens=MAX_TOKENS,
        vocabulary_size=vocabulary_size,
        pooling=Pooling.MEAN,
        normalized=normalized,
        prompts=PROMPTS,
        batch_invariant=batch_invariant,
        created_at="2026-01-01T00:00:00Z",
        source=Source(kind="local", location="tests", exported=True),
        files={
            file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
            for file in (GRAPH_FILE, TOKENIZER_FILE)
        },
    )
    (folder / VERSION_FILE).write_text(manifest.to_toml())
    settings = ModelManifest(serving=Serving.model_validate(serving or {}))
    (root / name / MODEL_FILE).write_text(settings.to_toml())
    return TinyModel(name, folder, table, normalized)


def add_tiny_variant(
    tiny: TinyModel,
    precision: Precision = "int8",
    *,
    seed: int = 1,
    batch_invariant: bool = True,
    normalized: bool = True,
) -> TinyModel:
    """Put a graph of another table beside a tiny model's own, as its variant.

    Returns:
        The model as the variant computes it: its vectors tell which graph was served.
    """
    folder = tiny.folder / VARIANTS_FOLDER / precision
    folder.mkdir(parents=True)
    table = _table(seed)
    onnx.save(_graph(table, normalized), folder / GRAPH_FILE)
    manifest = VariantManifest(
        precision=precision,
        batch_invariant=batch_invariant,
        created_at="2026-01-01T00:00:00Z",
        cosine=Closeness(texts=3, mean=0.99, least=0.98),
        files={GRAPH_FILE: hashlib.sha256((folder / GRAPH_FILE).read_bytes()).hexdigest()},
    )
    (folder / VARIANT_FILE).write_text(manifest.to_toml())
    return TinyModel(tiny.name, tiny.folder, table, normalized)


def _table(seed: int) -> Float32:
    table = np.random.default_rng(seed).normal(size=(len(WORDS), DIMENSIONS)).astype(np.float32)
    table[_NAN] = np.nan
    return table


def _graph(table: Float32, normalized: bool) -> onnx.ModelProto:
    weights = np.zeros(len(WORDS), dtype=np.int64)
    weights[_SLOW] = _SLOW_PRODUCTS
    constants: dict[str, npt.NDArray[Any]] = {
        "table": table,
        "weights": weights,
        "one": np.array([1], dtype=np.int64),
        "two": np.array([2], dtype=np.int64),
        "least": np.array(1e-9, dtype=np.float32),
        "always": np.array(True),
        "zeros": np.zeros((_SLOW_SIDE, _SLOW_SIDE), dtype=np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["words"]),
        node("Cast", ["attention_mask"], ["weight"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["weight", "two"], ["column"]),
        node("Mul", ["words", "column"], ["kept"]),
        node("ReduceSum", ["kept", "one"], ["total"], keepdims=0),
        node("ReduceSum", ["weight", "one"], ["tokens"], keepdims=1),
        node("Max", ["tokens", "least"], ["count"]),
        node("Div", ["total", "count"], ["mean"]),
        # As long as the slowest row of the batch asks for; adds nothing but zeros.
        node("Gather", ["weights", "input_ids"], ["delays"]),
        node("Mul", ["delays", "attention_mask"], ["kept_delays"]),
        node("ReduceSum", ["kept_delays", "one"], ["row_delays"], keepdims=0),
        node("ReduceMax", ["row_delays"], ["products"], keepdims=0),
        node("Loop", ["products", "always", "zeros"], ["product"], body=_multiply()),
        node("ReduceMean", ["product"], ["nothing"], keepdims=0),
        node("Add", ["mean", "nothing"], ["pooled" if normalized else "embedding"]),
    ]
    outputs = ["embedding"]
    if normalized:
        outputs.append("pooled")
        nodes += [
            node("ReduceL2", ["pooled"], ["norm"], axes=[1], keepdims=1),
            node("Max", ["norm", "least"], ["length"]),
            node("Div", ["pooled", "length"], ["embedding"]),
        ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [_tensor(each, TensorProto.INT64, ["B", "T"]) for each in ("input_ids", "attention_mask")],
        [_tensor(each, TensorProto.FLOAT, ["B", DIMENSIONS]) for each in outputs],
        [numpy_helper.from_array(value, each) for each, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _multiply() -> onnx.GraphProto:
    """The body of the loop: multiplies what it is given with `zeros`."""
    square = [_SLOW_SIDE, _SLOW_SIDE]
    return helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "zeros"], ["after"]),
            helper.make_node("Identity", ["go_on"], ["still"]),
        ],
        "multiply",
        [
            _tensor("round", TensorProto.INT64, []),
            _tensor("go_on", TensorProto.BOOL, []),
            _tensor("before", TensorProto.FLOAT, square),
        ],
        [_tensor("still", TensorProto.BOOL, []), _tensor("after", TensorProto.FLOAT, square)],
    )


def _tensor(name: str, kind: int, shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
