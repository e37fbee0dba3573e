"""Lets the server know a model, or its changes, at once; or know it no longer.

A deregistered model's files stay where they are. It is not listed, no name means it, and it
is not loaded, also after a restart, until it is registered again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from shoal_server.core import valid_name
from shoal_server.errors import FailedPrecondition, ModelNotFound
from shoal_server.lifecycle import UnloadReason
from shoal_server.loading import LoadedModel
from shoal_server.registry.event_log import Publisher
from shoal_server.registry.events import ModelDeregistered, ModelRegistered
from shoal_server.registry.index import ModelFiles, RepositoryIndex
from shoal_server.registry.registry import Registry
from shoal_server.registry.remembered import deregistered_change
from shoal_server.registry.store import RecordStore
from shoal_server.registry.whole import WholeTasks
from shoal_server.residency.pool import SessionPool

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Registration:
    """What registering a model changed."""

    added: bool
    """The server did not know it before."""
    changed: bool
    """Its files are others than those that the server knew."""
    outdated: bool
    """It is served from memory by another version than its name would mean now."""


class Registrar:
    """Registers and deregisters models. Belongs to the event loop's thread."""

    def __init__(
        self,
        registry: Registry,
        index: RepositoryIndex,
        pool: SessionPool[LoadedModel],
        store: RecordStore,
        events: Publisher,
        came: Callable[[str, Sequence[str]], None],
        changed: Callable[[str], None],
    ) -> None:
        """Wire it.

        Args:
            registry: Says what names mean.
            index: Knows the files.
            pool: Has the sessions.
            store: Remembers what is deregistered.
            events: Are told.
            came: Told of the versions that were read of a model.
            changed: Told of a model that can be served from now on, or can not.
        """
        self._registry = registry
        self._index = index
        self._pool = pool
        self._store = store
        self._events = events
        self._came = came
        self._changed = changed
        # Held by who changes what is registered: changes come one after the other.
        self._turn = asyncio.Lock()
        self._tasks = WholeTasks()

    async def register(self, name: str) -> Registration:
        """Know one folder of the repository as it is now.

        A name that is served from memory goes on as it is.

        Args:
            name: Of the folder.

        Raises:
            InvalidInput: It can not be a name.
            FailedPrecondition: An alias has that name.
            ModelNotFound: The repository has no such folder.
            NotPersisted: The disk refused; nothing was changed.
        """
        valid_name(name, "model")
        async with self._turn:
            self._check_no_alias(name)
            was_known = await self._index.knows(name)
            before, now = await self._index.look_at(name)
            if now is None:
                raise ModelNotFound(f"there is no model {name!r}", metadata={"model": name})
            was_deregistered = name in self._registry.deregistered
            if was_deregistered:
                await self._tasks.finish(self._take_back(name))
            self._came(name, now.versions)
            meant = self._registry.meanings.bare(name)
            added = was_deregistered or not (was_known or before or meant)
            changed = before is not None and before != now
            outdated = self._is_outdated(name, now)
            if not outdated and (added or changed) and not self._is_served(name):
                self._registry.forget(name)
        if added or changed:
            log.info("model_registered", model=name, added=added)
            self._events.publish(ModelRegistered(name, now.key, added))
            self._changed(name)
        return Registration(added, changed, outdated)

    async def deregister(self, name: str, *, force_after_s: float | None = None) -> None:
        """Neither serve nor list a model from now on; returns when its memory is free.

        A caller that leaves before that does not keep it in memory. Idempotent.

        Args:
            name: Of the model.
            force_after_s: Fail what is left of its requests after so long; None: waits
                for them.

        Raises:
            InvalidInput: It can not be a name.
            FailedPrecondition: It is an alias, or an alias stands for it, or is about to.
            ModelNotFound: There is no such model.
            NotPersisted: The disk refused; nothing was changed.
        """
        valid_name(name, "model")
        async with self._turn:
            if name not in self._registry.deregistered:
                await self._check_deregistrable(name)
                await self._tasks.finish(self._take_out(name))
        await asyncio.shield(self._tasks.start(self._unload(name, force_after_s)))

    async def close(self) -> None:
        """Wait for no more unloading."""
        await self._tasks.close()

    async def _take_back(self, name: str) -> None:
        await self._store.write(deregistered_change(name, False))
        self._registry.register(name)

    async def _take_out(self, name: str) -> None:
        with self._registry.claims.leaving(name):
            self._check_no_target(name)
            await self._store.write(deregistered_change(name, True))
            self._registry.deregister(name)
        await self._index.forget(name)
        log.info("model_deregistered", model=name)
        self._events.publish(ModelDeregistered(name))
        self._changed(name)

    async def _unload(self, name: str, force_after_s: float | None) -> None:
        held = [each.key for each in self._pool.residents()]
        held += [each.key for each in self._pool.warm()]
        keys = {key for key in held if key.name == name}
        why = UnloadReason.DEREGISTERED
        leave = (self._pool.unload(key, force_after_s=force_after_s, reason=why) for key in keys)
        await asyncio.gather(*leave)

    def _check_no_alias(self, name: str) -> None:
        if name in self._registry.aliases:
            raise FailedPrecondition(f"{name!r} is an alias", metadata={"alias": name})

    async def _check_deregistrable(self, name: str) -> None:
        self._check_no_alias(name)
        if not await asyncio.to_thread(self._registry.repository.has, name):
            raise ModelNotFound(f"there is no model {name!r}", metadata={"model": name})

    def _check_no_target(self, name: str) -> None:
        for alias in self._registry.aliases.values():
            for target in alias.targets:
                if target.key.name == name:
                    raise FailedPrecondition(
                        f"alias {alias.name!r} stands for {target.key}: switch or delete it first",
                        metadata={"alias": alias.name, "model": name},
                    )

    def _is_outdated(self, name: str, now: ModelFiles) -> bool:
        meant = self._registry.meanings.bare(name)
        return meant is not None and now.key != meant.key and self._is_served(name)

    def _is_served(self, name: str) -> bool:
        meant = self._registry.meanings.bare(name)
        return meant is not None and self._pool.get(meant.key) is not None
