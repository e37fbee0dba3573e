"""Another version of a model, when its source is another by now."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal_server.preparation.errors import SourceNotFound, Unsupported
from shoal_server.preparation.pull import pull_newer, version_after
from shoal_server.registry.manifest import MODEL_FILE, ModelManifest
from shoal_server.registry.repository import ModelRepository
from tests.tiny_model import make_tiny_model

from .fakes import RecordingProgress, no_environment


@pytest.mark.parametrize(
    ("latest", "expected"),
    [("1", "2"), ("9", "10"), ("v1.9", "v1.10"), ("2024-01-31", "2024-01-32"), ("beta", "beta.2")],
)
def test_the_next_version_comes_after_the_latest(
    tmp_path: Path, latest: str, expected: str
) -> None:
    """Also as the repository sorts them: it is what the bare name means then."""
    assert version_after(latest) == expected
    for version in (latest, expected):
        make_tiny_model(tmp_path, version=version)
    assert ModelRepository(tmp_path).versions("tiny") == [latest, expected]


def newer(root: Path, name: str) -> None:
    pull_newer(name, ModelRepository(root), no_environment(root), RecordingProgress())


def test_a_model_without_a_source_is_told(tmp_path: Path) -> None:
    """A folder of the same name is not taken for one."""
    make_tiny_model(tmp_path)
    with pytest.raises(SourceNotFound, match="names no source"):
        newer(tmp_path, "tiny")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / MODEL_FILE).write_text(ModelManifest(source="org/empty").to_toml())
    with pytest.raises(SourceNotFound, match="not prepared"):
        newer(tmp_path, "empty")


@pytest.mark.parametrize("source", ["pypi:package", "./folder"])
def test_sources_without_revisions_are_told(tmp_path: Path, source: str) -> None:
    """Nobody can say whether they are newer; nothing is fetched."""
    make_tiny_model(tmp_path)
    (tmp_path / "tiny" / MODEL_FILE).write_text(ModelManifest(source=source).to_toml())
    with pytest.raises(Unsupported):
        newer(tmp_path, "tiny")
