"""What SOURCE means."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal_server.preparation.default_model import DEFAULT_MODEL, DefaultSource
from shoal_server.preparation.errors import SourceNotFound
from shoal_server.preparation.hub import HubSource
from shoal_server.preparation.pypi import PackageSource
from shoal_server.preparation.resolve import find_source
from shoal_server.preparation.sources import LocalSource, ModelSource
from shoal_server.registry.repository import ModelRepository


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with nothing in it but `here/` and `org/name/`."""
    (tmp_path / "work" / "org" / "name").mkdir(parents=True)
    (tmp_path / "work" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    """Holds `known`, whose model.toml names a source, and `silent`, whose does not."""
    root = tmp_path / "models"
    for name, text in (("known", 'source = "org/model"\n'), ("silent", "")):
        (root / name).mkdir(parents=True)
        (root / name / "model.toml").write_text(text)
    return ModelRepository(root)


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("./here", "here", LocalSource(Path("here"))),
        ("/no/such", "such", LocalSource(Path("/no/such"))),
        ("here", "here", LocalSource(Path("here"))),
        ("org/name", "name", LocalSource(Path("org/name"))),
        ("Org/My-Model", "my-model", HubSource("Org/My-Model")),
        ("pypi:Some-Model", "some-model", PackageSource("some-model")),
        ("pypi:some-model==1.0", "some-model", PackageSource("some-model", "1.0")),
        ("known", "known", HubSource("org/model")),
        (DEFAULT_MODEL, DEFAULT_MODEL, DefaultSource.at(None)),
        (None, DEFAULT_MODEL, DefaultSource.at(None)),
    ],
)
def test_source(
    repository: ModelRepository, text: str | None, name: str, source: ModelSource
) -> None:
    """Folders, hub ids, packages, known names and nothing at all each mean one thing."""
    assert find_source(text, None, repository) == (name, source)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("org/model", HubSource("org/model", "v2")),
        ("known", HubSource("org/model", "v2")),
        ("pypi:some-model", PackageSource("some-model", "v2")),
        (None, DefaultSource.at("v2")),
    ],
)
def test_revision_reaches_the_source(
    repository: ModelRepository, text: str | None, source: ModelSource
) -> None:
    """A revision is passed on, also for a model known by name."""
    assert find_source(text, "v2", repository)[1] == source


@pytest.mark.parametrize(
    "text", ["unknown", "silent", "a/b/c", "pypi:-r evil", "pypi:x==1 --pre", "hub:org/x", "a b"]
)
def test_anything_else_is_refused(repository: ModelRepository, text: str) -> None:
    """What is none of these is told, and no option is smuggled to pip."""
    with pytest.raises(SourceNotFound):
        find_source(text, None, repository)


def test_a_folder_has_no_revision(repository: ModelRepository) -> None:
    """A revision that can not be honoured is not ignored."""
    with pytest.raises(SourceNotFound, match="revision"):
        find_source("./here", "v2", repository)


def test_the_operators_source_goes_before_the_recipe(repository: ModelRepository) -> None:
    """A model.toml that names another source for the default model is followed."""
    folder = repository.root / DEFAULT_MODEL
    folder.mkdir()
    (folder / "model.toml").write_text('source = "org/mirror"\n')
    assert find_source(None, None, repository) == (DEFAULT_MODEL, HubSource("org/mirror"))
