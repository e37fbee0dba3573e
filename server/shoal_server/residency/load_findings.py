"""What loads tell of versions: one that can not be loaded is known to be bad until it can."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

from shoal_server.core import ModelKey
from shoal_server.errors import ModelNotFound
from shoal_server.lifecycle import Load, LoadReason, Unloading
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.findings import Findings, FoundBy, is_of_the_version
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.registry.whole import WholeTasks


class LoadFindings:
    """A `PoolObserver`. Belongs to the event loop's thread."""

    def __init__(self, findings: Findings, registry: Registry, conditions: Conditions) -> None:
        """Wire it.

        Args:
            findings: Remember what is bad.
            registry: Lets a bare name mean another version than the one that is bad.
            conditions: Forget remarks about sessions that are no more.
        """
        self._findings = findings
        self._registry = registry
        self._conditions = conditions
        self._tasks = WholeTasks()
        # Loads that failed and are being noted; a later one that goes well takes them out.
        self._noting: dict[ModelKey, Load] = {}

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        """Says nothing of a version."""

    def load_began(self, key: ModelKey, why: LoadReason) -> None:
        """How it ends will tell."""

    def load_ended(self, load: Load) -> None:
        """Note what went wrong, or that nothing does any longer."""
        error = load.error
        if error is None:
            self._noting.pop(load.key, None)
            self._conditions.remark(load.key, None)
            self._findings.loaded(load.key)
        elif is_of_the_version(error):
            with suppress(ModelNotFound):  # it was deregistered meanwhile
                made_of = self._registry.version(load.key)
                self._noting[load.key] = load
                self._tasks.start(self._note(made_of, load, error.message))

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        """Says nothing of a version."""

    def stayed(self, key: ModelKey) -> None:
        """Says nothing of a version."""

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        """Says nothing of a version."""

    async def close(self) -> None:
        """Return when all is noted."""
        await self._tasks.ended()

    async def _note(self, made_of: ModelVersion, load: Load, reason: str) -> None:
        # Of manifests as they were before a version was prepared anew, nothing can be loaded.
        is_on_disk = await asyncio.to_thread(self._registry.prepared.has, made_of)
        if self._noting.get(load.key) is not load:
            return
        del self._noting[load.key]
        forget = partial(self._registry.forget_version, load.key)
        if is_on_disk:
            await self._findings.note(load.key, reason, FoundBy.LOADING, forget)
        else:
            forget()
