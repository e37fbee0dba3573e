"""What is remembered of versions that bare names do not mean is what the disk says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal_server.core import ModelKey
from shoal_server.registry.index import RepositoryIndex
from shoal_server.registry.manifest import MODEL_FILE, VERSION_FILE
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.scopes import OtherVersion, OtherVersions
from tests.tiny_model import add_tiny_variant, make_tiny_model

LONG_AGO_S = 1_000_000_000.0
OLD = ModelKey("one", "1")


class Looks:
    """Looks again and again at a model of two versions, whose files are old."""

    def __init__(self, root: Path) -> None:
        self.root = root
        registry = Registry(ModelRepository(root), "one")
        self._index = RepositoryIndex(registry)
        self._others = OtherVersions(registry.prepared)

    async def __call__(self) -> OtherVersion | None:
        """The older version, as it is shown now."""
        others = await self._others.look((await self._index.look()).models)
        assert set(others) <= {OLD}
        return others.get(OLD)


@pytest.fixture
def looks(tmp_path: Path) -> Looks:
    make_tiny_model(tmp_path, "one", version="2")
    add_tiny_variant(make_tiny_model(tmp_path, "one", version="1"))
    for path in (*sorted(tmp_path.rglob("*"), reverse=True), tmp_path):
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    return Looks(tmp_path)


async def test_what_nobody_wrote_to_is_not_read_again(looks: Looks) -> None:
    """With a thousand versions a list would take a fifth of a second."""
    first = await looks()
    assert first is not None
    assert await looks() is first


async def test_versions_are_not_looked_for_once_for_each(looks: Looks) -> None:
    """A model with a thousand of them would take half a minute."""
    other = await looks()
    assert other is not None
    assert other.files.versions is other.meant.versions


async def test_what_was_written_to_just_now_is_read_again(looks: Looks) -> None:
    """A second write in the same tick of the clock would not show in its times."""
    (looks.root / "one" / "1" / VERSION_FILE).touch()
    assert await looks() is not await looks()


def _damage(version: Path) -> None:
    (version / VERSION_FILE).write_text("no manifest")


def _take_variants(version: Path) -> None:
    shutil.rmtree(version / "variants")


def _edit_model(version: Path) -> None:
    (version.parent / MODEL_FILE).write_text('description = "another"')


def _remove(version: Path) -> None:
    shutil.rmtree(version)


@pytest.mark.parametrize("write", [_damage, _take_variants, _edit_model, _remove])
async def test_what_was_written_to_shows(looks: Looks, write: Callable[[Path], None]) -> None:
    """In the version, or in what its model's versions share."""
    before = await looks()
    assert before is not None
    write(looks.root / "one" / "1")
    after = await looks()
    assert after is None or after.files != before.files
    assert (after is None) == (write is _remove)
