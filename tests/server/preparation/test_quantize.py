"""`shoal models quantize`: a variant beside a version, whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import ModelFileCorrupt, ModelNotFound
from shoal_server.preparation import quantize as quantize_module
from shoal_server.preparation.errors import DiskFull, ReferenceMismatch, Unsupported
from shoal_server.preparation.pull import Order, pull
from shoal_server.preparation.quantize import Quantized, quantize
from shoal_server.registry.manifest import Precision
from shoal_server.registry.repository import ModelRepository
from tests.tiny_model import make_tiny_model

from .authors import write_authors_model
from .fakes import RecordingProgress, no_environment
from .graphs import dense_graph

KEY = ModelKey("dense", "1")


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    """Holds dense@1, which has one matrix product."""
    return prepared(tmp_path)


def prepared(tmp_path: Path, precision: str = "fp32") -> ModelRepository:
    graph = dense_graph(precision).SerializeToString()
    source = write_authors_model(tmp_path / "dense", files={"onnx/model.onnx": graph})
    repository = ModelRepository(tmp_path / "models")
    pull(Order(str(source)), repository, no_environment(tmp_path), RecordingProgress())
    return repository


def quantized(repository: ModelRepository, key: ModelKey = KEY, **options: Any) -> Quantized:
    return quantize(key, repository, RecordingProgress(), **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_variant_appears(repository: ModelRepository, precision: Precision) -> None:
    """It is listed, whole, close to the version, and of the same bits in any batch."""
    made = quantized(repository, precision=precision)
    assert repository.variants("dense", "1") == [precision]
    manifest = repository.verify_variant("dense", "1", precision)
    assert made == Quantized(KEY, manifest, was_there=False)
    assert manifest.cosine.texts == 26
    assert 0.999 < manifest.cosine.least <= manifest.cosine.mean <= 1
    assert manifest.batch_invariant


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_version_stays_as_it_is(repository: ModelRepository, precision: Precision) -> None:
    """Not a byte of its own files changes, nor their number."""
    folder = repository.version_folder("dense", "1")
    before = contents(folder)
    quantized(repository, precision=precision)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"variants"}


def test_quantizing_twice_makes_one(repository: ModelRepository) -> None:
    """A variant that is there is verified, not made again."""
    first = quantized(repository)
    assert quantized(repository) == Quantized(KEY, first.manifest, was_there=True)


def test_variants_stand_side_by_side(repository: ModelRepository) -> None:
    """One does not take the other's place."""
    int8 = quantized(repository, precision="int8")
    quantized(repository, precision="fp16")
    assert repository.variants("dense", "1") == ["fp16", "int8"]
    assert repository.verify_variant("dense", "1", "int8") == int8.manifest


def test_damage_is_told_and_made_good(repository: ModelRepository) -> None:
    """A damaged variant is named; made again, it takes the place of the old."""
    quantized(repository)
    graph = repository.version_folder("dense", "1") / "variants" / "int8" / "model.onnx"
    graph.write_bytes(b"other")
    with pytest.raises(ModelFileCorrupt, match=r"variants/int8/model\.onnx"):
        quantized(repository)
    assert not quantized(repository, again=True).was_there
    repository.verify_variant("dense", "1", "int8")


def test_a_failure_leaves_nothing(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up while the graph is written: no variant, no scratch."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(repository.root)
    monkeypatch.setattr(quantize_module, "save_graph", full)
    with pytest.raises(DiskFull):
        quantized(repository)
    assert contents(repository.root) == before
    assert repository.variants("dense", "1") == []


def test_a_graph_that_is_another_model_is_refused(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where int8 does not suit a model it is told so, and gets no variant."""
    monkeypatch.setattr(quantize_module, "_LEAST_COSINE", {"int8": 1.1})
    with pytest.raises(ReferenceMismatch, match="int8 does not suit"):
        quantized(repository)
    assert repository.variants("dense", "1") == []


def test_what_is_not_fp32_is_refused(repository: ModelRepository) -> None:
    """A graph that came in another precision is not quantised from that."""
    manifest = repository.version_manifest("dense", "1").model_copy(update={"precision": "fp16"})
    path = repository.version_folder("dense", "1") / "version.toml"
    path.write_text(manifest.to_toml())
    with pytest.raises(Unsupported, match="dense@1 is in fp16; int8 is made from fp32"):
        quantized(repository)


def test_a_damaged_version_is_not_quantized(repository: ModelRepository) -> None:
    """The variant would be vouched for though its source was not."""
    (repository.version_folder("dense", "1") / "model.onnx").write_bytes(b"other")
    with pytest.raises(ModelFileCorrupt, match=r"model\.onnx"):
        quantized(repository)


def test_an_unknown_version_is_not_found(repository: ModelRepository) -> None:
    """Named as anywhere else."""
    with pytest.raises(ModelNotFound):
        quantized(repository, ModelKey("dense", "2"))


def test_a_graph_without_products_is_refused(tmp_path: Path) -> None:
    """There would be nothing to gain."""
    tiny = make_tiny_model(tmp_path)
    with pytest.raises(Unsupported, match="no matrix product"):
        quantized(ModelRepository(tiny.root), ModelKey("tiny", "1"))


@pytest.mark.parametrize(("precision", "expected"), [("fp32", True), ("dynamic", False)])
def test_graphs_that_see_their_batch_are_marked(
    tmp_path: Path, precision: str, expected: bool
) -> None:
    """One scale for the whole batch is found out when such a graph is prepared."""
    repository = prepared(tmp_path, precision)
    assert repository.version_manifest("dense", "1").batch_invariant is expected
