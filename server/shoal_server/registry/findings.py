"""Which versions are known to be bad, and why: it outlasts the server.

    found by loading     it could not be loaded; holds until it can be
    found by verifying   it gave other vectors than are kept with it; holds until it passes

Either holds only as long as the version's files are what they were. A bare name that means
the newest version passes over those that are known to be bad (`default_sound`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import sha256
from types import MappingProxyType

from shoal_server.core import ModelKey
from shoal_server.errors import ModelNotFound, ModelUnusable, NotPersisted, ShoalError
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.manifest import VERSION_FILE, ModelManifest
from shoal_server.registry.remembered import read_key, read_records
from shoal_server.registry.repository import ModelRepository, default_of
from shoal_server.registry.store import Change, Record, RecordStore
from shoal_server.registry.whole import WholeTasks

_FINDING = "finding"


def is_of_the_version(error: ShoalError) -> bool:
    """Whether a load failed for what a version's files are.

    Not for want of memory or of file handles, nor for a device: that passes.
    """
    return isinstance(error, ModelUnusable)


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


@dataclass(frozen=True, slots=True, eq=False)
class _Noting:
    """A finding whose files are being looked at."""

    key: ModelKey
    by: FoundBy


KnownBad = Mapping[str, Finding]
"""Of one model, by version. Never changed: threads may have it."""
NOTHING_FOUND: KnownBad = MappingProxyType({})


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
        # Taken out by what refutes them meanwhile.
        self._noting: set[_Noting] = set()
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

    async def note(
        self,
        key: ModelKey,
        reason: str,
        by: FoundBy,
        known: Callable[[], None] = lambda: None,
    ) -> None:
        """From now on, `key` is known to be bad, unless that is refuted meanwhile.

        Args:
            key: The version.
            reason: In words.
            by: How it was found out.
            known: Called when it is so, before it is on disk.
        """
        noting = _Noting(key, by)
        self._noting.add(noting)
        try:
            files = await self._fingerprint(key)
            if noting not in self._noting:
                return
        finally:
            self._noting.discard(noting)
        before = self.of(key)
        is_worse = before is not None and before.by is FoundBy.VERIFYING and before.files == files
        if by is FoundBy.LOADING and is_worse:
            return  # what can be loaded again may give wrong vectors all the same
        finding = Finding(reason, by, files)
        if finding != before:
            self._set(key, finding)
        known()
        if finding != before:
            await self._write(key)

    async def clear(self, key: ModelKey) -> None:
        """It was found to be good. Idempotent."""
        self._refute(key, *FoundBy)
        await self._drop(key)

    def loaded(self, key: ModelKey) -> None:
        """It was loaded, or its files were found to be whole."""
        self._refute(key, FoundBy.LOADING)
        found = self.of(key)
        if found is not None and found.by is FoundBy.LOADING:
            # At once: a model that was just loaded is not shown as bad for a moment.
            self._set(key, None)
            self._tasks.start(self._write(key))

    async def drop_outdated(
        self, *keys: ModelKey, outdated: Callable[[ModelKey], None] = lambda key: None
    ) -> None:
        """Forget what was found of files that are others now, or gone.

        Args:
            keys: Versions; none: all of which anything is known.
            outdated: Told of each before that is forgotten.
        """
        known = [
            ModelKey(name, version) for name, found in self._found.items() for version in found
        ]
        for key in keys or known:
            found = self.of(key)
            if found is None or found.files == await self._fingerprint(key):
                continue
            if self.of(key) is found:  # else something else was found meanwhile
                outdated(key)
                await self._drop(key)

    async def close(self) -> None:
        """Return when all is written."""
        await self._tasks.ended()

    async def _fingerprint(self, key: ModelKey) -> str:
        return await asyncio.to_thread(fingerprint, self._repository, key)

    def _refute(self, key: ModelKey, *by: FoundBy) -> None:
        self._noting = {each for each in self._noting if each.key != key or each.by not in by}

    async def _drop(self, key: ModelKey) -> None:
        if self.of(key) is not None:
            self._set(key, None)
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

    Where all are, the newest. One whose `version.toml` can not be understood is bad, though
    nobody has tried it. Blocks on the disk where there are several.

    Args:
        repository: Has the files.
        name: Of the model.
        manifest: Of it.
        versions: Its prepared ones, oldest first.
        found: What is known of them; what was found of other files counts for nothing.

    Raises:
        ModelNotFound: There is no such version.
        ModelLoadFailed: The system refused to read a manifest.
    """
    if manifest.default_version is None and len(versions) > 1:
        for version in reversed(versions):
            if why_bad(repository, ModelKey(name, version), found) is None:
                return version
    return default_of(name, manifest, versions)


def why_bad(repository: ModelRepository, key: ModelKey, found: KnownBad) -> str | None:
    """What is known to be wrong with a version as its files are now; None: nothing.

    Blocks on the disk.

    Args:
        repository: Has the files.
        key: The version.
        found: What is known of its model; what was found of other files counts for nothing.

    Raises:
        ModelLoadFailed: The system refused to read its manifest.
    """
    finding = found.get(key.version)
    if finding is not None and finding.files == fingerprint(repository, key):
        return finding.reason
    try:
        repository.version_manifest(key.name, key.version)
    except (ModelUnusable, ModelNotFound) as error:  # or it was removed just now
        return error.message
    return None


def fingerprint(repository: ModelRepository, key: ModelKey) -> str:
    """Another one when a version's files are others; blocks on the disk.

    SHA-256 over its manifest, and names, sizes, times, owners and permissions of all its
    files: to read those would take as long as to load it.
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
                facts = (seen.st_size, seen.st_mtime_ns, seen.st_mode, seen.st_uid, seen.st_gid)
                digest.update(f"\0{relative}\0{facts}".encode())
    return digest.hexdigest()


def _change(key: ModelKey, finding: Finding | None) -> Change:
    return Change(_FINDING, str(key), None if finding is None else asdict(finding))


def _read(text: str, record: Record) -> tuple[ModelKey, Finding]:
    by = FoundBy(str(record["by"]))
    return read_key(text), Finding(str(record["reason"]), by, str(record["files"]))
