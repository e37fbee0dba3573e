"""Changes of what an operator says of models: tags and deprecations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelNotFound
from shoal_server.registry.labels import Labels, new_deprecation
from shoal_server.registry.registry import Registry
from shoal_server.registry.remembered import labels_change
from shoal_server.registry.store import RecordStore
from shoal_server.registry.whole import WholeTasks
from shoal_server.residency.model_states import ModelStates


class Labeller:
    """Changes labels. Belongs to the event loop's thread."""

    def __init__(
        self,
        registry: Registry,
        store: RecordStore,
        states: ModelStates,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Wire it.

        Args:
            registry: Has the labels.
            store: Remembers them.
            states: Follow deprecations.
            wall_clock: Seconds since the epoch.
        """
        self._registry = registry
        self._store = store
        self._states = states
        self._wall_clock = wall_clock
        self._versions = registry.repository.versions
        # Held from the reading of labels to their writing.
        self._turn = asyncio.Lock()
        self._tasks = WholeTasks()

    async def tag(self, text: str, add: Sequence[str], remove: Sequence[str]) -> Labels:
        """Give a model, or one version of it, tags, and take others away.

        Raises:
            InvalidInput: One can not be a tag, or they are too many.
            ModelNotFound: There is no such model or version.
            NotPersisted: The disk refused.
        """
        return await self._change(text, lambda labels: labels.tagged(add, remove))

    async def deprecate(
        self, text: str, *, message: str, replacement: str, refuse_after_s: float | None
    ) -> Labels:
        """Let callers of a model, or of one version of it, be told to use another.

        Raises:
            ModelNotFound: There is no such model or version, or no such replacement.
            ShoalError: As `tag`.
        """
        deprecation = new_deprecation(self._wall_clock(), message, replacement, refuse_after_s)
        if replacement and replacement not in self._registry.aliases:
            await self._check_replacement(ModelRef.parse(replacement))
        return await self._change(text, lambda labels: Labels(labels.tags, deprecation))

    async def undeprecate(self, text: str) -> Labels:
        """Let it be as if it had never been deprecated.

        Raises:
            ShoalError: As `tag`.
        """
        return await self._change(text, lambda labels: Labels(labels.tags))

    async def _check_replacement(self, ref: ModelRef) -> None:
        try:
            await self._registry.check_exists(ref)
        except ModelNotFound as error:
            raise ModelNotFound(
                f"deprecation.replacement: {error.message}", metadata=error.metadata
            ) from error

    async def _change(self, text: str, change: Callable[[Labels], Labels]) -> Labels:
        ref = ModelRef.parse(text)
        await self._registry.check_exists(ref)
        async with self._turn:
            labels = change(self._registry.labelled.of(ref))
            await self._tasks.finish(self._commit(ref, labels))
            return labels

    async def _commit(self, ref: ModelRef, labels: Labels) -> None:
        await self._store.write(labels_change(str(ref), labels))
        if labels.deprecation == self._registry.labelled.of(ref).deprecation:
            self._registry.label(ref, labels)
            return
        # Also those that nobody has asked for yet.
        versions = [] if ref.version else await asyncio.to_thread(self._versions, ref.name)
        self._registry.label(ref, labels)
        self._states.came(ref.name, versions)
        self._states.noted(ModelKey(ref.name, ref.version or ""))
