"""What the pool does, told as events. See `resident.PoolObserver`."""

from __future__ import annotations

from collections.abc import Sequence

from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition
from shoal_server.lifecycle import Load, LoadReason, ModelState, Unloading
from shoal_server.registry.event_log import Publisher
from shoal_server.registry.events import (
    ModelLoaded,
    ModelLoadFailed,
    ModelStateChanged,
    ModelUnloaded,
)
from shoal_server.residency.resident import PoolObserver


class PoolEvents:
    """Publishes loads and unloads, and the states that a model goes through with them."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        # What was told last, so that each change begins where the one before ended.
        self._states: dict[ModelKey, ModelState] = {}

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        """Told by a metric."""

    def load_began(self, key: ModelKey, why: LoadReason) -> None:
        """A model is on its way into memory."""
        self._change(key, ModelState.LOADING, str(why))

    def load_ended(self, load: Load) -> None:
        """A load ended, well or not."""
        if load.error is None:
            loaded = ModelLoaded(load.key, load.device, load.size_bytes, load.seconds, load.why)
            self._change(load.key, ModelState.READY, "")
            self._publisher.publish(loaded)
            return
        failed = ModelLoadFailed(
            load.key,
            load.device,
            load.seconds,
            load.error.reason,
            load.error.message,
            load.why,
        )
        # Of the others nothing is remembered: the next request tries again.
        is_remembered = isinstance(load.error, FailedPrecondition)
        after = ModelState.FAILED if is_remembered else ModelState.UNLOADED
        self._change(load.key, after, load.error.message)
        self._publisher.publish(failed)

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        """A session is lent no more."""
        self._change(key, ModelState.UNLOADING, str(why))

    def stayed(self, key: ModelKey) -> None:
        """A session that was to leave is lent again."""
        self._change(key, ModelState.READY, "who asked to unload it no longer waits")

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        """A session left memory."""
        self._change(key, ModelState.UNLOADED, str(why))
        self._publisher.publish(ModelUnloaded(key, why))

    def _change(self, key: ModelKey, after: ModelState, reason: str) -> None:
        before = self._states.pop(key, ModelState.UNLOADED)
        if after is not ModelState.UNLOADED:
            self._states[key] = after
        self._publisher.publish(ModelStateChanged(key, before, after, reason))


class ObserverGroup:
    """Tells several observers, in this order."""

    def __init__(self, observers: Sequence[PoolObserver]) -> None:
        self._observers = observers

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        """So much is counted on the device now."""
        for each in self._observers:
            each.resident_changed(device, models, size_bytes)

    def load_began(self, key: ModelKey, why: LoadReason) -> None:
        """A model is on its way into memory."""
        for each in self._observers:
            each.load_began(key, why)

    def load_ended(self, load: Load) -> None:
        """A load ended, well or not."""
        for each in self._observers:
            each.load_ended(load)

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        """A session is lent no more."""
        for each in self._observers:
            each.unloading(key, why)

    def stayed(self, key: ModelKey) -> None:
        """A session that was to leave is lent again."""
        for each in self._observers:
            each.stayed(key)

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        """A session left memory."""
        for each in self._observers:
            each.unloaded(key, why)
