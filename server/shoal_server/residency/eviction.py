"""Who must leave so that a session fits: one pure function."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from shoal_server.core import ModelKey


@dataclass(frozen=True, slots=True)
class Budget:
    """What a device may hold; None: no limit."""

    max_models: int | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Occupant:
    """A session that counts against a device's budget."""

    key: ModelKey
    size_bytes: int
    last_used_s: float
    evictable: bool
    """In memory, without a lease, not pinned, not already on its way out."""
    leaving: bool
    """On its way out: counted until its memory is free."""
    warm: bool = False
    """The warm form of a model: bytes, but no session."""


class Room(Enum):
    """Whether there is room, and what to do about it."""

    FITS = auto()
    EVICT = auto()
    """Close the victims, then it fits."""
    WAIT = auto()
    """Sessions on their way out make the room; nothing more to evict."""
    BUSY = auto()
    """Every session that could leave is in use or pinned."""
    NEVER = auto()
    """Larger than the whole budget."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `make_room` decided."""

    room: Room
    victims: tuple[ModelKey, ...] = ()
    warm_victims: tuple[ModelKey, ...] = ()
    """Warm forms that go before them."""


def make_room(occupants: Iterable[Occupant], need_bytes: int, budget: Budget) -> Plan:
    """Choose the victims for one more session of `need_bytes`.

    The least recently used go first, warm forms before sessions, no more of them than
    needed, and none while there is room, or when even all of them would not be enough.

    Args:
        occupants: All that is counted against the device.
        need_bytes: Size of the one that wants to come in.
        budget: Of the device.
    """
    if budget.max_bytes is not None and need_bytes > budget.max_bytes:
        return Plan(Room.NEVER)
    everyone = list(occupants)
    over_models = _over(sum(not each.warm for each in everyone) + 1, budget.max_models)
    over_bytes = _over(sum(each.size_bytes for each in everyone) + need_bytes, budget.max_bytes)
    if over_models <= 0 and over_bytes <= 0:
        return Plan(Room.FITS)

    for each in everyone:
        if each.leaving:
            over_models -= not each.warm
            over_bytes -= each.size_bytes
    chosen = []
    for each in sorted(everyone, key=lambda each: (not each.warm, each.last_used_s)):
        # A warm form makes room for bytes only.
        if each.evictable and (over_bytes > 0 or (over_models > 0 and not each.warm)):
            chosen.append(each)
            over_models -= not each.warm
            over_bytes -= each.size_bytes
    if over_models > 0 or over_bytes > 0:
        return Plan(Room.BUSY)
    victims = tuple(each.key for each in chosen if not each.warm)
    warm_victims = tuple(each.key for each in chosen if each.warm)
    return Plan(Room.EVICT, victims, warm_victims) if chosen else Plan(Room.WAIT)


def _over(used: int, limit: int | None) -> int:
    return 0 if limit is None else used - limit
