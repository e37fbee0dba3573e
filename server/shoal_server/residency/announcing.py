"""What the pool does, told as events. See `resident.PoolObserver`."""

from __future__ import annotations

from collections.abc import Sequence

from shoal_server.core import ModelKey
from shoal_server.lifecycle import Load, LoadReason, Unloading
from shoal_server.registry.event_log import Publisher
from shoal_server.registry.events import ModelLoaded, ModelLoadFailed, ModelUnloaded
from shoal_server.residency.model_states import ModelStates
from shoal_server.residency.resident import PoolObserver


class PoolEvents:
    """Publishes loads and unloads, and the states that a model goes through with them."""

    def __init__(self, publisher: Publisher, states: ModelStates) -> None:
        self._publisher = publisher
        self._states = states

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        """Told by a metric."""

    def load_began(self, key: ModelKey, why: LoadReason) -> None:
        """A model is on its way into memory."""
        self._states.advance(key)

    def load_ended(self, load: Load) -> None:
        """A load ended, well or not."""
        if load.error is None:
            self._states.advance(load.key)
            self._publisher.publish(
                ModelLoaded(
                    load.key, load.device, load.size_bytes, load.seconds, load.why, load.from_warm
                )
            )
            return
        self._states.advance(load.key, because=load.error.message)
        self._publisher.publish(
            ModelLoadFailed(
                load.key,
                load.device,
                load.seconds,
                load.error.reason,
                load.error.message,
                load.why,
            )
        )

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        """A session is lent no more."""
        self._states.advance(key)

    def stayed(self, key: ModelKey) -> None:
        """A session that was to leave is lent again."""
        self._states.advance(key, because="who asked to unload it no longer waits")

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        """A session left memory."""
        self._states.advance(key)
        self._publisher.publish(ModelUnloaded(key, why))


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
