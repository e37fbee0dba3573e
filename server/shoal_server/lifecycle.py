"""A model's life, as it is told: its states, and why it comes into memory and leaves it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from shoal_server.core import ModelKey
from shoal_server.errors import ShoalError


class ModelState(StrEnum):
    """Where a model is in its life, as callers see it."""

    REGISTERED = "registered"
    """The server knows it; it is not in memory."""
    DOWNLOADING = "downloading"
    """Files of it, or of its next version, are being fetched."""
    LOADING = "loading"
    """On its way into memory."""
    READY = "ready"
    """In memory."""
    UPDATING = "updating"
    """It, or its successor, is being made ready to be served; what is in memory serves."""
    UNLOADING = "unloading"
    """No new work; waits for its leases, then frees its memory."""
    ERROR = "error"
    """It could not be loaded, its files are broken, or it was found wrong."""
    DEPRECATED = "deprecated"
    """It would be registered or ready, and should not be used any longer."""


class LoadReason(StrEnum):
    """Why a session comes into memory."""

    REQUEST = "request"
    """A request needs it."""
    ASKED = "asked"
    """Somebody called for it: LoadModel, or another call that loads."""
    START = "start"
    """The settings name it for the server's start."""
    RESTORED = "restored"
    """It was in memory when the server ended."""
    SWITCHED = "switched"
    """A name is to mean it: a switch, a rollback, a version policy or an update."""
    PRELOADED = "preloaded"
    """It is usually wanted soon."""


class UnloadReason(StrEnum):
    """Why a session leaves memory."""

    EVICTED = "evicted"
    """To make room for others."""
    ASKED = "asked"
    """Somebody called UnloadModel."""
    SWITCHED = "switched"
    """No name means it any longer: a switch, a rollback, a version policy or an update."""
    REPLACED = "replaced"
    """Its files were read again, and what was made of them takes its place."""
    REJECTED = "rejected"
    """It was loaded to be updated to, and was found not to be good."""
    DEREGISTERED = "deregistered"
    """The server is to know it no longer."""
    IDLE = "idle"
    """Nobody used it for so long."""
    KEEP_ALIVE = "keep_alive"
    """Nobody used it for as long as its last request wanted it kept."""
    PRESSURE = "pressure"
    """Memory was short on the machine."""
    SHUTDOWN = "shutdown"
    """The server stops."""


@dataclass(frozen=True, slots=True)
class Unloading:
    """Why a session leaves memory, with what belongs to it."""

    reason: UnloadReason
    made_room_for: ModelKey | None = None
    """Of an eviction, where one model was the cause."""
    stays_warm: bool = False
    """Whether its files stay in RAM, so that it is back on its GPU sooner."""

    def __str__(self) -> str:
        if self.made_room_for is not None:
            return f"{self.reason} to make room for {self.made_room_for}"
        return str(self.reason)


@dataclass(frozen=True, slots=True)
class Load:
    """A load that ended."""

    key: ModelKey
    device: str
    why: LoadReason
    seconds: float
    """From the decision to load, waiting for room included."""
    size_bytes: int
    """Measured; expected, when it failed."""
    error: ShoalError | None = None
    from_warm: bool = False
    """Whether it was made of a warm form: no file was read."""


@dataclass(frozen=True, slots=True)
class WarmRelease:
    """A warm form that left RAM without having been loaded."""

    key: ModelKey
    size_bytes: int
    why: Unloading | None
    problem: str = ""
    """Why it could not be kept, where there is no `why`."""

    def __str__(self) -> str:
        return str(self.why) if self.why is not None else self.problem


class PressureLevel(IntEnum):
    """How short memory is on a device, and what has to be done about it."""

    NORMAL = 0
    ELEVATED = 1
    """Release what nobody uses, the least recently used first, until use is low again."""
    CRITICAL = 2
    """The same, and load nothing."""
