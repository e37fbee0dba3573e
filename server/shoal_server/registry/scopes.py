"""What the disk says beyond what bare names mean: of every version, of what was deregistered.

Read anew each time; what bare names mean is remembered (`registry/index.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelNotFound
from shoal_server.registry.findings import KnownBad
from shoal_server.registry.index import ModelFiles, read_files
from shoal_server.registry.registry import NOTHING_FOUND, Registry


class Scope(StrEnum):
    """What a list is of."""

    NAMES = "names"
    """Each model, at the version that its bare name means."""
    EVERY_VERSION = "every_version"
    """Each version of each model by itself."""
    DEREGISTERED = "deregistered"
    """Only what could be registered again."""


def read_other_versions(
    registry: Registry, models: Mapping[str, ModelFiles]
) -> list[tuple[str, ModelFiles]]:
    """The versions that bare names do not mean, by name and age. Blocks on the disk.

    Args:
        registry: Has the repository.
        models: What was found by name, each at the version that its name means.
    """
    read = []
    for name, meant in models.items():
        for version in meant.versions:
            if meant.key is not None and version == meant.key.version:
                continue
            key, ref = ModelKey(name, version), ModelRef(name, version)
            try:
                files = read_files(registry, ref, ref, key, NOTHING_FOUND)
            except ModelNotFound:  # it was removed meanwhile
                continue
            except OSError as error:
                problem = f"its files can not be read: {error.strerror}"
                files = replace(
                    meant, key=key, manifest=None, chosen=None, capabilities=None, problem=problem
                )
            read.append((name, files))
    return read


def read_deregistered(
    registry: Registry, models: Iterable[tuple[ModelRef, ModelRef, KnownBad]]
) -> list[tuple[str, ModelFiles]]:
    """Models that were deregistered and whose folders are there. Blocks on the disk.

    Args:
        registry: Has the repository.
        models: Each as it would be named, with the version that it is pinned to, and which
            of its versions are known to be bad.
    """
    read = []
    for ref, pinned, found in models:
        try:
            read.append((ref.name, read_files(registry, ref, pinned, None, found)))
        except (ModelNotFound, OSError):  # nothing that could be registered again
            continue
    return read
