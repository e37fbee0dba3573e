"""Reads a model's files again, without a request that fails or waits for it.

    1. look up   the manifests, on the disk
    2. open      a new session beside the one that serves; every file is read and compared
                 with its SHA-256, whatever is remembered of an earlier check
    3. swap      the new session is lent, and names mean the new manifests: one section
                 between two requests
    4. release   the old session, after its last lease (the pool does)
    5. verify    what was known to be bad and may not be any longer

A failure in 1 or 2 leaves everything as it was, and is told: by an event, and beside the
model's state. A caller that leaves does not stop it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

import structlog

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelFileCorrupt, NothingToCompare, ShoalError
from shoal_server.lifecycle import UnloadReason
from shoal_server.loading import LoadedModel
from shoal_server.placement import Placement
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.event_log import Publisher
from shoal_server.registry.events import ModelReloaded, ModelReloadFailed
from shoal_server.registry.findings import Findings, FoundBy
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.registry.whole import WholeTasks
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import Resident, State

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A version whose files were read again."""

    key: ModelKey
    device: str
    """Where its new session is; empty: it is not in memory."""
    seconds: float


class Reloader:
    """Reads models again. Belongs to the event loop's thread."""

    def __init__(
        self,
        registry: Registry,
        pool: SessionPool[LoadedModel],
        placement: Placement,
        conditions: Conditions,
        findings: Findings,
        verify: Callable[[ModelVersion], Awaitable[object]],
        events: Publisher,
        distrust: Callable[[ModelKey], None],
    ) -> None:
        """Wire it.

        Args:
            registry: Knows the versions.
            pool: Has the sessions.
            placement: Chooses devices.
            conditions: Show that a model is being read again, or could not be.
            findings: Know what is bad, which may be mended by it.
            verify: Finds out whether it is.
            events: Are told what was read again, or could not be.
            distrust: Lets the next load of a version read all of its files.
        """
        self._registry = registry
        self._pool = pool
        self._placement = placement
        self._conditions = conditions
        self._findings = findings
        self._verify = verify
        self._events = events
        self._distrust = distrust
        # Held by who reads a version again, so that the files read last are those served.
        self._turns: WeakValueDictionary[ModelKey, asyncio.Lock] = WeakValueDictionary()
        self._tasks = WholeTasks()

    async def reload(self, text: str) -> list[Reloaded]:
        """Read a model's files again; of an alias all that it means, one after the other.

        A model that is not in memory is not loaded: its files are checked, and an earlier
        failure to load it is forgotten.

        Args:
            text: `name`, `name@version`, an alias or nothing (the default model). A bare
                name is the version that it means so far.

        Raises:
            ModelNotFound: There is no such model or version.
            ShoalError: It can not be read or loaded; what was served before is served on.
        """
        keys = [
            (await self._registry.resolve(str(target.ref))).key
            for target in self._registry.targets(text)
        ]
        return [await self._in_turn(key) for key in keys]

    async def close(self) -> None:
        """Give up what goes on."""
        await self._tasks.close()

    async def _in_turn(self, key: ModelKey) -> Reloaded:
        return await asyncio.shield(self._tasks.start(self._reload(key)))

    async def _reload(self, key: ModelKey) -> Reloaded:
        lock = self._turns.setdefault(key, asyncio.Lock())
        async with lock:
            began_s = time.monotonic()
            before = self._served(key)
            try:
                fresh = await self._registry.look_up(ModelRef(key.name, key.version))
                device = await self._replace(fresh, before)
            except BaseException as error:
                # Unless it was taken out and loaded anew meanwhile, of other manifests.
                self._registry.adopt(self._session_of(key) or before)
                await self._failed(key, error)
                raise
            await self._look_for_faults(fresh, device)
            done = Reloaded(key, device, time.monotonic() - began_s)
            log.info("reloaded", model=str(key), device=device, seconds=round(done.seconds, 3))
            self._events.publish(ModelReloaded(key, device, done.seconds))
            return done

    async def _failed(self, key: ModelKey, error: BaseException) -> None:
        log.warning("reload_failed", model=str(key), error=str(error))
        if not isinstance(error, ShoalError):  # the server stops, or the log says the rest
            return
        if self._served_by(key) is None and isinstance(error, ModelFileCorrupt):
            await self._findings.note(key, error.message, FoundBy.LOADING)
        else:
            remark = f"its files could not be read again: {error.message}"
            self._conditions.remark(key, remark)
        self._events.publish(ModelReloadFailed(key, error.reason, error.message))

    async def _look_for_faults(self, fresh: ModelVersion, device: str) -> None:
        """Let nothing be known of it that was so of other files, or may not be so any more."""
        key = fresh.key
        self._conditions.remark(key, None)
        self._findings.loaded(key)
        await self._findings.drop_outdated(key)
        if not device or self._findings.of(key) is None:
            return
        try:
            await self._verify(fresh)
        except NothingToCompare:
            await self._findings.clear(key)
        except ShoalError as error:  # it is known to be bad until somebody verifies it
            log.info("not_verified", model=str(key), reason=error.message)

    async def _replace(self, fresh: ModelVersion, before: ModelVersion) -> str:
        """Let `fresh` be served; returns where."""
        key = fresh.key
        with self._conditions.updating(key, "its files are read again"):
            self._distrust(key)
            if self._served_by(key) is None:
                repository = self._registry.repository
                await asyncio.to_thread(repository.verify_files, key.name, key.version, fresh.files)
                if self._pool.is_warm(key):  # of the files as they were
                    await self._pool.unload(key, reason=UnloadReason.REPLACED)
            resident = self._served_by(key)  # somebody may have asked for it meanwhile
            if resident is None:
                self._registry.adopt(fresh)
                self._pool.forget_failure(key)
                return ""
            device = self._device(fresh, before, resident)
            self._registry.open_next(fresh)
            now = fresh.serving.pinned
            await self._pool.replace(
                key,
                device,
                lambda: self._registry.adopt(fresh),
                pinned=None if now == before.serving.pinned else now,
            )
            return device

    def _served_by(self, key: ModelKey) -> Resident[LoadedModel] | None:
        """Its session, there or on its way in; None: there is none, or it leaves."""
        resident = self._pool.get(key)
        if resident is None or resident.state not in (State.LOADING, State.READY):
            return None
        return resident

    def _served(self, key: ModelKey) -> ModelVersion:
        """The version as requests get it now."""
        return self._session_of(key) or self._registry.version(key)

    def _session_of(self, key: ModelKey) -> ModelVersion | None:
        """What its session was made of; None: it has none."""
        resident = self._pool.get(key)
        return resident.session.version if resident and resident.session else None

    def _device(
        self, fresh: ModelVersion, before: ModelVersion, resident: Resident[LoadedModel]
    ) -> str:
        """Where it is, unless its manifest names another device than it did."""
        stays = fresh.serving.device == before.serving.device
        return self._placement.device_for(fresh, current=resident.device if stays else None)
