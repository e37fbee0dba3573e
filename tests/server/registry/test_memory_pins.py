"""Pins outlast the server, as long as nobody takes them back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import NotPersisted
from shoal_server.registry.memory_pins import MemoryPins
from shoal_server.registry.store import Change, RecordStore

A, B = ModelKey("a", "1"), ModelKey("b", "2")


class FullStore(RecordStore):
    """A store whose disk is full when told to be."""

    is_full = False

    async def write(self, *changes: Change) -> None:
        if self.is_full:
            raise NotPersisted("the disk is full")
        await super().write(*changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".shoal.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[RecordStore]:
    store = await FullStore.open(path)
    yield store
    await store.close()


async def after_restart(store: RecordStore, path: Path) -> dict[ModelKey, bool]:
    """What a server knows that starts when this one has ended."""
    await store.close()
    again = await RecordStore.open(path)
    try:
        return dict(MemoryPins(again).by_version)
    finally:
        await again.close()


async def test_what_was_said_outlasts_the_server(store: RecordStore, path: Path) -> None:
    """That a version is pinned, or not though its manifest says so."""
    pins = MemoryPins(store)
    await pins.remember(A, True, by_manifest=False)
    await pins.remember(B, False, by_manifest=True)
    assert pins.by_version == {A: True, B: False}
    assert await after_restart(store, path) == {A: True, B: False}


async def test_what_the_manifest_says_is_not_kept(store: RecordStore, path: Path) -> None:
    """So that a later manifest can say otherwise; unpinning ends a pin, and so does unloading."""
    pins = MemoryPins(store)
    await pins.remember(A, True, by_manifest=False)
    await pins.remember(A, False, by_manifest=False)
    await pins.remember(B, True, by_manifest=False)
    await pins.forget(B)
    assert pins.by_version == {}
    assert await after_restart(store, path) == {}


async def test_a_refused_write_changes_nothing(store: RecordStore, path: Path) -> None:
    """Neither here nor there; the same call works later."""
    pins = MemoryPins(store)
    await pins.remember(A, True, by_manifest=False)
    assert isinstance(store, FullStore)
    store.is_full = True
    for key, pinned in ((A, False), (B, True)):
        with pytest.raises(NotPersisted):
            await pins.remember(key, pinned, by_manifest=False)
    assert pins.by_version == {A: True}
    store.is_full = False
    await pins.remember(B, True, by_manifest=False)
    assert await after_restart(store, path) == {A: True, B: True}
