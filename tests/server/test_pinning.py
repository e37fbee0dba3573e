"""A pin is on disk when it is acknowledged, and in memory only what could be written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from shoal_server.catalog import Catalog
from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition, NotPersisted
from shoal_server.registry.memory_pins import MemoryPins
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.store import Change, RecordStore
from tests.server.batching.fakes import settle
from tests.server.residency.fakes import CPU, Bench, Gate
from tests.tiny_model import make_tiny_model

PLAIN, STEADY = ModelKey("plain", "1"), ModelKey("steady", "1")


class Disk(RecordStore):
    """A store whose disk is full when told to be."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))
        self.is_full = False
        self.written: list[Change] = []
        self.gate = Gate()

    async def write(self, *changes: Change) -> None:
        await self.gate.passed()
        if self.is_full:
            raise NotPersisted("the disk is full")
        self.written += changes


class OnCpu:
    """Places everything there."""

    def device_for(self, *_: object, **__: object) -> str:
        return CPU


@dataclass
class Parts:
    """A catalog, its pool and its disk; `steady` is pinned by its manifest."""

    catalog: Catalog
    bench: Bench
    disk: Disk
    pins: MemoryPins

    def is_pinned(self, key: ModelKey) -> bool:
        resident = self.bench.pool.get(key)
        assert resident is not None
        return resident.pinned

    def kept(self) -> list[tuple[str, object]]:
        """What was written, in order."""
        return [(change.key, change.value) for change in self.disk.written]


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    make_tiny_model(tmp_path, "plain")
    make_tiny_model(tmp_path, "steady", serving={"pinned": True})
    disk = Disk()
    pins = MemoryPins(disk)
    bench = Bench(pins=pins.by_version)
    registry = Registry(ModelRepository(tmp_path), "plain")
    catalog = Catalog(registry, cast(Any, bench.pool), cast(Any, OnCpu()), pins, bench.states)
    yield Parts(catalog, bench, disk, pins)
    await bench.shut_down()


async def test_loading_with_a_pin_and_pinning_are_the_same(parts: Parts) -> None:
    """Both are written; what is asked for again is not."""
    await parts.catalog.load("plain", pin=True)
    await parts.catalog.pin("plain", True)
    assert parts.is_pinned(PLAIN)
    assert parts.kept() == [("plain@1", {"pinned": True})]
    await parts.catalog.load("plain", pin=False)
    assert not parts.is_pinned(PLAIN)
    assert parts.kept()[1:] == [("plain@1", None)]


async def test_a_full_disk_leaves_pins_as_they_were(parts: Parts) -> None:
    """Whoever asked is told, and a model that was just loaded is there without the pin."""
    await parts.catalog.load("steady")
    parts.disk.is_full = True
    with pytest.raises(NotPersisted):
        await parts.catalog.load("plain", pin=True)
    assert not parts.is_pinned(PLAIN)
    with pytest.raises(NotPersisted):
        await parts.catalog.pin("plain", True)
    assert not parts.is_pinned(PLAIN)
    for change in (parts.catalog.pin("steady", False), parts.catalog.load("steady", pin=False)):
        with pytest.raises(NotPersisted):
            await change
        assert parts.is_pinned(STEADY)


async def test_unloading_ends_a_pin(parts: Parts) -> None:
    """The next session begins as its manifest says."""
    await parts.catalog.load("plain", pin=True)
    await parts.catalog.load("steady", pin=False)
    for name in ("plain", "steady"):
        await parts.catalog.unload(name)
        await parts.catalog.load(name)
    assert (parts.is_pinned(PLAIN), parts.is_pinned(STEADY)) == (False, True)
    assert parts.pins.by_version == {}


async def test_a_pin_outlasts_a_session_that_was_not_asked_to_leave(parts: Parts) -> None:
    """After a restart nothing is in memory, but what was pinned is remembered."""
    await parts.pins.remember(PLAIN, True, by_manifest=False)
    await parts.pins.remember(STEADY, False, by_manifest=True)
    await parts.catalog.load("plain")
    await parts.catalog.load("steady")
    assert (parts.is_pinned(PLAIN), parts.is_pinned(STEADY)) == (True, False)


async def test_what_is_not_in_memory_is_not_pinned(parts: Parts) -> None:
    """Nor remembered as such; unpinning it forgets what was."""
    with pytest.raises(FailedPrecondition, match="not in memory"):
        await parts.catalog.pin("plain", True)
    assert parts.pins.by_version == {}
    await parts.pins.remember(PLAIN, True, by_manifest=False)
    await parts.catalog.pin("plain", False)
    assert parts.pins.by_version == {}


@pytest.mark.parametrize("last", [True, False])
async def test_of_a_pin_and_an_unpin_at_once_the_last_one_counts(parts: Parts, last: bool) -> None:
    """In memory as on disk, though the disk was slow."""
    await parts.catalog.load("plain", pin=last)
    parts.disk.gate.close()
    changes = []
    for pinned in (not last, last):
        changes.append(asyncio.create_task(parts.catalog.pin("plain", pinned)))
        await settle()
    parts.disk.gate.open()
    await asyncio.gather(*changes)
    assert parts.is_pinned(PLAIN) == parts.pins.by_version.get(PLAIN, False) == last
