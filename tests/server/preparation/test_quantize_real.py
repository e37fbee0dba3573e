"""The int8 variant of the real model: close to fp32, and the same bits in any company."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from shoal_server.core import ModelKey
from shoal_server.inference.onnx_model import OnnxModel
from shoal_server.inference.packed import GRAPH
from shoal_server.inference.packing import save_packed
from shoal_server.inference.tokenizer import TextTokenizer
from shoal_server.preparation.graph import WEIGHTS_FILE
from shoal_server.preparation.quantize import Quantized, quantize
from shoal_server.registry.manifest import GRAPH_FILE, TOKENIZER_FILE
from shoal_server.registry.repository import ModelRepository
from tests.running import DEFAULT_MODEL, MODELS
from tests.server.api.texts import many_texts, reference

from .authors import Float32
from .fakes import RecordingProgress

MAX_TOKENS = 256
LONG = 64  # tokens: texts above share a few batches, so that the test stays quick


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelRepository, Quantized]:
    """A copy of the real model, with its variant.

    Its weights have two names, as those of copies that share their content do.
    """
    root = tmp_path_factory.mktemp("models")
    source, folder = MODELS / DEFAULT_MODEL / "1", root / DEFAULT_MODEL / "1"
    shutil.copytree(source, folder, ignore=lambda *_: ["variants"])
    os.link(folder / WEIGHTS_FILE, root / ".same")
    repository = ModelRepository(root)
    return repository, quantize(ModelKey(DEFAULT_MODEL, "1"), repository, RecordingProgress())


@pytest.fixture(scope="module")
def folder(made: tuple[ModelRepository, Quantized]) -> Path:
    return made[0].version_folder(DEFAULT_MODEL, "1")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.open(folder / TOKENIZER_FILE, MAX_TOKENS)


@pytest.fixture(scope="module")
def plain(folder: Path) -> OnnxModel:
    """As the server opens it the first time."""
    path = folder / "variants" / "int8" / GRAPH_FILE
    return OnnxModel.open(path, threads=1, pad_id=0)


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """As the server goes over to it: optimised, packed and saved."""
    path = folder / "variants" / "int8" / GRAPH_FILE
    target = tmp_path_factory.mktemp("packed") / GRAPH
    save_packed(path, target, vocabulary_size=30_522, max_tokens=MAX_TOKENS)
    model = OnnxModel.open(path, threads=1, pad_id=0)
    model.adopt(target, threads=1, wide_threads=2)
    return model


@pytest.fixture(scope="module")
def sequences(tokenizer: TextTokenizer) -> list[Sequence[int]]:
    """Token ids of many texts, of all lengths."""
    texts = [*many_texts(repeat=2), *reference()[0]]
    return [encoding.ids for encoding in tokenizer.encode(texts)]


@pytest.fixture(scope="module")
def alone(plain: OnnxModel, sequences: list[Sequence[int]]) -> list[bytes]:
    """The bits of each, run by itself without packing."""
    return [bits(plain, [each])[0] for each in sequences]


def bits(model: OnnxModel, batch: Sequence[Sequence[int]], *, wide: bool = False) -> list[bytes]:
    rows = model.run(batch, [False] * len(batch), wide=wide).rows
    return [np.asarray(row).tobytes() for row in rows]


def batches(sequences: list[Sequence[int]], seed: int) -> Iterator[list[int]]:
    """Indices in random batches of 1 to 12; the long ones with short ones among them."""
    choose = random.Random(seed)
    order = choose.sample(range(len(sequences)), len(sequences))
    short = [index for index in order if len(sequences[index]) <= LONG]
    long = [index for index in order if len(sequences[index]) > LONG]
    while long:
        yield [long.pop() for _ in range(min(6, len(long)))] + choose.sample(short, 2)
    while short:
        yield [short.pop() for _ in range(min(choose.randint(1, 12), len(short)))]


def test_there_are_enough_texts(sequences: list[Sequence[int]]) -> None:
    """More than a hundred, from the empty one to the longest."""
    assert len(sequences) > 150
    assert (min(map(len, sequences)), max(map(len, sequences))) == (2, MAX_TOKENS)


def test_a_text_has_the_same_bits_in_any_batch(
    plain: OnnxModel, sequences: list[Sequence[int]], alone: list[bytes]
) -> None:
    """Whatever its mates and its padding."""
    for batch in batches(sequences, seed=1):
        found = bits(plain, [sequences[index] for index in batch])
        assert found == [alone[index] for index in batch]


def test_packed_it_has_the_same_bits_in_any_batch(
    packed: OnnxModel, sequences: list[Sequence[int]], alone: list[bytes]
) -> None:
    """And the same as before it was packed, in narrow runs and in wide ones."""
    for number, batch in enumerate(batches(sequences, seed=2)):
        found = bits(packed, [sequences[index] for index in batch], wide=number % 2 == 0)
        assert found == [alone[index] for index in batch]


def test_packed_and_alone_it_has_the_same_bits(
    packed: OnnxModel, sequences: list[Sequence[int]], alone: list[bytes]
) -> None:
    """A run of one text takes other kernels than a batch does."""
    for index in range(0, len(sequences), 5):
        assert bits(packed, [sequences[index]], wide=index % 2 == 0) == [alone[index]]


def test_the_check_texts_are_close(made: tuple[ModelRepository, Quantized]) -> None:
    """As the manifest says: mean cosine at least 0.997, none below 0.985."""
    cosine = made[1].manifest.cosine
    assert cosine.mean >= 0.997
    assert cosine.least >= 0.985


def test_the_reference_texts_are_close(plain: OnnxModel, tokenizer: TextTokenizer) -> None:
    """To sentence-transformers, on texts that nothing was calibrated with."""
    texts, expected = reference()
    rows = [
        np.asarray(plain.run([encoding.ids], [False]).rows[0])
        for encoding in tokenizer.encode(texts)
    ]
    cosines = (np.stack(rows) * expected).sum(axis=1)
    assert cosines.mean() >= 0.997
    assert cosines.min() >= 0.985


def test_fused_it_means_the_same(folder: Path, plain: OnnxModel, tmp_path: Path) -> None:
    """ONNX Runtime's fusions do not take the rows' scales for one.

    They change what is summed in which order, which int8 may round the other way.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = folder / "variants" / "int8" / GRAPH_FILE
    unfused = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ids = np.array([[101, *range(2000, 2030), 102], [101, *range(9000, 9030), 102]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds["token_type_ids"] = np.zeros_like(ids)
    expected: Float32 = unfused.run(["embedding"], feeds)[0]
    rows = plain.run(ids.tolist(), [False, False]).rows
    assert ((np.stack([np.asarray(row) for row in rows]) * expected).sum(axis=1) > 0.999).all()


def test_it_is_free_of_padding(plain: OnnxModel, packed: OnnxModel) -> None:
    """Its products work on tokens from the beginning, not only once it is packed."""
    assert plain.padding_free
    assert packed.padding_free


def test_it_is_a_third_of_the_size(made: tuple[ModelRepository, Quantized]) -> None:
    """Products and the words' table are int8; the rest is small."""
    repository, key = made[0], made[1].key
    size_bytes = repository.variant_size_bytes(key.name, key.version, "int8")
    assert size_bytes < 0.3 * repository.size_bytes(key.name, key.version)
