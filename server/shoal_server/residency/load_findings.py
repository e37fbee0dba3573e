"""What loads tell of versions: one that can not be loaded is known to be bad until it can."""

from __future__ import annotations

from shoal_server.core import ModelKey
from shoal_server.lifecycle import Load, LoadReason, Unloading
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.findings import Findings, FoundBy, is_of_the_version
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

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        """Says nothing of a version."""

    def load_began(self, key: ModelKey, why: LoadReason) -> None:
        """How it ends will tell."""

    def load_ended(self, load: Load) -> None:
        """Note what went wrong, or that nothing does any longer."""
        error = load.error
        if error is None:
            self._conditions.remark(load.key, None)
            self._findings.loaded(load.key)
        elif is_of_the_version(error):
            self._tasks.start(self._note(load.key, error.message))

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        """Says nothing of a version."""

    def stayed(self, key: ModelKey) -> None:
        """Says nothing of a version."""

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        """Says nothing of a version."""

    async def close(self) -> None:
        """Give up what is not noted yet."""
        await self._tasks.close()

    async def _note(self, key: ModelKey, reason: str) -> None:
        await self._findings.note(key, reason, FoundBy.LOADING)
        self._registry.forget_version(key)
