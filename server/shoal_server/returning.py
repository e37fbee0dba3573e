"""What was in memory comes back after a restart, the most used first.

Sessions are noted as they come and go, and how often they were used every so often and
at the end. A server that is killed so finds at its next start what it had in memory,
with counts that are not quite the last ones.
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

    def __init__(self, store: RecordStore, write_every_s: float) -> None:
        """Begin with what the store remembers.

        Args:
            store: Of the repository.
            write_every_s: How often uses are written.
        """
        self._store = store
        self._write_every_s = write_every_s
        self.former: Sequence[Former] = former_residents(store)
        """What was in memory when the server ended, the most used first."""
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
            uses = self._carried.get(load.key, 0.0)
            self._now[load.key] = former = Former(load.key, load.device, uses)
            self._tasks.start(self._write(former_change(load.key, former)))

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        """It may stay yet."""

    def stayed(self, key: ModelKey) -> None:
        """It is noted."""

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        """Note what left memory, unless everything does."""
        if why.reason is not UnloadReason.SHUTDOWN:
            self._now.pop(key, None)
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
        changes = []
        for key, former in self._now.items():
            resident = self._pool.get(key)
            if resident is not None:
                fresh = replace(former, uses=self._carried.get(key, 0.0) + resident.uses)
                if fresh != former:
                    self._now[key] = fresh
                    changes.append(former_change(key, fresh))
        return changes

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
