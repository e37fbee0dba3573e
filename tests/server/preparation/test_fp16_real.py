"""The fp16 variant of the real model, as far as a CPU can tell.

ONNX Runtime has no kernels of its own for most fp16 nodes on a CPU: it computes them in
float32 between casts. So weights are rounded to fp16 here, and most of what passes from
node to node; sums inside of a node are not. `scripts/check_cuda.py` has the rest.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from shoal_server.core import ModelKey
from shoal_server.inference.bound_model import BoundModel
from shoal_server.inference.cuda import CudaOptions
from shoal_server.inference.tokenizer import TextTokenizer
from shoal_server.preparation import fp16
from shoal_server.preparation.check import embed_texts
from shoal_server.preparation.fp16 import fused_nodes, half_graph
from shoal_server.preparation.graph import WEIGHTS_FILE, save_graph
from shoal_server.preparation.quantize import Quantized, quantize
from shoal_server.preparation.running import TextRunner
from shoal_server.registry.manifest import GRAPH_FILE, TOKENIZER_FILE
from shoal_server.registry.reference import cosine
from shoal_server.registry.repository import ModelRepository
from tests.running import DEFAULT_MODEL, MODELS
from tests.server.api.texts import many_texts, reference

from .authors import Float32
from .fakes import RecordingProgress

CUDA = CudaOptions(None, "kSameAsRequested", "HEURISTIC", tf32=False)
MAX_TOKENS = 256
LAYERS = 6
SOURCE = MODELS / DEFAULT_MODEL / "1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelRepository, Quantized]:
    """A copy of the real model, with its variant."""
    root = tmp_path_factory.mktemp("models")
    folder = root / DEFAULT_MODEL / "1"
    shutil.copytree(SOURCE, folder, ignore=lambda *_: ["variants"])
    os.link(folder / WEIGHTS_FILE, root / ".same")
    repository, key = ModelRepository(root), ModelKey(DEFAULT_MODEL, "1")
    return repository, quantize(key, repository, RecordingProgress(), precision="fp16")


@pytest.fixture(scope="module")
def graph(made: tuple[ModelRepository, Quantized]) -> Path:
    return made[0].version_folder(DEFAULT_MODEL, "1") / "variants" / "fp16" / GRAPH_FILE


@pytest.fixture(scope="module")
def model(graph: Path) -> BoundModel:
    """As the server runs it on a GPU, but for the GPU."""
    return BoundModel.open(
        graph, device="cpu", cuda=CUDA, pad_id=0, max_tokens=MAX_TOKENS, dimensions=384
    )


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.open(SOURCE / TOKENIZER_FILE, MAX_TOKENS)


def vectors(model: BoundModel, sequences: Sequence[Sequence[int]]) -> Float32:
    rows = model.run(sequences, [False] * len(sequences)).rows
    return np.stack([np.asarray(row) for row in rows])


def test_all_of_it_is_fused(graph: Path) -> None:
    """Every layer's attention, GELU and both of its normalisations, and the embeddings."""
    found = fused_nodes(onnx.load(str(graph), load_external_data=False))
    assert found == {
        "EmbedLayerNormalization": 1,
        "Attention": LAYERS,
        "BiasGelu": LAYERS,
        "SkipLayerNormalization": 2 * LAYERS,
    }


def test_fusing_changes_no_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without halving, the vectors are the version's, but for the order of sums."""
    monkeypatch.setattr(fp16, "_halve", lambda encoder: encoder)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    model = onnx.load(str(SOURCE / GRAPH_FILE), load_external_data=False)
    fused = half_graph(model, SOURCE, scratch)
    save_graph(fused, tmp_path / GRAPH_FILE)
    found, expected = (
        embed_texts(TextRunner(folder / GRAPH_FILE, SOURCE / TOKENIZER_FILE, MAX_TOKENS))
        for folder in (tmp_path, SOURCE)
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_it_is_half_the_size(made: tuple[ModelRepository, Quantized]) -> None:
    """Nothing large was left in float32."""
    repository, key = made[0], made[1].key
    size_bytes = repository.variant_size_bytes(key.name, key.version, "fp16")
    assert size_bytes < 0.51 * repository.size_bytes(key.name, key.version)


def test_the_check_texts_are_close(made: tuple[ModelRepository, Quantized]) -> None:
    """As the manifest says; and no vector sees its batch."""
    manifest = made[1].manifest
    assert manifest.cosine.least >= 0.9995
    assert manifest.batch_invariant


def test_the_reference_texts_are_close(model: BoundModel, tokenizer: TextTokenizer) -> None:
    """To sentence-transformers, in batches that are padded to buckets."""
    texts, expected = reference()
    sequences = [encoding.ids for encoding in tokenizer.encode(texts)]
    found = np.concatenate([vectors(model, sequences[at : at + 8]) for at in range(0, 88, 8)])
    assert cosine(found, expected).min() >= 0.9995


def test_a_text_has_the_same_vector_in_any_batch(
    model: BoundModel, tokenizer: TextTokenizer
) -> None:
    """Whatever its mates, its padding and the rows of padding beside it."""
    sequences = [encoding.ids for encoding in tokenizer.encode(many_texts(repeat=1))][:40]
    alone = np.concatenate([vectors(model, [each]) for each in sequences])
    order = random.Random(1).sample(range(len(sequences)), len(sequences))
    for at in range(0, len(order), 7):
        rows = order[at : at + 7]
        together = vectors(model, [sequences[row] for row in rows])
        assert cosine(together, alone[rows]).min() >= 0.99999


def test_padding_alone_gives_zeros(graph: Path) -> None:
    """And not NaN: the ends of the graph are the version's own."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    ids = np.array([[0] * 8, [101, *range(2000, 2006), 102]])
    mask = np.array([[0] * 8, [1] * 8])
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    empty, text = session.run(["embedding"], feeds)[0]
    assert (empty == 0).all()
    assert abs(np.linalg.norm(text) - 1) < 1e-5
