"""Another version of a model, when its source is another by now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal_server.preparation.errors import SourceNotFound, Unsupported
from shoal_server.preparation.pull import pull_newer, version_after
from shoal_server.pulling import PREPARING
from shoal_server.registry.manifest import MODEL_FILE, VERSION_FILE, ModelManifest
from shoal_server.registry.repository import ModelRepository
from tests.tiny_model import make_tiny_model

from .authors import write_authors_model
from .fake_hub import FakeHub, FakeRepository
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


def test_a_broken_version_does_not_hide_a_newer_revision(tmp_path: Path) -> None:
    """It is named, and passed over; what comes is prepared after it."""
    root, commit = tmp_path / "models", "a" * 40
    for version in ("1", "2"):
        make_tiny_model(root, version=version)
    (root / "tiny" / "1" / VERSION_FILE).write_text("no TOML")
    (root / "tiny" / MODEL_FILE).write_text(ModelManifest(source="org/tiny").to_toml())
    files = write_authors_model(tmp_path / "authors")
    content = {
        str(path.relative_to(files)): path.read_bytes()
        for path in files.rglob("*")
        if path.is_file()
    }
    there = FakeRepository({"main": content, commit: content}, commits={"main": commit})
    with FakeHub({"org/tiny": there}) as hub:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "shoal_server", "models", "pull", "tiny", "--if-newer"),
                *("--model-dir", str(root), "--export-env", str(tmp_path / "none")),
            ],
            env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert ModelRepository(root).version_manifest("tiny", "3").source.revision == commit
    assert done.stdout.startswith(f"{PREPARING}tiny@3\n")  # for the server, before it is fetched
    assert "passed over: model tiny@1: " in done.stdout + done.stderr
