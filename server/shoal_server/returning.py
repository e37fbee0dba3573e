"""What was in memory comes back after a restart, the most used first.

Sessions are noted as they come and go, whether their models' bare names mean them, and how
often they were used every so often and at the end. A server that is killed so finds at its
next start what it had in memory, with counts that are not quite the last ones.

A bare name that meant a session goes on meaning that version, though a newer one may be
there: what is new is for an update, or for whoever asks, to try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import FailedPrecondition, NotPersisted, ShoalError
from shoal_server.lifecycle import Load, LoadReason, Unloading, UnloadReason
from shoal_server.loading import LoadedModel
from shoal_server.placement import Placement
from shoal_server.registry.meanings import Meanings
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.registry.remembered import Former, former_change, former_residents
from shoal_server.registry.store import Change, RecordStore
from shoal_server.registry.whole import WholeTasks
from shoal_server.residency.free_memory import FreeMemory
from shoal_server.residency.pool import SessionPool

log = structlog.get_logger(__name__)

# Of the uses before a restart: what is used now outweighs what was used last year.
_CARRIED = 0.5


class ResidentRecords:
    """Writes down what is in memory. A `PoolObserver`; belongs to the event loop's thread."""

    def __init__(self, store: RecordStore, meanings: Meanings, write_every_s: float) -> None:
        """Begin with what the store remembers.

        Args:
            store: Of the repository.
            meanings: Say which versions bare names mean; tell that here from now on.
            write_every_s: How often uses are written.
        """
        self._store = store
        self._meanings = meanings
        meanings.meant = self._meant
        self._write_every_s = write_every_s
        self.former: Sequence[Former] = former_residents(store)
        """What was in memory when the server ended, the most used first."""
        # What was used before it came into memory; also in this run, if it had left.
        self._carried = {each.key: each.uses * _CARRIED for each in self.former}
        self._now: dict[ModelKey, Former] = {}
        self._tasks = WholeTasks()

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        """Of no account here."""

    def load_began(self, key: ModelKey, why: LoadReason) -> None:
        """It may fail yet."""

    def load_ended(self, load: Load) -> None:
        """Note what came into memory."""
        if load.error is None:
            meant = self._meanings.bare(load.key.name)
            self._now[load.key] = former = Former(
                load.key,
                load.device,
                self._carried.get(load.key, 0.0),
                is_meant=meant is not None and meant.key == load.key,
            )
            self._tasks.start(self._write(former_change(load.key, former)))

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        """Count its uses while it can be asked; it may stay yet."""
        self._count(key)

    def stayed(self, key: ModelKey) -> None:
        """Write what was counted."""
        if (former := self._now.get(key)) is not None:
            self._tasks.start(self._write(former_change(key, former)))

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        """Note what left memory, unless everything does."""
        if why.reason is not UnloadReason.SHUTDOWN:
            if (gone := self._now.pop(key, None)) is not None:
                self._carried[key] = gone.uses
            self._tasks.start(self._write(former_change(key, None)))

    def begin(self, pool: SessionPool[LoadedModel]) -> None:
        """Count uses from now on."""
        self._pool = pool
        self._tasks.start(self._count_always())

    async def forget_former(self) -> None:
        """Remove the records of what was in memory before and is not now."""
        gone = [each.key for each in self.former if each.key not in self._now]
        await self._write(*(former_change(key, None) for key in gone))

    async def close(self) -> None:
        """Write the last counts; sessions are still in memory."""
        with suppress(NotPersisted):
            await self._store.write(*self._counts())
        await self._tasks.close()

    async def _count_always(self) -> None:
        while True:
            await asyncio.sleep(self._write_every_s)
            await self._write(*self._counts())

    def _counts(self) -> list[Change]:
        counted = [self._count(key) for key in list(self._now)]
        return [former_change(each.key, each) for each in counted if each is not None]

    def _count(self, key: ModelKey) -> Former | None:
        """Note how often a session was used; None: as often as is noted."""
        former, resident = self._now.get(key), self._pool.get(key)
        if former is None or resident is None:
            return None
        fresh = replace(former, uses=self._carried.get(key, 0.0) + resident.uses)
        if fresh == former:
            return None
        self._now[key] = fresh
        return fresh

    def _meant(self, key: ModelKey) -> None:
        """Note that a bare name means this version from now on, and no other one."""
        changes = []
        for each in list(self._now.values()):
            fresh = replace(each, is_meant=each.key == key)
            if each.key.name == key.name and fresh != each:
                self._now[each.key] = fresh
                changes.append(former_change(each.key, fresh))
        if changes:
            self._tasks.start(self._write(*changes))

    async def _write(self, *changes: Change) -> None:
        # The store says it in the log; only the memory of a restart is lost.
        with suppress(NotPersisted):
            await self._store.write(*changes)


@dataclass(frozen=True, slots=True)
class Return:
    """Brings former residents back, as long as there is free memory; nobody leaves for them."""

    registry: Registry
    pool: SessionPool[LoadedModel]
    placement: Placement
    free: FreeMemory

    async def recall_names(self, records: ResidentRecords) -> None:
        """Let bare names mean what they meant when the server ended.

        What says otherwise counts more: an alias of that name, a pin, `default_version`,
        what was loaded at the start, and that the version is known to be bad.
        """
        for each in records.former:
            if each.is_meant:
                with suppress(ShoalError):  # it is gone: the name means what there is
                    await self._recall(each.key)

    async def _recall(self, key: ModelKey) -> None:
        registry, name = self.registry, key.name
        if name in registry.aliases or name in registry.pins or registry.meanings.bare(name):
            return
        manifest = await asyncio.to_thread(registry.repository.model_manifest, name)
        if manifest.default_version is None and await registry.why_bad(key) is None:
            version = await registry.look_up(ModelRef(name, key.version))
            registry.renew(name, registry.targets(name), [version])

    async def bring_back(self, records: ResidentRecords) -> None:
        """Load them one after the other; what can not be loaded is forgotten and logged."""
        for each in records.former:
            if self.pool.get(each.key) is not None:
                continue
            try:
                await self._load(each)
            except ShoalError as error:
                log.warning("former_resident_left_out", model=str(each.key), error=error.message)
        await records.forget_former()

    async def _load(self, former: Former) -> None:
        key = former.key
        version = await self.registry.look_up(ModelRef(key.name, key.version))
        device = self._device(version, former.device)
        obstacle = await self.free.obstacle(key, device)
        if obstacle:
            log.info("former_resident_left_out", model=str(key), error=obstacle)
            return
        await self.pool.load_ahead(
            key, device, pinned=version.serving.pinned, hold_s=0.0, why=LoadReason.RESTORED
        )

    def _device(self, version: ModelVersion, wanted: str) -> str:
        try:
            return self.placement.device_for(version, wanted)
        except FailedPrecondition:  # it is not there any longer
            return self.placement.device_for(version)
