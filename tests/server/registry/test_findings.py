"""What is known to be bad of versions: what it hinders, how long it holds."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import ModelFileCorrupt, ModelLoadFailed, ModelUnusable
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.findings import Findings, FoundBy
from shoal_server.registry.index import RepositoryIndex
from shoal_server.registry.manifest import (
    GRAPH_FILE,
    MODEL_FILE,
    VERSION_FILE,
    ModelManifest,
    VersionManifest,
)
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.store import RecordStore
from tests.tiny_model import make_tiny_model

ONE, TWO, THREE = (ModelKey("tiny", version) for version in ("1", "2", "3"))
LOADING, VERIFYING = FoundBy.LOADING, FoundBy.VERIFYING


class Desk:
    """Findings of a repository with three versions, and who shows and uses them."""

    def __init__(self, root: Path, store: RecordStore) -> None:
        self.repository = ModelRepository(root)
        self.conditions = Conditions()
        self.findings = Findings(self.repository, self.conditions, store)
        self.registry = Registry(self.repository, "tiny", found=self.findings.by_model)

    async def meaning(self) -> ModelKey:
        """Of the bare name, decided anew."""
        self.registry.forget("tiny")
        return (await self.registry.resolve("tiny")).key


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for version in ("1", "2", "3"):
        make_tiny_model(tmp_path, version=version)
    return tmp_path


@pytest.fixture
async def store(root: Path) -> AsyncIterator[RecordStore]:
    store = await RecordStore.open(root / ".shoal.db")
    yield store
    await store.close()


@pytest.fixture
def desk(root: Path, store: RecordStore) -> Desk:
    return Desk(root, store)


def touch_graph(root: Path, key: ModelKey) -> None:
    """Let a version's files be others, by their times."""
    os.utime(root / key.name / key.version / GRAPH_FILE, ns=(1, 1))


async def test_the_newest_means_the_newest_not_known_to_be_bad(desk: Desk) -> None:
    """In requests and in lists; where all are bad, the newest."""
    index = RepositoryIndex(desk.registry)
    for key, meant in ((THREE, TWO), (TWO, ONE), (ONE, THREE)):
        await desk.findings.note(key, "no good", LOADING)
        assert await desk.meaning() == meant
        desk.registry.forget("tiny")
        assert (await index.look()).models["tiny"].key == meant


async def test_who_names_a_version_gets_it(desk: Desk, root: Path) -> None:
    """By `name@version`, by a pin, and by model.toml."""
    await desk.findings.note(THREE, "no good", LOADING)
    named = await desk.registry.resolve("tiny@3")
    assert named.key == THREE
    desk.registry.pin("tiny", "3", named)
    assert await desk.meaning() == THREE
    desk.registry.pin("tiny", None, named)
    (root / "tiny" / MODEL_FILE).write_text(ModelManifest(default_version="3").to_toml())
    assert await desk.meaning() == THREE


async def test_it_holds_for_the_files_that_it_was_found_of(desk: Desk, root: Path) -> None:
    """With others the version is the newest again, and nothing is shown of it any longer."""
    await desk.findings.note(THREE, "no good", LOADING)
    touch_graph(root, THREE)
    assert await desk.meaning() == THREE
    await desk.findings.drop_outdated()
    assert desk.conditions.of(THREE).fault is None


async def test_it_outlasts_the_server(desk: Desk, root: Path, store: RecordStore) -> None:
    """With its reason; and so does that it was mended."""
    await desk.findings.note(THREE, "no good", LOADING)
    await desk.findings.note(TWO, "no good", LOADING)
    await desk.findings.clear(TWO)
    await store.close()
    again = await RecordStore.open(root / ".shoal.db")
    try:
        later = Desk(root, again)
        assert await later.meaning() == TWO
        assert later.conditions.of(THREE).fault == "no good"
    finally:
        await again.close()


@pytest.mark.parametrize(("by", "is_bad"), [(LOADING, False), (VERIFYING, True)])
async def test_a_load_that_goes_well_refutes_one_that_did_not(
    desk: Desk, by: FoundBy, is_bad: bool
) -> None:
    """But not that the vectors are wrong, not even when a load failed in between."""
    await desk.findings.note(THREE, "no good", by)
    await desk.findings.note(THREE, "it can not be loaded", LOADING)
    desk.findings.loaded(THREE)
    assert (desk.findings.of(THREE) is not None) == is_bad
    assert (desk.conditions.of(THREE).fault is not None) == is_bad
    await desk.findings.close()


async def test_a_name_that_means_another_version_is_not_touched(desk: Desk) -> None:
    """What is forgotten of one version leaves what the bare name means."""
    await desk.findings.note(THREE, "no good", LOADING)
    meant = await desk.meaning()
    await desk.registry.resolve("tiny@3")
    await desk.findings.clear(THREE)
    desk.registry.forget_version(THREE)
    known = desk.registry.meanings.known("tiny")
    assert known is not None
    assert (known.key, desk.registry.meanings.known("tiny@3")) == (meant, None)


async def test_what_can_not_be_understood_is_passed_over(desk: Desk, root: Path) -> None:
    """By the bare name, though nobody has tried it, and told; by its own name it is an error."""
    (root / "tiny" / "3" / VERSION_FILE).write_text("no manifest")
    assert await desk.meaning() == TWO
    assert list(await desk.registry.passed_over("tiny")) == [THREE]
    with pytest.raises(ModelFileCorrupt, match=VERSION_FILE):
        await desk.registry.resolve("tiny@3")


async def test_what_can_not_be_read_just_now_is_not(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name would mean an older version from then on; who asks is told, and may try again."""

    def refuse(path: Path) -> VersionManifest:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(VersionManifest, "read", refuse)
        with pytest.raises(ModelLoadFailed, match="Too many open files") as raised:
            await desk.meaning()
    assert not isinstance(raised.value, ModelUnusable)
    assert await desk.meaning() == THREE


async def test_what_is_refuted_while_it_is_noted_is_not_known(desk: Desk) -> None:
    """A load goes well while the files of the one that failed are looked at."""
    noting = asyncio.create_task(desk.findings.note(THREE, "no good", LOADING))
    await asyncio.sleep(0)
    desk.findings.loaded(THREE)
    await noting
    assert desk.findings.of(THREE) is None


async def test_what_is_found_while_an_older_finding_is_dropped_stays(
    desk: Desk, root: Path
) -> None:
    """It is of the files as they are now."""
    await desk.findings.note(THREE, "no good", LOADING)
    touch_graph(root, THREE)
    noting = asyncio.create_task(desk.findings.note(THREE, "no good either", VERIFYING))
    dropping = asyncio.create_task(desk.findings.drop_outdated(THREE))
    await asyncio.gather(noting, dropping)
    assert desk.conditions.of(THREE).fault == "no good either"


async def test_what_may_be_read_now_is_not_what_might_not(desk: Desk, root: Path) -> None:
    """Permissions count as the files do: times do not tell of them."""
    (root / "tiny" / "3" / GRAPH_FILE).chmod(0)
    await desk.findings.note(THREE, "its graph can not be read", LOADING)
    (root / "tiny" / "3" / GRAPH_FILE).chmod(0o644)
    assert await desk.meaning() == THREE
    assert await desk.registry.why_bad(THREE) is None


async def test_what_was_refuted_just_before_the_end_is_so_after_it(
    desk: Desk, root: Path, store: RecordStore
) -> None:
    """Else the name would pass over a version that was loaded."""
    await desk.findings.note(THREE, "no good", LOADING)
    desk.findings.loaded(THREE)
    await desk.findings.close()
    await store.close()
    again = await RecordStore.open(root / ".shoal.db")
    try:
        assert await Desk(root, again).meaning() == THREE
    finally:
        await again.close()
