"""Which failures the API documents, by operation (docs/operations.md, "Errors").

Anything else that fails is a finding. Some failures are documented only while somebody
brings them about: they count as such only when that was going on.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from loadtests.soak.timeline import Timeline


@dataclass(frozen=True, slots=True, order=True)
class Failure:
    """How a call ended that was not answered."""

    code: str
    """Of gRPC."""
    reason: str
    """Of `ErrorInfo`; empty when there was none."""

    def __str__(self) -> str:
        return f"{self.code}/{self.reason}" if self.reason != self.code else self.code


NO_ROOM = Failure("RESOURCE_EXHAUSTED", "OVERLOADED")
NOT_NOW = Failure("FAILED_PRECONDITION", "FAILED_PRECONDITION")
NOT_THERE = Failure("NOT_FOUND", "MODEL_NOT_FOUND")
GOING_AWAY = Failure("UNAVAILABLE", "UNAVAILABLE")

MANAGING: Mapping[str, frozenset[Failure]] = {
    # What loads may find everything in use or pinned, for longer than eviction_wait_s.
    "LoadModel": frozenset({NO_ROOM}),
    "SwitchModel": frozenset({NO_ROOM}),
    "SetVersionPolicy": frozenset({NO_ROOM}),
    # Or somebody unloads the model meanwhile.
    "ReloadModel": frozenset({NO_ROOM, NOT_NOW}),
    # Or there is nothing to go back to.
    "RollbackModel": frozenset({NO_ROOM, NOT_NOW}),
    # A model that is not in memory can not be pinned.
    "PinModel": frozenset({NOT_NOW}),
    "VerifyModel": frozenset({NO_ROOM}),
    # Or the model leaves memory meanwhile; of profiles there is one at a time.
    "ProfileModel": frozenset({NO_ROOM, NOT_NOW}),
    # Or the name is pinned to a version.
    "UpdateModel": frozenset({NO_ROOM, NOT_NOW}),
    # An alias stands for the model.
    "DeregisterModel": frozenset({NOT_NOW}),
}
"""Of operations that are not here: none."""
# Of operations, those that run the model.
_RUNNING = frozenset({"VerifyModel", "ProfileModel", "UpdateModel"})
# Of operations, those that let a name mean a version.
_NAMING = frozenset({"SwitchModel", "SetVersionPolicy"})


@dataclass(frozen=True, slots=True)
class Unloading:
    """Somebody unloads a model by force: requests that use it fail with UNAVAILABLE."""


@dataclass(frozen=True, slots=True)
class Refusing:
    """A version is deprecated and its date is past: requests for it are refused."""


@dataclass(frozen=True, slots=True)
class Deregistering:
    """A model is deregistered: operations do not find it."""


@dataclass(frozen=True, slots=True)
class Gone:
    """An alias was deleted, or a model is deregistered: requests do not find it."""

    name: str


def is_documented(
    failure: Failure, name: str, timeline: Timeline, asked_s: float, answered_s: float
) -> bool:
    """Whether a request for vectors may have ended so.

    Args:
        failure: How it ended.
        name: Of the model, as it was asked for.
        timeline: What was going on.
        asked_s: When it was sent, on the monotonic clock.
        answered_s: When it was answered.
    """
    if failure == NO_ROOM:
        return True
    excuse = {GOING_AWAY: Unloading(), NOT_NOW: Refusing(), NOT_THERE: Gone(name)}.get(failure)
    return excuse is not None and timeline.held(excuse, asked_s, answered_s)


def is_documented_of(
    method: str, failure: Failure, timeline: Timeline, asked_s: float, answered_s: float
) -> bool:
    """Whether an operation may have ended so; see `is_documented`."""
    if failure in MANAGING.get(method, ()):
        return True
    excuses: dict[Failure, Hashable] = {NOT_THERE: Deregistering()}
    if method in _RUNNING:
        excuses |= {GOING_AWAY: Unloading(), NOT_NOW: Refusing()}
    if method in _NAMING:
        excuses[NOT_NOW] = Refusing()
    excuse = excuses.get(failure)
    return excuse is not None and timeline.held(excuse, asked_s, answered_s)
