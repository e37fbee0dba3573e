"""Which versions somebody pinned in memory, or unpinned: it outlasts the server.

A pin lasts until somebody takes it back or unloads the version. While it lasts, each
session of the version begins pinned, whatever brings it into memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from shoal_server.core import ModelKey
from shoal_server.errors import NotPersisted
from shoal_server.registry.remembered import memory_pin_change, remembered_memory_pins
from shoal_server.registry.store import RecordStore


class MemoryPins:
    """Remembers pins. Belongs to the event loop's thread."""

    def __init__(self, store: RecordStore) -> None:
        """Begin with what the store remembers.

        Args:
            store: Of the repository.
        """
        self._store = store
        self._pinned = remembered_memory_pins(store)
        # Held over the writing, so that what is remembered here and there is the same.
        self._turn = asyncio.Lock()

    @property
    def by_version(self) -> Mapping[ModelKey, bool]:
        """What was said, of versions of which anything was; follows what is said later."""
        return self._pinned

    async def remember(self, key: ModelKey, pinned: bool, *, by_manifest: bool) -> None:
        """Let `key` be pinned from now on, or not; returns when that is on disk.

        Args:
            key: A version.
            pinned: Whether it is.
            by_manifest: Whether it would be if nobody had said anything.

        Raises:
            NotPersisted: The disk refused; nothing changed.
        """
        await self._set(key, None if pinned == by_manifest else pinned)

    async def forget(self, key: ModelKey) -> None:
        """Let `key` be pinned, or not, as its manifest says.

        Raises:
            NotPersisted: The disk refused; nothing changed.
        """
        await self._set(key, None)

    async def _set(self, key: ModelKey, pinned: bool | None) -> None:
        async with self._turn:
            before = self._pinned.get(key)
            if pinned == before:
                return
            # At once: whoever leaves meanwhile does not undo the write.
            self._keep(key, pinned)
            try:
                await self._store.write(memory_pin_change(key, pinned))
            except NotPersisted:
                self._keep(key, before)
                raise

    def _keep(self, key: ModelKey, pinned: bool | None) -> None:
        if pinned is None:
            self._pinned.pop(key, None)
        else:
            self._pinned[key] = pinned
