"""What can happen, one frozen dataclass a kind; whoever sees it happen publishes it.

    log.publish(ModelLoaded(key, device="cpu", size_bytes=…, seconds=…, why=…))

A new kind takes a class here, a message, a field of `Event` and a value of `EventKind` in the
protos, a line in the table of `api/event_messages.py` and one in docs/operations.md; tests
fail when one of them is missing. How `shoal models watch` words it, `cli/watch.py` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from shoal_server.core import ModelKey
from shoal_server.lifecycle import LoadReason, ModelState, PressureLevel, Unloading
from shoal_server.runtime_settings import SettingChange


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all kinds."""

    kind: ClassVar[str]
    """As the protos name the event's field; also in the metric and on the command line."""

    @property
    def subjects(self) -> frozenset[str]:
        """Models that it is about, as `name` and as `name@version`; none: the server."""
        return frozenset()


@dataclass(frozen=True, slots=True)
class ModelEvent(Event):
    """Base of those that are about one version of one model."""

    key: ModelKey

    @property
    def subjects(self) -> frozenset[str]:
        """The model and the version."""
        return frozenset((self.key.name, str(self.key)))


@dataclass(frozen=True, slots=True)
class ModelStateChanged(ModelEvent):
    """A model is in another state than it was; `before` is the `after` of the one before."""

    kind: ClassVar[str] = "model_state_changed"
    before: ModelState
    after: ModelState
    reason: str
    """In words, for people; empty when there is nothing to say."""


@dataclass(frozen=True, slots=True)
class ModelLoaded(ModelEvent):
    """A model came into memory and can serve."""

    kind: ClassVar[str] = "model_loaded"
    device: str
    size_bytes: int
    """Counted against the device's budget."""
    seconds: float
    """From the decision to load it, waiting for room included."""
    why: LoadReason


@dataclass(frozen=True, slots=True)
class ModelUnloaded(ModelEvent):
    """A model left memory."""

    kind: ClassVar[str] = "model_unloaded"
    why: Unloading


@dataclass(frozen=True, slots=True)
class ModelLoadFailed(ModelEvent):
    """A model could not be brought into memory."""

    kind: ClassVar[str] = "model_load_failed"
    device: str
    seconds: float
    """Until it failed."""
    reason: str
    """Stable and machine-readable, as errors have it."""
    message: str
    why: LoadReason


@dataclass(frozen=True, slots=True)
class PressureChanged(Event):
    """Memory of a device is shorter than it was, or no longer short."""

    kind: ClassVar[str] = "pressure_changed"
    device: str
    before: PressureLevel
    after: PressureLevel
    used: float
    """Share of its memory that is in use, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class SettingsChanged(Event):
    """Settings were changed while the server runs."""

    kind: ClassVar[str] = "settings_changed"
    changes: tuple[SettingChange, ...]


class SwitchCause(StrEnum):
    """Why a name means something else."""

    SWITCH = "switch"
    """Somebody called SwitchModel."""
    ROLLBACK = "rollback"
    """Somebody called RollbackModel."""
    POLICY = "policy"
    """Somebody called SetVersionPolicy."""
    DELETED = "deleted"
    """Somebody called DeleteAlias."""


@dataclass(frozen=True, slots=True)
class NameSwitched(Event):
    """An alias, or a model's bare name, means other versions than it did."""

    kind: ClassVar[str] = "name_switched"
    name: str
    cause: SwitchCause
    before: tuple[ModelKey, ...]
    """Empty for a new alias, and for a name that nobody had asked for."""
    after: tuple[ModelKey, ...]
    """Empty for an alias that is no more."""
    warm_s: float
    """Looking up and loading; requests got the old versions meanwhile."""
    switch_s: float
    """From all being warm to the name meaning it: the write to disk."""

    @property
    def subjects(self) -> frozenset[str]:
        """The name, and the models and versions on either side."""
        keys = (*self.before, *self.after)
        return frozenset({self.name}.union(*({key.name, str(key)} for key in keys)))
