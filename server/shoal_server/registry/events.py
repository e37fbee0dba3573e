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
from shoal_server.registry.accuracy import Accuracy
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
    from_warm: bool = False
    """Whether it had stayed warm in RAM."""


@dataclass(frozen=True, slots=True)
class ModelUnloaded(ModelEvent):
    """A model left memory."""

    kind: ClassVar[str] = "model_unloaded"
    why: Unloading


@dataclass(frozen=True, slots=True)
class WarmModelReleased(ModelEvent):
    """What had stayed warm in RAM of a model went, without having been loaded."""

    kind: ClassVar[str] = "warm_model_released"
    size_bytes: int
    why: Unloading | None
    problem: str
    """Why it could not be kept, where there is no `why`."""


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


@dataclass(frozen=True, slots=True)
class ModelRegistered(Event):
    """A model, or changes of its files, became known to the server."""

    kind: ClassVar[str] = "model_registered"
    name: str
    key: ModelKey | None
    """What the name means; None when no version is prepared."""
    added: bool
    """Whether it was not known before; else its files had changed."""

    @property
    def subjects(self) -> frozenset[str]:
        """The model, and the version that its name means."""
        return frozenset({self.name} | ({str(self.key)} if self.key else set()))


@dataclass(frozen=True, slots=True)
class ModelDeregistered(Event):
    """A model is neither served nor listed any longer."""

    kind: ClassVar[str] = "model_deregistered"
    name: str

    @property
    def subjects(self) -> frozenset[str]:
        """The model."""
        return frozenset((self.name,))


@dataclass(frozen=True, slots=True)
class ModelVerified(ModelEvent):
    """A model's vectors were compared with those that are kept with it."""

    kind: ClassVar[str] = "model_verified"
    accuracy: Accuracy


@dataclass(frozen=True, slots=True)
class ModelReloaded(ModelEvent):
    """A model's files were read again."""

    kind: ClassVar[str] = "model_reloaded"
    device: str
    """Of its new session; empty: it is not in memory."""
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelReloadFailed(ModelEvent):
    """A model's files could not be read again; what was served before is served on."""

    kind: ClassVar[str] = "model_reload_failed"
    reason: str
    """Stable and machine-readable, as errors have it."""
    message: str


@dataclass(frozen=True, slots=True)
class ModelUpdated(Event):
    """A model's bare name means a newer version, which was found to be good."""

    kind: ClassVar[str] = "model_updated"
    before: ModelKey
    after: ModelKey
    accuracy: Accuracy | None
    """None: no vectors are kept with it."""

    @property
    def subjects(self) -> frozenset[str]:
        """The model, and both versions."""
        return frozenset((self.after.name, str(self.before), str(self.after)))


@dataclass(frozen=True, slots=True)
class ModelUpdateFailed(ModelEvent):
    """A newer version of a model could not be had, or is not served; `key` serves on."""

    kind: ClassVar[str] = "model_update_failed"
    candidate: str
    """The version that is not served; empty when none was prepared."""
    reason: str
    """In words."""


@dataclass(frozen=True, slots=True)
class ModelProfiled(ModelEvent):
    """A model was measured by batch size and length."""

    kind: ClassVar[str] = "model_profiled"
    device: str
    precision: str
    cells: int
    """Batches that were measured."""
    seconds: float
    max_batch_items: int
    """As suggested; 0: nothing can be."""
    max_batch_tokens: int


@dataclass(frozen=True, slots=True)
class PreloadDecided(ModelEvent):
    """A model is loaded before it is asked for."""

    kind: ClassVar[str] = "preload_decided"
    name: str
    """By which it is usually asked for."""
    device: str
    probability: float
    """Of a request for it within the horizon, in [0, 1]."""
    requests: float
    """Expected within the horizon."""
    horizon_s: float

    @property
    def subjects(self) -> frozenset[str]:
        """The name, the model and the version."""
        return frozenset((self.name, self.key.name, str(self.key)))


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
    UPDATE = "update"
    """A newer version was found to be good."""


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
    before_weights: tuple[int, ...] = ()
    """Of each, where they shared the traffic; else empty."""
    after_weights: tuple[int, ...] = ()

    @property
    def subjects(self) -> frozenset[str]:
        """The name, and the models and versions on either side."""
        keys = (*self.before, *self.after)
        return frozenset({self.name}.union(*({key.name, str(key)} for key in keys)))
