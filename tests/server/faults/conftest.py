"""Models for the tests of faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_model import TinyModel, make_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model in a repository of its own."""
    return make_tiny_model(tmp_path / "models")
