"""What appears beside a version's files, while others work on the same version."""

from __future__ import annotations

import shutil
from pathlib import Path

from shoal_server.core import ModelKey
from shoal_server.preparation.publish import publish_reference
from shoal_server.registry.reference import REFERENCE_FILE
from shoal_server.registry.repository import ModelRepository
from tests.tiny_model import make_tiny_model


def test_vectors_of_a_version_that_was_prepared_anew_are_not_kept(tmp_path: Path) -> None:
    """They are of other files: the manifest that names those stays."""
    repository, key = ModelRepository(tmp_path), ModelKey("tiny", "1")
    folder = make_tiny_model(tmp_path).folder
    before = repository.version_manifest(key.name, key.version)
    shutil.rmtree(folder)
    make_tiny_model(tmp_path, seed=1)
    staged = tmp_path / REFERENCE_FILE
    staged.write_bytes(b"vectors of the first")
    now = publish_reference(staged, repository, key, before)
    assert repository.verify(key.name, key.version) == now
    assert REFERENCE_FILE not in now.files
