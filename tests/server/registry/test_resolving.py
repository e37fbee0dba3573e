"""What names stand for when the disk is not what it was."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelNotFound
from shoal_server.registry.aliases import Target, new_alias
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from tests.tiny_model import make_tiny_model

ONE, TWO = ModelKey("tiny", "1"), ModelKey("tiny", "2")


@pytest.fixture
async def registry(tmp_path: Path) -> Registry:
    """An alias stands for two versions, and what was read of the disk is forgotten."""
    for version in ("1", "2"):
        make_tiny_model(tmp_path, version=version)
    registry = Registry(ModelRepository(tmp_path), "tiny")
    versions = [await registry.look_up(ModelRef(key.name, key.version)) for key in (ONE, TWO)]
    registry.point(new_alias("prod", [Target(ONE, 1), Target(TWO, 1)], 0.0), versions)
    registry.forget("tiny")
    return registry


async def test_a_target_that_is_gone_takes_no_others_along(
    registry: Registry, tmp_path: Path
) -> None:
    """All of the traffic goes to those that are there, keys of the others move."""
    shutil.rmtree(tmp_path / "tiny" / "2")
    assert {(await registry.resolve("prod", key)).key for key in ("", "a", "b", "c")} == {ONE}


async def test_a_caller_stays_with_its_version_when_names_change_meanwhile(
    registry: Registry,
) -> None:
    """What it gets is what its key says, though nothing is remembered of it."""
    keys = [str(number) for number in range(16)]
    asked = [asyncio.create_task(registry.resolve("prod", key)) for key in keys]
    await asyncio.sleep(0)
    registry.forget("tiny")
    got = [(await each).key for each in asked]
    assert got == [(await registry.resolve("prod", key)).key for key in keys]


@pytest.mark.parametrize("how", ["a rescan", "an explicit load"])
async def test_a_target_that_is_back_gets_its_traffic(
    registry: Registry, tmp_path: Path, how: str
) -> None:
    """As soon as the disk is asked again."""
    shutil.move(tmp_path / "tiny" / "2", tmp_path / "away")
    assert (await registry.resolve("prod")).key == ONE
    shutil.move(tmp_path / "away", tmp_path / "tiny" / "2")
    if how == "a rescan":
        registry.forget("tiny")
    else:
        targets = registry.targets("prod")
        registry.renew("prod", targets, [await registry.look_up(each.ref) for each in targets])
    found = {(await registry.resolve("prod", str(number))).key for number in range(64)}
    assert TWO in found


async def test_another_models_target_that_is_back_gets_its_traffic(
    registry: Registry, tmp_path: Path
) -> None:
    """Though the alias means nothing of that model meanwhile."""
    other = ModelKey("other", "1")
    make_tiny_model(tmp_path, "other")
    versions = [await registry.look_up(ModelRef(key.name, key.version)) for key in (ONE, other)]
    registry.point(new_alias("mixed", [Target(ONE, 1), Target(other, 99)], 0.0), versions)
    registry.forget("other")
    shutil.move(tmp_path / "other" / "1", tmp_path / "away")
    assert (await registry.resolve("mixed")).key == ONE
    shutil.move(tmp_path / "away", tmp_path / "other" / "1")
    registry.forget("other")
    found = {(await registry.resolve("mixed", str(number))).key for number in range(64)}
    assert other in found


async def test_without_any_target_the_caller_hears_why(registry: Registry, tmp_path: Path) -> None:
    """As of a model that is not there."""
    shutil.rmtree(tmp_path / "tiny")
    with pytest.raises(ModelNotFound, match="tiny"):
        await registry.resolve("prod")


@pytest.mark.parametrize("how", ["pinned", "gone over"])
async def test_a_load_that_was_overtaken_does_not_take_the_name_back(
    registry: Registry, tmp_path: Path, how: str
) -> None:
    """The name was given another version while the one that it had meant was loaded."""
    shutil.move(tmp_path / "tiny" / "2", tmp_path / "away")
    before, targets = await registry.resolve("tiny"), registry.targets("tiny")
    versions = [await registry.look_up(each.ref) for each in targets]
    shutil.move(tmp_path / "away", tmp_path / "tiny" / "2")
    newer = await registry.look_up(ModelRef("tiny", "2"))
    registry.pin("tiny", "2" if how == "pinned" else None, newer)
    registry.renew("tiny", targets, versions, None if how == "pinned" else before)
    assert (before.key, (await registry.resolve("tiny")).key) == (ONE, TWO)
