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


@dataclass(frozen=True, slots=True)
class RememberedNames:
    """What names mean, and is said of models, beyond what the files say."""

    aliases: Mapping[str, Alias]
    pins: Mapping[str, str]
    """Names of models to versions."""
    labels: Mapping[str, Labels]
    """Of models, by `name`, and of versions, by `name@version`."""


NO_NAMES = RememberedNames({}, {}, {})


def remembered_names(store: RecordStore) -> RememberedNames:
    """Aliases, pins and labels as they were when the server last ran.

    A record that makes no sense is left out and logged: one of them is no reason not to
    serve the others.
    """
    return RememberedNames(
        aliases=_read(store, _ALIAS, Alias.from_record),
        pins=_read(store, _PIN, _read_pin),
        labels=_read(store, _LABELS, Labels.from_record),
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


@dataclass(frozen=True, slots=True)
class Former:
    """A version that was in memory."""

    key: ModelKey
    device: str
    pinned: bool
    uses: float
    """Requests; those of earlier runs of the server count less."""


def former_residents(store: RecordStore) -> list[Former]:
    """What was in memory when the server ended, the most used first."""
    found = _read(store, _RESIDENT, _read_former).values()
    return sorted(found, key=lambda each: (-each.uses, str(each.key)))


def former_change(key: ModelKey, former: Former | None) -> Change:
    """To write that a version is in memory, or that it is not."""
    if former is None:
        return Change(_RESIDENT, str(key), None)
    record = {"device": former.device, "pinned": former.pinned, "uses": former.uses}
    return Change(_RESIDENT, str(key), record)


def _read_former(text: str, record: Record) -> Former:
    ref = ModelRef.parse(text)
    if ref.version is None:
        raise ValueError(f"{text} has no version")
    device = valid_device(str(record["device"]), "device")
    uses = record["uses"]
    if not isinstance(uses, int | float):
        raise TypeError("uses is a number")
    return Former(ModelKey(ref.name, ref.version), device, bool(record["pinned"]), float(uses))


def _read_pin(name: str, record: Record) -> str:
    valid_name(name, "model")
    return valid_name(str(record["version"]), "version")


def _read(store: RecordStore, kind: str, parse: Callable[[str, Record], T]) -> dict[str, T]:
    found = {}
    for key, record in store.records(kind).items():
        try:
            found[key] = parse(key, record)
        except (ValueError, KeyError, TypeError, IndexError, InvalidInput) as error:
            log.error("record_left_out", kind=kind, key=key, error=repr(error))
    return found
