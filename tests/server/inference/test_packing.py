"""Packed graphs: another form of the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from shoal_server.inference import packing
from shoal_server.inference.onnx_model import OnnxModel
from shoal_server.inference.packed import GRAPH
from shoal_server.inference.packing import save_packed, without_padding
from tests.server.inference.transformer import VOCABULARY, transformer
from tests.tiny_model import MAX_TOKENS, WORDS, make_tiny_model

REAL = Path(__file__).parents[3] / "models" / "all-minilm-l6-v2" / "1" / "model.onnx"
SEQUENCES, POOLED = [[4], [5, 6, 7], [8, 9]], [False, True, False]


def vectors(model: OnnxModel, *, wide: bool = False) -> npt.NDArray[np.float32]:
    return np.stack([np.asarray(row) for row in model.run(SEQUENCES, POOLED, wide=wide).rows])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "packed"
    folder.mkdir()
    return folder / GRAPH


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A transformer, its larger weights in a file beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(
        transformer(),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=512,
    )
    return folder / "model.onnx"


def test_the_packed_form_gives_the_same_bits(tmp_path: Path, target: Path) -> None:
    """Narrow and wide, normalised or not."""
    tiny = make_tiny_model(tmp_path / "models")
    source = tiny.folder / "model.onnx"
    save_packed(source, target, vocabulary_size=len(WORDS), max_tokens=MAX_TOKENS)
    model = OnnxModel.open(source, threads=1, pad_id=0)
    plain = vectors(model)
    model.adopt(target, threads=1, wide_threads=2)
    assert model.wide_speedup >= 1
    assert vectors(model).tobytes() == plain.tobytes()
    assert vectors(model, wide=True).tobytes() == plain.tobytes()


def test_the_packed_form_is_free_of_padding(source: Path, target: Path) -> None:
    """The same bits for fewer tokens."""
    save_packed(source, target, vocabulary_size=VOCABULARY, max_tokens=64)
    model = OnnxModel.open(source, threads=1, pad_id=0)
    plain = vectors(model)
    assert model.run(SEQUENCES, POOLED).computed_tokens == 9
    model.adopt(target, threads=1, wide_threads=1)
    assert vectors(model).tobytes() == plain.tobytes()
    assert model.run(SEQUENCES, POOLED).computed_tokens == 6
    assert model.run([[], []], [False, False]).computed_tokens == 2
    assert model.padding_free


def test_a_graph_that_would_give_other_bits_is_packed_as_it_is(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speed never costs a bit."""
    monkeypatch.setattr(packing, "same_vectors", lambda *_: False)
    assert without_padding(source, vocabulary_size=VOCABULARY, max_tokens=64) is None
    save_packed(source, target, vocabulary_size=VOCABULARY, max_tokens=64)
    model = OnnxModel.open(source, threads=1, pad_id=0)
    plain = vectors(model)
    model.adopt(target, threads=1, wide_threads=1)
    assert vectors(model).tobytes() == plain.tobytes()
    assert not model.padding_free


def test_a_graph_that_can_not_be_changed_is_packed_as_it_is(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong on the way, the plain graph serves."""

    def fail(_: onnx.ModelProto) -> bool:
        raise KeyError("a graph as never seen before")

    monkeypatch.setattr(packing, "fold_padding", fail)
    save_packed(source, target, vocabulary_size=VOCABULARY, max_tokens=64)
    packed = OnnxModel.open(target, threads=1, pad_id=0, packed=True)
    plain = OnnxModel.open(source, threads=1, pad_id=0)
    assert vectors(packed).tobytes() == vectors(plain).tobytes()


def test_the_default_model_is_free_of_padding(target: Path) -> None:
    """all-MiniLM-L6-v2 gives the same bits without padding, up to the longest texts."""
    save_packed(REAL, target, vocabulary_size=30522, max_tokens=256)
    plain = OnnxModel.open(REAL, threads=1, pad_id=0)
    packed = OnnxModel.open(target, threads=1, pad_id=0, packed=True)
    assert packed.padding_free
    draw = np.random.default_rng(3)
    for lengths in ((256,), (256, 3), (2, 5, 8, 11, 100, 30, 7, 7, 1)):
        batch = [draw.integers(0, 30522, length).tolist() for length in lengths]
        expected, rows = (model.run(batch, [False] * len(batch)).rows for model in (plain, packed))
        np.testing.assert_array_equal(np.array(expected), np.array(rows))
