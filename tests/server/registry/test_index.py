"""The index says what the disk says, however the files change."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from shoal_server.errors import ModelNotFound
from shoal_server.registry.index import ModelFiles, RepositoryIndex
from shoal_server.registry.manifest import MODEL_FILE, VERSION_FILE
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from tests.tiny_model import add_tiny_variant, make_tiny_model

LONG_AGO_S = 1_000_000_000.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        make_tiny_model(tmp_path, name)
    return tmp_path


@pytest.fixture
def registry(root: Path) -> Registry:
    return Registry(ModelRepository(root), "one")


@pytest.fixture
def index(registry: Registry) -> RepositoryIndex:
    return RepositoryIndex(registry)


def settle(root: Path) -> None:
    """Let all files be old, so that every write from now on shows in their times."""
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    os.utime(root, (LONG_AGO_S, LONG_AGO_S))


async def shown(index: RepositoryIndex, name: str) -> ModelFiles:
    """A model, as one who lists models sees it."""
    await index.look()
    return (await index.look_inside([name]))[name]


async def test_what_nobody_wrote_to_is_not_read_again(index: RepositoryIndex, root: Path) -> None:
    """The first look reads all, the next one nothing."""
    settle(root)
    assert (await index.look()).read_anew == {"one", "two"}
    assert (await index.look()).read_anew == frozenset()


async def test_what_was_written_to_just_now_is_read_again(index: RepositoryIndex) -> None:
    """A second write in the same tick of the clock would not show in its times."""
    assert (await index.look()).read_anew == {"one", "two"}
    assert (await index.look()).read_anew == {"one", "two"}


async def test_models_come_and_go(index: RepositoryIndex, root: Path) -> None:
    """At the next look."""
    settle(root)
    assert list((await index.look()).models) == ["one", "two"]
    make_tiny_model(root, "three")
    shutil.rmtree(root / "one")
    assert list((await index.look()).models) == ["three", "two"]


async def test_a_new_version_shows(index: RepositoryIndex, root: Path) -> None:
    """In the versions, and as what the name means while nobody has asked for it."""
    settle(root)
    await index.look()
    make_tiny_model(root, "side", version="2")
    (root / "side" / "2").rename(root / "one" / "2")
    found = await shown(index, "one")
    assert found.versions == ("1", "2")
    assert str(found.key) == "one@2"


async def test_an_edited_manifest_shows(index: RepositoryIndex, root: Path) -> None:
    """Written in place, as editors may do."""
    settle(root)
    await index.look()
    with (root / "one" / MODEL_FILE).open("a") as file:
        file.write('\n[serving]\npinned = "maybe"\n')
    assert (await shown(index, "one")).problem


async def test_a_new_variant_shows(index: RepositoryIndex, root: Path, registry: Registry) -> None:
    """To one who shows the model."""
    registry.prepared.precision = "int8"
    settle(root)
    assert (await shown(index, "one")).chosen.precision == "fp32"  # type: ignore[union-attr]
    add_tiny_variant(make_tiny_model(root / "elsewhere", "one"))
    variants = root / "elsewhere" / "one" / "1" / "variants"
    variants.rename(root / "one" / "1" / "variants")
    assert (await shown(index, "one")).chosen.precision == "int8"  # type: ignore[union-attr]


async def test_a_damaged_version_shows(index: RepositoryIndex, root: Path) -> None:
    """A version.toml that was written over."""
    settle(root)
    assert (await shown(index, "one")).problem == ""
    (root / "one" / "1" / VERSION_FILE).write_text("no manifest")
    assert (await shown(index, "one")).problem


async def test_what_a_name_means_decides_what_is_shown(
    index: RepositoryIndex, root: Path, registry: Registry
) -> None:
    """The version that is served stays, whatever is on disk, until the name is asked anew."""
    await registry.resolve("one")
    make_tiny_model(root, "side", version="2")
    (root / "side" / "2").rename(root / "one" / "2")
    settle(root)
    await index.look()
    assert str((await shown(index, "one")).key) == "one@1"
    registry.forget("one")
    assert str((await shown(index, "one")).key) == "one@2"


async def test_no_repository_is_an_empty_one(tmp_path: Path) -> None:
    """It may be made later."""
    root = tmp_path / "models"
    index = RepositoryIndex(Registry(ModelRepository(root), "one"))
    assert (await index.look()).models == {}
    make_tiny_model(root, "one")
    assert list((await index.look()).models) == ["one"]


async def test_those_who_come_during_a_look_share_the_next(index: RepositoryIndex) -> None:
    """Not the one that goes on: it may have passed what was written since."""
    first, *others = await asyncio.gather(*(index.look() for _ in range(5)))
    assert all(each is others[0] for each in others)
    assert first is not others[0]
    assert await index.look() is not others[0]


async def test_one_model_is_looked_at_by_itself(index: RepositoryIndex, root: Path) -> None:
    """What was known of it, and what is there now; nothing of what is not there."""
    before, now = await index.look_at("one")
    assert before is None
    assert now is not None
    make_tiny_model(root, "side", version="2")
    (root / "side" / "2").rename(root / "one" / "2")
    before, again = await index.look_at("one")
    assert before == now
    assert again is not None
    assert again.versions == ("1", "2")
    assert await index.look_at("nobody") == (None, None)


async def test_a_deregistered_model_is_not_found(
    index: RepositoryIndex, root: Path, registry: Registry
) -> None:
    """Nor is it told as removed, or as added, by a look at everything."""
    settle(root)
    await index.look()
    registry.deregister("two")
    await index.forget("two")
    assert list((await index.look()).models) == ["one"]
    anew = await index.look_anew()
    assert (list(anew.before), list(anew.now)) == (["one"], ["one"])
    registry.register("two")
    assert list((await index.look()).models) == ["one", "two"]


async def test_a_version_that_was_on_its_way_is_not_known(registry: Registry, root: Path) -> None:
    """One that was looked up, or loaded, while its model was deregistered."""
    version = await registry.resolve("two")
    targets = registry.targets("two")
    registry.deregister("two")
    registry.renew("two", targets, [version])
    registry.adopt(version)
    assert registry.meanings.known("two") is None
    for text in ("two", "two@1"):
        with pytest.raises(ModelNotFound, match="deregistered"):
            await registry.resolve(text)
    with pytest.raises(ModelNotFound):
        registry.version(version.key)
    registry.register("two")
    assert (await registry.resolve("two")).key == version.key


async def test_a_folder_that_can_not_be_read_hides_no_others(
    index: RepositoryIndex, registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is listed with the reason, and looked at again: permissions leave no trace in times."""
    settle(root)
    read = registry.repository.versions

    def versions(name: str) -> list[str]:
        if name == "two":
            raise PermissionError(13, "Permission denied", str(root / name))
        return read(name)

    monkeypatch.setattr(registry.repository, "versions", versions)
    found = (await index.look()).models
    assert found["two"].problem == "its folder can not be read: Permission denied"
    assert not found["one"].problem
    monkeypatch.undo()
    assert not (await index.look()).models["two"].problem


async def test_a_version_that_was_passed_over_shows_when_it_is_mended(
    index: RepositoryIndex, root: Path
) -> None:
    """What is written inside a version leaves the times of its model's folder as they are."""
    make_tiny_model(root, "side", version="2")
    (root / "side" / "2").rename(root / "one" / "2")
    manifest = root / "one" / "2" / VERSION_FILE
    good = manifest.read_bytes()
    manifest.write_text("no manifest")
    settle(root)
    assert str((await shown(index, "one")).key) == "one@1"
    manifest.write_bytes(good)
    assert str((await shown(index, "one")).key) == "one@2"
