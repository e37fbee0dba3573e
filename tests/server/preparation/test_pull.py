"""Pulling: from a source to a version in the repository, whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal_server.core import ModelKey, Pooling
from shoal_server.errors import InvalidInput, ModelFileCorrupt
from shoal_server.preparation import prepare as prepare_module
from shoal_server.preparation.check import embed_texts, read_tokenizer
from shoal_server.preparation.environment import ExportEnvironment
from shoal_server.preparation.errors import (
    AlreadyPrepared,
    DiskFull,
    ExportFailed,
    PoolingUnknown,
    ReferenceMismatch,
    SourceNotFound,
    Unsupported,
)
from shoal_server.preparation.graph import save_graph
from shoal_server.preparation.publish import hash_files
from shoal_server.preparation.pull import Order, Pulled, pull
from shoal_server.preparation.running import TextRunner
from shoal_server.registry.manifest import ModelManifest
from shoal_server.registry.reference import read_reference
from shoal_server.registry.repository import ModelRepository

from .authors import DIMENSIONS, TABLE, WORDS, write_authors_model
from .fakes import RecordingProgress, fake_environment, no_environment


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "models")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_authors_model(tmp_path / "tiny")


def pulled(
    repository: ModelRepository,
    source: Path | str,
    environment: ExportEnvironment | None = None,
    **order: Any,
) -> Pulled:
    environment = environment or no_environment(repository.root.parent)
    what = Order(str(source), **order)
    return pull(what, repository, environment, RecordingProgress())


def test_prepares_a_folder(repository: ModelRepository, source: Path) -> None:
    """A folder with ONNX becomes a version whose manifest says what the authors said."""
    result = pulled(repository, source)
    manifest = repository.verify("tiny", "1")
    assert result == Pulled(ModelKey("tiny", "1"), manifest, was_there=False)
    assert (manifest.dimensions, manifest.max_tokens, manifest.vocabulary_size) == (
        DIMENSIONS,
        16,
        len(WORDS),
    )
    assert (manifest.pooling, manifest.normalized, manifest.license) == ("mean", True, "mit")
    assert (manifest.source.kind, manifest.source.location, manifest.source.exported) == (
        "local",
        "tiny",
        False,
    )
    assert manifest.files.keys() == {"model.onnx", "tokenizer.json", "reference.npz"}


def test_prepared_vectors_are_the_models(repository: ModelRepository, source: Path) -> None:
    """The published files give the vectors that the table gives by hand."""
    pulled(repository, source)
    folder = repository.version_folder("tiny", "1")
    vectors = embed_texts(TextRunner(folder / "model.onnx", folder / "tokenizer.json", 16))
    expected = TABLE[[WORDS.index("Hello,"), WORDS.index("world!")]].mean(axis=0)
    np.testing.assert_allclose(vectors[3], expected / np.linalg.norm(expected), rtol=1e-5)


def test_describes_a_new_model(repository: ModelRepository, source: Path) -> None:
    """A new model gets a model.toml, which is committed: without a path of this machine."""
    pulled(repository, source)
    assert repository.model_manifest("tiny") == ModelManifest(license="mit", source="")


def test_anybody_may_read_what_is_published(
    repository: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are 0644 and folders 0755, whoever made them: a server may run as another user."""

    def save_private(graph: Any, path: Path) -> None:
        save_graph(graph, path)
        path.chmod(0o600)

    monkeypatch.setattr(prepare_module, "save_graph", save_private)
    mask = os.umask(0o077)
    try:
        pulled(repository, write_authors_model(tmp_path / "tiny"))
    finally:
        os.umask(mask)
    folder = repository.model_folder("tiny")
    modes = {path: oct(path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))}
    assert modes == {path: "0o755" if path.is_dir() else "0o644" for path in modes}


def test_folder_without_a_model(repository: ModelRepository, tmp_path: Path) -> None:
    """A folder that holds no model is told before anything is asked about one."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFound, match="empty holds no model"):
        pulled(repository, tmp_path / "empty")


def test_folder_of_a_prepared_version(repository: ModelRepository, source: Path) -> None:
    """What was prepared is not prepared once more: the error says where to put it."""
    pulled(repository, source)
    with pytest.raises(SourceNotFound, match="prepared version already"):
        pulled(repository, repository.version_folder("tiny", "1"), name="other")


def test_leaves_the_operators_manifest(repository: ModelRepository, source: Path) -> None:
    """A model.toml that is there stays as it is."""
    mine = repository.root / "tiny" / "model.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text('description = "mine"\n')
    pulled(repository, source)
    assert mine.read_text() == 'description = "mine"\n'


def test_repeated_pull_verifies(repository: ModelRepository, source: Path) -> None:
    """A version that is there is verified and not made again."""
    first = pulled(repository, source)
    again = pulled(repository, source)
    assert again == Pulled(first.key, first.manifest, was_there=True)


def test_a_version_without_kept_vectors_gets_them(
    repository: ModelRepository, source: Path
) -> None:
    """One that was prepared before any were kept: what its graph gives, and nothing else."""
    first = pulled(repository, source)
    folder = repository.version_folder("tiny", "1")
    kept = (folder / "reference.npz").read_bytes()
    (folder / "reference.npz").unlink()
    files = {name: sha for name, sha in first.manifest.files.items() if name != "reference.npz"}
    old = first.manifest.model_copy(update={"files": files})
    (folder / "version.toml").write_text(old.to_toml())
    again = pulled(repository, source)
    assert again.was_there
    assert repository.verify("tiny", "1") == again.manifest
    assert again.manifest.model_copy(update={"files": files}) == old
    (folder / "before.npz").write_bytes(kept)
    before, after = (read_reference(folder / f"{each}.npz") for each in ("before", "reference"))
    assert before.texts == after.texts
    np.testing.assert_array_equal(before.vectors, after.vectors)


def test_repeated_pull_finds_damage(repository: ModelRepository, source: Path) -> None:
    """A version that is there and damaged is told, with the file's name."""
    pulled(repository, source)
    (repository.version_folder("tiny", "1") / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileCorrupt, match=r"tokenizer\.json"):
        pulled(repository, source)


def test_version_of_another_source_is_not_the_same(
    repository: ModelRepository, source: Path, tmp_path: Path
) -> None:
    """A version made from something else is not passed off as what was asked for."""
    pulled(repository, source)
    other = write_authors_model(tmp_path / "other")
    with pytest.raises(AlreadyPrepared, match="from local tiny"):
        pulled(repository, other, name="tiny")


@pytest.mark.parametrize(
    ("order", "field"), [({"name": "../x"}, "name"), ({"version": "a/b"}, "version")]
)
def test_names_can_not_leave_the_repository(
    repository: ModelRepository, source: Path, order: dict[str, Any], field: str
) -> None:
    """A name or version that is a path is refused before anything is made."""
    with pytest.raises(InvalidInput, match=field):
        pulled(repository, source, **order)
    assert not repository.root.exists()


def test_asks_for_pooling(repository: ModelRepository, tmp_path: Path) -> None:
    """Where the files do not say, the error asks, and naming the choices."""
    plain = write_authors_model(tmp_path / "plain", pooling=None)
    with pytest.raises(PoolingUnknown, match="--pooling mean, cls or last_token"):
        pulled(repository, plain)


def test_takes_the_given_pooling(repository: ModelRepository, tmp_path: Path) -> None:
    """The user's answer is used, and nothing is normalized that the authors did not."""
    plain = write_authors_model(tmp_path / "plain", pooling=None)
    manifest = pulled(repository, plain, pooling=Pooling.LAST_TOKEN).manifest
    assert (manifest.pooling, manifest.normalized) == (Pooling.LAST_TOKEN, False)


def test_given_pooling_does_not_override(repository: ModelRepository, source: Path) -> None:
    """The authors' pooling can not be replaced by another."""
    with pytest.raises(Unsupported, match="mean, not cls"):
        pulled(repository, source, pooling=Pooling.CLS)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"config.json": {"vocab_size": 3}}, "ids up to 6, the model takes them below 3"),
        ({"sentence_bert_config.json": None, "config.json": {}}, "how many tokens"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json can not be read"),
        ({"onnx/model.onnx": b"nonsense"}, r"model\.onnx can not be read"),
    ],
)
def test_refuses_what_does_not_fit(
    repository: ModelRepository, tmp_path: Path, files: dict[str, object], told: str
) -> None:
    """Files that contradict each other or are broken are told, and nothing is published."""
    with pytest.raises(Unsupported, match=told):
        pulled(repository, write_authors_model(tmp_path / "bad", files=files))
    assert list(repository.root.iterdir()) == []


def test_refuses_vectors_that_are_not_finite(repository: ModelRepository, tmp_path: Path) -> None:
    """A model that gives NaN for an ordinary text is not published."""
    broken = write_authors_model(tmp_path / "nan", table=np.full_like(TABLE, np.nan))
    with pytest.raises(Unsupported, match="finite"):
        pulled(repository, broken)


def test_lowercase_is_the_tokenizers(repository: ModelRepository, tmp_path: Path) -> None:
    """What sentence-transformers lowercases is lowercased by the prepared tokenizer."""
    files = {"sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": True}}
    pulled(repository, write_authors_model(tmp_path / "lower", files=files))
    tokenizer = read_tokenizer(repository.version_folder("lower", "1") / "tokenizer.json")
    tokenizer.no_padding()
    assert tokenizer.encode("RED Green").ids == [WORDS.index("red"), WORDS.index("green")]


def test_exports_what_has_no_onnx(repository: ModelRepository, tmp_path: Path) -> None:
    """Without an ONNX file the graph is exported, and compared with the reference."""
    weights = write_authors_model(tmp_path / "weights", onnx_file=None)
    manifest = pulled(repository, weights, fake_environment(tmp_path)).manifest
    assert manifest.source.exported
    assert manifest.reference is not None
    assert manifest.reference.runtime == "a reference 1.0"
    assert manifest.reference.min_cosine > 0.999999


def test_compares_where_the_reference_is_at_hand(
    repository: ModelRepository, source: Path, tmp_path: Path
) -> None:
    """The authors' own ONNX file is compared as well when the runtime is there."""
    manifest = pulled(repository, source, fake_environment(tmp_path)).manifest
    assert not manifest.source.exported
    assert manifest.reference is not None


def test_goes_without_a_reference_that_can_not_run(
    repository: ModelRepository, source: Path, tmp_path: Path
) -> None:
    """A runtime that is at hand but can not run the model is no reason to refuse it."""
    manifest = pulled(repository, source, fake_environment(tmp_path, "fail")).manifest
    assert manifest.reference is None


def test_refuses_what_differs_from_the_reference(
    repository: ModelRepository, tmp_path: Path
) -> None:
    """A graph that gives other vectors than the model is not published."""
    weights = write_authors_model(tmp_path / "weights", onnx_file=None)
    with pytest.raises(ReferenceMismatch, match=r"the least allowed is 0\.999"):
        pulled(repository, weights, fake_environment(tmp_path, "wrong"))
    assert repository.names() == []


def test_export_failure_is_told(repository: ModelRepository, tmp_path: Path) -> None:
    """What the exporter said last is in the error."""
    weights = write_authors_model(tmp_path / "weights", onnx_file=None)
    with pytest.raises(ExportFailed, match="can not be exported"):
        pulled(repository, weights, fake_environment(tmp_path, "fail"))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"model.safetensors": None, "pytorch_model.bin": b"pickle"}, "pickles .* never loaded"),
        ({"config.json": {"auto_map": {"AutoModel": "a.B"}}}, "never run"),
    ],
)
def test_runs_no_code_of_the_models(
    repository: ModelRepository, tmp_path: Path, files: dict[str, object], told: str
) -> None:
    """Pickles and remote code are refused before an environment is made for them."""
    model = write_authors_model(tmp_path / "code", onnx_file=None, files=files)
    with pytest.raises(Unsupported, match=told):
        pulled(repository, model)


def test_pulls_from_a_package(repository: ModelRepository, tmp_path: Path) -> None:
    """A package's model is exported, and its version is the revision."""
    result = pulled(repository, "pypi:some-model==1.2", fake_environment(tmp_path))
    source = result.manifest.source
    assert result.key == ModelKey("some-model", "1")
    assert (source.kind, source.location, source.revision) == ("pypi", "some-model", "1.2")
    assert repository.model_manifest("some-model").source == "pypi:some-model==1.2"


def disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.onnx.data")


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("failure", "error"), [(disk_full, DiskFull), (interrupted, KeyboardInterrupt)]
)
def test_leaves_nothing_behind(
    repository: ModelRepository,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Callable[..., None],
    error: type[BaseException],
) -> None:
    """A full disk or Ctrl-C in the middle leaves nothing, and the next pull succeeds."""
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "save_graph", failure)
        with pytest.raises(error):
            pulled(repository, source)
    assert list(repository.root.iterdir()) == []
    assert not pulled(repository, source).was_there


def test_disk_full_in_the_exporter_is_told(repository: ModelRepository, tmp_path: Path) -> None:
    """A child process that finds the disk full is told like our own finding."""
    weights = write_authors_model(tmp_path / "weights", onnx_file=None)
    with pytest.raises(DiskFull):
        pulled(repository, weights, fake_environment(tmp_path, "full"))


def test_one_of_two_pulls_wins(
    repository: ModelRepository, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that another pull published meanwhile stays, and is reported as there."""

    def overtaken(folder: Path) -> dict[str, str]:
        monkeypatch.setattr(prepare_module, "hash_files", hash_files)
        pulled(repository, source)
        return hash_files(folder)

    monkeypatch.setattr(prepare_module, "hash_files", overtaken)
    assert pulled(repository, source).was_there
    assert repository.versions("tiny") == ["1"]
