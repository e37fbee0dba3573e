"""The model repository on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import InvalidInput, ModelFileCorrupt, ModelLoadFailed, ModelNotFound
from shoal_server.registry.manifest import ModelManifest
from shoal_server.registry.repository import ModelRepository, default_model_dir
from tests.tiny_model import make_tiny_model


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    """Holds tiny@1 and, elsewhere on the disk, a folder `outside` with outer@1."""
    make_tiny_model(tmp_path / "models")
    make_tiny_model(tmp_path / "outside", "outer")
    return ModelRepository(tmp_path / "models")


def test_an_absent_repository_is_empty(tmp_path: Path) -> None:
    """A root that does not exist holds no models; reading does not make it."""
    repository = ModelRepository(tmp_path / "none")
    assert (repository.names(), repository.versions("tiny")) == ([], [])
    assert not repository.root.exists()


def test_names(repository: ModelRepository) -> None:
    """A model is a folder with a manifest or a version; nothing else is."""
    make_tiny_model(repository.root, "alpha")
    (repository.root / "alpha" / "model.toml").unlink()
    (repository.root / "described").mkdir()
    (repository.root / "described" / "model.toml").touch()
    (repository.root / "empty" / "1").mkdir(parents=True)
    make_tiny_model(repository.root, ".staging-x")
    (repository.root / "file").touch()
    assert repository.names() == ["alpha", "described", "tiny"]


def test_versions_sort_as_people_count(repository: ModelRepository) -> None:
    """Numbers within a version compare as numbers."""
    for version in ("10", "2", "1.10", "1.9", "beta"):
        make_tiny_model(repository.root, version=version)
    assert repository.versions("tiny") == ["1", "1.9", "1.10", "2", "10", "beta"]


def test_a_version_has_a_manifest(repository: ModelRepository) -> None:
    """A folder without version.toml, or with a leading dot, is no version."""
    (repository.root / "tiny" / "2").mkdir()
    make_tiny_model(repository.root, version=".3")
    assert repository.versions("tiny") == ["1"]


def test_default_version_is_the_latest(repository: ModelRepository) -> None:
    """The bare name means the last version, unless model.toml names another."""
    make_tiny_model(repository.root, version="2")
    assert repository.resolve(ModelRef("tiny")) == ModelKey("tiny", "2")
    (repository.root / "tiny" / "model.toml").write_text('default_version = "1"\n')
    assert repository.resolve(ModelRef("tiny")) == ModelKey("tiny", "1")
    assert repository.resolve(ModelRef("tiny", "2")) == ModelKey("tiny", "2")


def test_a_copied_folder_is_another_model(repository: ModelRepository) -> None:
    """The folder's name is the model's name."""
    (repository.root / "tiny").rename(repository.root / "other")
    assert repository.verify("other", "1").dimensions == 8
    assert repository.names() == ["other"]


@pytest.mark.parametrize("ref", [ModelRef("none"), ModelRef("tiny", "9"), ModelRef("described")])
def test_what_is_not_there_is_not_found(repository: ModelRepository, ref: ModelRef) -> None:
    """Unknown models and versions, and models without any, are told apart from errors."""
    (repository.root / "described").mkdir()
    (repository.root / "described" / "model.toml").touch()
    with pytest.raises(ModelNotFound, match=ref.version or ref.name):
        repository.resolve(ref)


def test_a_default_version_must_be_there(repository: ModelRepository) -> None:
    """A model.toml that names a version which is not prepared is not overruled."""
    (repository.root / "tiny" / "model.toml").write_text('default_version = "7"\n')
    with pytest.raises(ModelNotFound, match="'7'"):
        repository.default_version("tiny")


@pytest.mark.parametrize(
    "name", ["..", "../outside", "a/b", "/etc", ".hidden", "", "x" * 200, "a\0"]
)
def test_names_can_not_leave_the_root(repository: ModelRepository, name: str) -> None:
    """Neither a name nor a version can be a path to elsewhere."""
    with pytest.raises(InvalidInput):
        repository.versions(name)
    with pytest.raises(InvalidInput):
        repository.version_folder("tiny", name)


def test_links_out_of_the_root_are_not_followed(repository: ModelRepository) -> None:
    """Models, versions and files that are links to elsewhere are not there."""
    outside = repository.root.parent / "outside"
    (repository.root / "linked").symlink_to(outside / "outer")
    (repository.root / "tiny" / "2").symlink_to(outside / "outer" / "1")
    assert repository.names() == ["tiny"]
    assert repository.versions("tiny") == ["1"]
    with pytest.raises(ModelNotFound):
        repository.verify("linked", "1")
    graph = repository.version_folder("tiny", "1") / "model.onnx"
    graph.unlink()
    graph.symlink_to(outside / "outer" / "1" / "model.onnx")
    with pytest.raises(ModelFileCorrupt, match=r"model\.onnx"):
        repository.verify("tiny", "1")


def test_links_within_the_root_are(repository: ModelRepository) -> None:
    """A link to a neighbour is another name for it."""
    (repository.root / "alias").symlink_to(repository.root / "tiny")
    assert repository.names() == ["alias", "tiny"]


@pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json"])
def test_a_changed_byte_is_found(repository: ModelRepository, file: str) -> None:
    """Verification names the file whose bytes are not those that were prepared."""
    path = repository.version_folder("tiny", "1") / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileCorrupt, match=file) as corrupt:
        repository.verify("tiny", "1")
    assert corrupt.value.metadata == {"model": "tiny", "version": "1", "file": file}


@pytest.mark.parametrize("file", ["model.onnx", "version.toml", "model.toml"])
def test_errors_hold_no_paths(repository: ModelRepository, file: str) -> None:
    """What a client may be told does not say where the repository is."""
    folder = repository.root / "tiny" if file == "model.toml" else repository.root / "tiny" / "1"
    (folder / file).write_bytes(b"\xff")
    with pytest.raises(ModelLoadFailed, match=file) as failed:
        repository.model_manifest("tiny")
        repository.verify("tiny", "1")
    assert str(repository.root) not in str(failed.value)


def test_a_missing_file_is_found(repository: ModelRepository) -> None:
    """A file that the manifest names must be there."""
    (repository.version_folder("tiny", "1") / "tokenizer.json").unlink()
    with pytest.raises(ModelFileCorrupt, match=r"tokenizer\.json is missing"):
        repository.verify("tiny", "1")


def test_a_prepared_model_needs_no_manifest_of_its_own(repository: ModelRepository) -> None:
    """Without model.toml all is as by default."""
    (repository.root / "tiny" / "model.toml").unlink()
    assert repository.model_manifest("tiny") == ModelManifest()


def test_removing_a_version_leaves_the_rest(repository: ModelRepository) -> None:
    """Other versions and the operator's manifest stay; no trash does."""
    make_tiny_model(repository.root, version="2")
    repository.remove("tiny", "1")
    assert repository.versions("tiny") == ["2"]
    assert sorted(path.name for path in (repository.root / "tiny").iterdir()) == ["2", "model.toml"]
    assert [path.name for path in repository.root.iterdir()] == ["tiny"]


def test_removing_a_model_leaves_nothing(repository: ModelRepository) -> None:
    """The manifest goes with the versions."""
    repository.remove_model("tiny")
    assert list(repository.root.iterdir()) == []


def test_removing_what_is_not_there(repository: ModelRepository) -> None:
    """It is told, and nothing changes."""
    with pytest.raises(ModelNotFound):
        repository.remove("tiny", "9")
    with pytest.raises(ModelNotFound):
        repository.remove_model("none")
    assert repository.names() == ["tiny"]


def test_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`./models` where there is one, else the folder for the user's data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_model_dir() == tmp_path / "data" / "shoal" / "models"
    (tmp_path / "models").mkdir()
    assert default_model_dir() == Path("models")
