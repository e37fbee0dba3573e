"""What the store remembers of names and models: which records there are, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import structlog

from shoal_server.core import ModelKey, ModelRef, valid_device, valid_name
from shoal_server.errors import InvalidInput
from shoal_server.registry.aliases import Alias
from shoal_server.registry.labels import Labels
from shoal_server.registry.store import Change, Record, RecordStore

log = structlog.get_logger(__name__)

T = TypeVar("T")

_ALIAS, _PIN, _LABELS, _RESIDENT = "alias", "pin", "labels", "resident"
_IN_MEMORY = "pinned_in_memory"
_DEREGISTERED = "deregistered"


@dataclass(frozen=True, slots=True)
class RememberedNames:
    """What names mean, and is said of models, beyond what the files say."""

    aliases: Mapping[str, Alias]
    pins: Mapping[str, str]
    """Names of models to versions."""
    labels: Mapping[str, Labels]
    """Of models, by `name`, and of versions, by `name@version`."""
    deregistered: frozenset[str] = frozenset()
    """Names of the models that are neither served nor listed."""


NO_NAMES = RememberedNames({}, {}, {})


def remembered_names(store: RecordStore) -> RememberedNames:
    """Aliases, pins and labels as they were when the server last ran.

    A record that makes no sense is left out and logged: one of them is no reason not to
    serve the others.
    """
    return RememberedNames(
        aliases=read_records(store, _ALIAS, Alias.from_record),
        pins=read_records(store, _PIN, _read_pin),
        labels=read_records(store, _LABELS, Labels.from_record),
        deregistered=frozenset(read_records(store, _DEREGISTERED, _read_deregistered)),
    )


def alias_change(name: str, alias: Alias | None) -> Change:
    """To write an alias, or that it is no more."""
    return Change(_ALIAS, name, None if alias is None else alias.to_record())


def pin_change(name: str, version: str | None) -> Change:
    """To write what a model's name is pinned to, or that it is not."""
    return Change(_PIN, name, None if version is None else {"version": version})


def labels_change(ref: str, labels: Labels) -> Change:
    """To write what is said of a model or a version."""
    return Change(_LABELS, ref, labels.to_record())


def deregistered_change(name: str, is_deregistered: bool) -> Change:
    """To write that a model is neither served nor listed, or that it is again."""
    return Change(_DEREGISTERED, name, {} if is_deregistered else None)


@dataclass(frozen=True, slots=True)
class Former:
    """A version that was in memory."""

    key: ModelKey
    device: str
    uses: float
    """Requests; those of earlier runs of the server count less."""
    is_meant: bool
    """Whether its model's bare name means it."""


def former_residents(store: RecordStore) -> list[Former]:
    """What was in memory when the server ended, the most used first."""
    found = read_records(store, _RESIDENT, _read_former).values()
    return sorted(found, key=lambda each: (-each.uses, str(each.key)))


def former_change(key: ModelKey, former: Former | None) -> Change:
    """To write that a version is in memory, or that it is not."""
    if former is None:
        return Change(_RESIDENT, str(key), None)
    record = {"device": former.device, "uses": former.uses, "is_meant": former.is_meant}
    return Change(_RESIDENT, str(key), record)


def remembered_memory_pins(store: RecordStore) -> dict[ModelKey, bool]:
    """Versions that somebody pinned in memory, or, against their manifest, unpinned."""
    found = read_records(
        store, _IN_MEMORY, lambda text, record: (read_key(text), bool(record["pinned"]))
    )
    return dict(found.values())


def memory_pin_change(key: ModelKey, pinned: bool | None) -> Change:
    """To write whether a version is pinned in memory; None: as its manifest says."""
    return Change(_IN_MEMORY, str(key), None if pinned is None else {"pinned": pinned})


def read_key(text: str) -> ModelKey:
    """A version, as keys of records have it.

    Raises:
        ValueError: It is none.
        InvalidInput: The same.
    """
    ref = ModelRef.parse(text)
    if ref.version is None:
        raise ValueError(f"{text} has no version")
    return ModelKey(ref.name, ref.version)


def _read_former(text: str, record: Record) -> Former:
    device = valid_device(str(record["device"]), "device")
    uses = record["uses"]
    if not isinstance(uses, int | float):
        raise TypeError("uses is a number")
    return Former(read_key(text), device, float(uses), record.get("is_meant") is True)


def _read_deregistered(name: str, _: Record) -> str:
    return valid_name(name, "model")


def _read_pin(name: str, record: Record) -> str:
    valid_name(name, "model")
    return valid_name(str(record["version"]), "version")


def read_records(store: RecordStore, kind: str, parse: Callable[[str, Record], T]) -> dict[str, T]:
    """The records of a kind; one that makes no sense is left out and logged.

    Args:
        store: Has them.
        kind: Of the records.
        parse: From a key and its record; fails when they make none.
    """
    found = {}
    for key, record in store.records(kind).items():
        try:
            found[key] = parse(key, record)
        except (ValueError, KeyError, TypeError, IndexError, InvalidInput) as error:
            log.error("record_left_out", kind=kind, key=key, error=repr(error))
    return found
