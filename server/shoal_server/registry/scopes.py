"""What the disk says beyond what bare names mean: of every version, of what was deregistered.

What bare names mean is remembered by `registry/index.py`; what was deregistered is read anew
each time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelNotFound
from shoal_server.registry.findings import NOTHING_FOUND, KnownBad
from shoal_server.registry.index import (
    ModelFiles,
    Seen,
    inner_paths_of,
    read_files,
    see_all,
    were_settled,
)
from shoal_server.registry.prepared import PreparedVersions


class Scope(StrEnum):
    """What a list is of."""

    NAMES = "names"
    """Each model, at the version that its bare name means."""
    EVERY_VERSION = "every_version"
    """Each version of each model by itself."""
    DEREGISTERED = "deregistered"
    """Only what could be registered again."""


@dataclass(frozen=True, slots=True)
class OtherVersion:
    """A version that its model's bare name does not mean, as it was when it was read."""

    files: ModelFiles
    meant: ModelFiles
    """The model at the version that its name meant; another one where it was written to."""
    paths: tuple[str, ...]
    seen: tuple[Seen, ...] | None
    """Of these paths; None: it is read again in any case."""


class OtherVersions:
    """Remembers the versions that bare names do not mean. Belongs to the event loop's thread."""

    def __init__(self, prepared: PreparedVersions) -> None:
        """Nothing is read yet.

        Args:
            prepared: Reads them.
        """
        self._prepared = prepared
        # Never changed: threads may have it.
        self._known: Mapping[ModelKey, OtherVersion] = {}

    async def look(self, models: Mapping[str, ModelFiles]) -> Mapping[ModelKey, OtherVersion]:
        """All as the disk has them now, by name and age; only what was written to is read.

        Args:
            models: What was found by name, each at the version that its name means.
        """
        self._known = await asyncio.to_thread(_read_others, self._prepared, models, self._known)
        return self._known


def _read_others(
    prepared: PreparedVersions,
    models: Mapping[str, ModelFiles],
    before: Mapping[ModelKey, OtherVersion],
) -> Mapping[ModelKey, OtherVersion]:
    read = {}
    for name, meant in models.items():
        for version in meant.versions:
            if meant.key is not None and version == meant.key.version:
                continue
            key = ModelKey(name, version)
            known = before.get(key)
            if known is None or known.meant is not meant or see_all(known.paths) != known.seen:
                known = _read_other(prepared, key, meant)
            if known is not None:
                read[key] = known
    return read


def _read_other(
    prepared: PreparedVersions, key: ModelKey, meant: ModelFiles
) -> OtherVersion | None:
    at_ns, ref = time.time_ns(), ModelRef(key.name, key.version)
    paths = inner_paths_of(f"{prepared.repository.root}/{key.name}/{key.version}")
    # Before it is read: what is written meanwhile shows at the next look.
    seen = see_all(paths)
    try:
        files = read_files(prepared, ref, ref, key, NOTHING_FOUND, meant.versions)
    except ModelNotFound:  # it was removed meanwhile
        return None
    except OSError as error:
        problem = f"its files can not be read: {error.strerror}"
        files = replace(
            meant, key=key, manifest=None, chosen=None, capabilities=None, problem=problem
        )
        # Permissions may change without a trace in these times.
        return OtherVersion(files, meant, paths, None)
    return OtherVersion(files, meant, paths, seen if were_settled(seen, at_ns) else None)


def read_deregistered(
    prepared: PreparedVersions, models: Iterable[tuple[ModelRef, ModelRef, KnownBad]]
) -> list[tuple[str, ModelFiles]]:
    """Models that were deregistered and whose folders are there. Blocks on the disk.

    Args:
        prepared: Reads them.
        models: Each as it would be named, with the version that it is pinned to, and which
            of its versions are known to be bad.
    """
    read = []
    for ref, pinned, found in models:
        try:
            read.append((ref.name, read_files(prepared, ref, pinned, None, found)))
        except (ModelNotFound, OSError):  # nothing that could be registered again
            continue
    return read
