"""Which versions are known to be bad, and why: it outlasts the server.

    found by loading     it could not be loaded; holds until it can be
    found by verifying   it gave other vectors than are kept with it; holds until it passes

Either holds only as long as the version's files are what they were. A bare name that means
the newest version passes over those that are known to be bad (`default_sound`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import sha256

from shoal_server.core import ModelKey
from shoal_server.errors import AllocationFailed, ModelLoadFailed, NotPersisted, ShoalError
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.manifest import VERSION_FILE, ModelManifest
from shoal_server.registry.remembered import read_key, read_records
from shoal_server.registry.repository import ModelRepository, default_of
from shoal_server.registry.store import Change, Record, RecordStore
from shoal_server.registry.whole import WholeTasks

_FINDING = "finding"


def is_of_the_version(error: ShoalError) -> bool:
    """Whether a load failed for what a version is, and not for want of memory."""
    return isinstance(error, ModelLoadFailed) and not isinstance(error, AllocationFailed)


class FoundBy(StrEnum):
    """How it was found out; the same refutes it."""

    LOADING = "loading"
    VERIFYING = "verifying"


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a version is known to be bad."""

    reason: str
    by: FoundBy
    files: str
    """What its files were: see `fingerprint`."""


KnownBad = Mapping[str, Finding]
"""Of one model, by version. Never changed: threads may have it."""


class Findings:
    """Remembers what was found. Belongs to the event loop's thread."""

    def __init__(
        self, repository: ModelRepository, conditions: Conditions, store: RecordStore
    ) -> None:
        """Begin with what the store remembers.

        Args:
            repository: Has the files.
            conditions: Show what was found.
            store: Of the repository.
        """
        self._repository = repository
        self._conditions = conditions
        self._store = store
        self._found: dict[str, KnownBad] = {}
        self._tasks = WholeTasks()
        for key, finding in read_records(store, _FINDING, _read).values():
            self._set(key, finding)

    @property
    def by_model(self) -> Mapping[str, KnownBad]:
        """What is known, of models of which anything is; follows what is found later."""
        return self._found

    def of(self, key: ModelKey) -> Finding | None:
        """What is known of a version; None: nothing bad."""
        return self._found.get(key.name, {}).get(key.version)

    async def note(self, key: ModelKey, reason: str, by: FoundBy) -> None:
        """From now on, `key` is known to be bad."""
        files = await self._fingerprint(key)
        before = self.of(key)
        # What can be loaded again may give wrong vectors all the same.
        if (
            by is FoundBy.LOADING
            and before
            and (before.by, before.files)
            == (
                FoundBy.VERIFYING,
                files,
            )
        ):
            return
        await self._keep(key, Finding(reason, by, files))

    async def clear(self, key: ModelKey) -> None:
        """It was found to be good. Idempotent."""
        await self._keep(key, None)

    def loaded(self, key: ModelKey) -> None:
        """It was loaded, or its files were found to be whole."""
        found = self.of(key)
        if found is not None and found.by is FoundBy.LOADING:
            # At once: a model that was just loaded is not shown as bad for a moment.
            self._set(key, None)
            self._tasks.start(self._write(key))

    async def drop_outdated(self, *keys: ModelKey) -> None:
        """Forget what was found of files that are others now, or gone.

        Args:
            keys: Versions; none: all of which anything is known.
        """
        known = [
            ModelKey(name, version) for name, found in self._found.items() for version in found
        ]
        for key in keys or known:
            found = self.of(key)
            if found is not None and found.files != await self._fingerprint(key):
                await self.clear(key)

    async def close(self) -> None:
        """Give up what is not written yet."""
        await self._tasks.close()

    async def _fingerprint(self, key: ModelKey) -> str:
        return await asyncio.to_thread(fingerprint, self._repository, key)

    async def _keep(self, key: ModelKey, finding: Finding | None) -> None:
        if finding != self.of(key):
            self._set(key, finding)
            await self._write(key)

    async def _write(self, key: ModelKey) -> None:
        with suppress(NotPersisted):  # the store says it in the log
            await self._store.write(_change(key, self.of(key)))

    def _set(self, key: ModelKey, finding: Finding | None) -> None:
        found = {k: v for k, v in self._found.get(key.name, {}).items() if k != key.version}
        if finding is not None:
            found[key.version] = finding
        self._found[key.name] = found
        if not found:
            del self._found[key.name]
        if finding is None:
            self._conditions.mend(key)
        else:
            self._conditions.fault(key, finding.reason)


def default_sound(
    repository: ModelRepository,
    name: str,
    manifest: ModelManifest,
    versions: Sequence[str],
    found: KnownBad,
) -> str:
    """The version that a bare name means: the manifest's, else the newest not known to be bad.

    Where all are, the newest. Blocks on the disk where anything is known.

    Args:
        repository: Has the files.
        name: Of the model.
        manifest: Of it.
        versions: Its prepared ones, oldest first.
        found: What is known of them; what was found of other files counts for nothing.

    Raises:
        ModelNotFound: There is no such version.
    """
    if manifest.default_version is None:
        sound = [
            each
            for each in versions
            if each not in found
            or found[each].files != fingerprint(repository, ModelKey(name, each))
        ]
        versions = sound or versions
    return default_of(name, manifest, versions)


def fingerprint(repository: ModelRepository, key: ModelKey) -> str:
    """Another one when a version's files are others; blocks on the disk.

    SHA-256 over its manifest, and names, sizes and times of all its files: to read those
    would take as long as to load it.
    """
    folder = repository.model_folder(key.name) / key.version
    digest = sha256()
    with suppress(OSError):
        digest.update((folder / VERSION_FILE).read_bytes())
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)  # noqa: PTH118  (as os.walk gives them)
            with suppress(OSError):
                seen = os.stat(path)  # noqa: PTH116
                relative = os.path.relpath(path, folder)
                digest.update(f"\0{relative}\0{seen.st_size}\0{seen.st_mtime_ns}".encode())
    return digest.hexdigest()


def _change(key: ModelKey, finding: Finding | None) -> Change:
    return Change(_FINDING, str(key), None if finding is None else asdict(finding))


def _read(text: str, record: Record) -> tuple[ModelKey, Finding]:
    by = FoundBy(str(record["by"]))
    return read_key(text), Finding(str(record["reason"]), by, str(record["files"]))
