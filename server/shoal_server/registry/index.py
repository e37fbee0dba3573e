"""What the repository holds, read again only where it was written to.

As in git's index, times tell what changed since the last look: preparing and removing a
version changes its model's folder, editing writes `model.toml`. So a look at a thousand
models that nobody touched costs two thousand `stat`, in a thread. Inside a prepared
version only variants change; that is looked at for those models that are shown.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoal_server.core import ModelKey, ModelRef, is_name
from shoal_server.errors import InvalidInput, ModelNotFound, ShoalError
from shoal_server.registry.capabilities import Capabilities, read_capabilities
from shoal_server.registry.findings import NOTHING_FOUND, KnownBad, default_sound
from shoal_server.registry.manifest import (
    MODEL_FILE,
    VARIANTS_FOLDER,
    VERSION_FILE,
    ModelManifest,
    VersionManifest,
)
from shoal_server.registry.prepared import PreparedVersions
from shoal_server.registry.registry import Registry
from shoal_server.registry.variants import Chosen

# The clocks of files tick in milliseconds, on some file systems in whole seconds: what
# was written to just before may be written to again without showing it.
_TICK_NS = 2_000_000_000

# Of a path: inode, size, time of the last change; None where nothing is.
Seen = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the disk says of one model."""

    key: ModelKey | None
    """The version described; None when none is prepared."""
    versions: tuple[str, ...]
    model: ModelManifest
    manifest: VersionManifest | None
    chosen: Chosen | None
    problem: str
    """Why it can not be served, in words; empty when it can."""
    text: str
    """Name, description, source and licence in small letters, for searching."""
    capabilities: Capabilities | None = None
    """Of the version described; None when it can not be read."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at the repository showed."""

    models: Mapping[str, ModelFiles]
    """By name, sorted."""
    read_anew: frozenset[str]
    """Those whose files differ from the last look, or might."""


@dataclass(frozen=True, slots=True)
class Rescan:
    """The models of the look before, and those of this one, by name."""

    before: Mapping[str, ModelFiles]
    now: Mapping[str, ModelFiles]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A folder as it was when it was read; without files it is no model's."""

    files: ModelFiles | None
    pinned: str | None
    """The version that its name was pinned to."""
    served: ModelKey | None
    """What its name had meant so far."""
    found: KnownBad
    """Which of its versions were known to be bad."""
    paths: tuple[str, str]
    """The folder and its `model.toml`."""
    seen: tuple[Seen, Seen]
    inner_paths: tuple[str, ...]
    """Of the version described: what changes with its variants, and its manifest."""
    inner_seen: tuple[Seen, ...]
    is_settled: bool


@dataclass(frozen=True, slots=True)
class _Names:
    """What names mean, for a thread that looks."""

    pins: Mapping[str, str]
    deregistered: frozenset[str]
    served: Mapping[str, ModelKey]
    """What names of models have meant so far; those that are left out: nobody asked."""
    found: Mapping[str, KnownBad]
    """Which versions are known to be bad, by model."""


class RepositoryIndex:
    """Remembers what was read of each model. Belongs to the event loop's thread."""

    def __init__(self, registry: Registry) -> None:
        """Nothing is read yet.

        Args:
            registry: Says what bare names mean.
        """
        self._registry = registry
        # Held while a thread looks: it alone has the entries then.
        self._looking = asyncio.Lock()
        self._entries: dict[str, _Entry] = {}
        self._names: list[str] = []
        # The root when its names were read; None: it may have changed since.
        self._root_seen: Seen = None
        # There when the server looked first, and not read since; None: it did not look.
        self._unread: set[str] | None = None
        # Of the last look, and when that began.
        self._found: Found | None = None
        self._found_s = 0.0

    async def names(self) -> list[str]:
        """The models that there are; from then on they are known, read or not."""
        async with self._looking:
            return await self._list()

    async def knows(self, name: str) -> bool:
        """Whether a model was there when the server looked last, for the first time now."""
        async with self._looking:
            if self._unread is None:
                await self._list()
            entry = self._entries.get(name)
            return (entry is not None and entry.files is not None) or name in (self._unread or ())

    async def _list(self) -> list[str]:
        names = await asyncio.to_thread(self._registry.repository.names)
        if self._unread is None:
            self._unread = set(names)
        return names

    async def look(self) -> Found:
        """Every model as the disk has it now, described at the version its name means.

        Those who come while a thread looks share the next look.
        """
        came_s = time.monotonic()
        async with self._looking:
            if self._found is not None and self._found_s > came_s:
                return self._found
            self._found, self._found_s = None, time.monotonic()
            served = self._registry.meanings.bare_names()
            found = self._found = await asyncio.to_thread(self._look, self._names_now(served))
            self._unread = set()
            return found

    async def look_anew(self) -> Rescan:
        """Read every model, whether or not anybody seems to have written to it."""
        async with self._looking:
            before = {name: each.files for name, each in self._entries.items() if each.files}
            self._entries, self._root_seen = {}, None
            # Not what names have meant so far, but what they would mean.
            found = await asyncio.to_thread(self._look, self._names_now({}))
            self._unread = set()
            return Rescan(before, found.models)

    async def look_at(self, name: str) -> tuple[ModelFiles | None, ModelFiles | None]:
        """Read one model, whatever else there is.

        Returns:
            What was known of it before, and what the disk says now; None: nothing.
        """
        async with self._looking:
            before = self._entries.get(name)
            root, pinned = str(self._registry.repository.root), self._registry.pins.get(name)
            found = self._registry.found_of(name)
            # Not what its name has meant so far, but what it would mean.
            now = await asyncio.to_thread(self._read, root, name, pinned, None, found)
            self._entries[name] = now
            if self._unread:
                self._unread.discard(name)
            return before.files if before else None, now.files

    async def forget(self, name: str) -> None:
        """Know nothing of a model any longer, until it is looked at again."""
        async with self._looking:
            self._entries.pop(name, None)

    async def look_inside(self, names: Sequence[str]) -> Mapping[str, ModelFiles]:
        """Some of the models that `look` found, with what is inside their versions now."""
        async with self._looking:
            served = self._registry.meanings.bare_names()
            return await asyncio.to_thread(self._look_inside, names, served)

    def _look_inside(
        self, names: Sequence[str], served: Mapping[str, ModelKey]
    ) -> Mapping[str, ModelFiles]:
        root = str(self._registry.repository.root)
        models = {}
        for name in names:
            entry = self._entries.get(name)
            if entry is None:
                continue
            # It may have been read since, not at what its name means but at what it would.
            means = served.get(name)
            is_read = entry.is_settled and entry.served == means
            if not is_read or see_all(entry.inner_paths) != entry.inner_seen:
                entry = self._read(root, name, entry.pinned, means, entry.found)
                self._entries[name] = entry
            if entry.files is not None:
                models[name] = entry.files
        return models

    def _names_now(self, served: Mapping[str, ModelKey]) -> _Names:
        registry = self._registry
        return _Names(dict(registry.pins), registry.deregistered, served, dict(registry.found))

    def _look(self, names: _Names) -> Found:
        root = str(self._registry.repository.root)
        pins, served = names.pins, names.served
        models, anew, entries = {}, set(), {}
        for name in self._folder_names(root):
            if name in names.deregistered:
                continue
            entry = self._entries.get(name)
            means = pins.get(name), served.get(name), names.found.get(name, NOTHING_FOUND)
            if entry is None or _is_stale(entry, *means):
                entry = self._read(root, name, *means)
                anew.add(name)
            entries[name] = entry
            if entry.files is not None:
                models[name] = entry.files
        self._entries = entries
        return Found(models, frozenset(anew))

    def _folder_names(self, root: str) -> list[str]:
        at_ns, seen = time.time_ns(), _see(root)
        if seen is None or seen != self._root_seen:
            self._names = _folders(root)
            is_settled = seen is not None and seen[2] < at_ns - _TICK_NS
            self._root_seen = seen if is_settled else None
        return self._names

    def _read(
        self, root: str, name: str, pinned: str | None, served: ModelKey | None, found: KnownBad
    ) -> _Entry:
        at_ns = time.time_ns()
        folder = f"{root}/{name}"
        manifest = f"{folder}/{MODEL_FILE}"
        # Before it is read: what is written meanwhile shows at the next look.
        seen = (_see(folder), _see(manifest))
        is_readable = True
        try:
            files = read_files(
                self._registry.prepared, ModelRef(name), ModelRef(name, pinned), served, found
            )
        except ModelNotFound:
            files = None
        except OSError as error:  # such as a folder of somebody else's: the others are shown
            problem, is_readable = f"its folder can not be read: {error.strerror}", False
            files = ModelFiles(None, (), ModelManifest(), None, None, problem, name.lower())
        version = f"{folder}/{files.key.version}" if files and files.key else folder
        inner_paths = inner_paths_of(version)
        inner_seen = see_all(inner_paths)
        return _Entry(
            files, pinned, served, found, (folder, manifest), seen, inner_paths, inner_seen,
            # Permissions may change without a trace in these times.
            is_settled=(
                were_settled((*seen, *inner_seen), at_ns)
                and is_readable
                and not (served is None and _passes_over(files, pinned, found))
            ),
        )  # fmt: skip


def _passes_over(files: ModelFiles | None, pinned: str | None, found: KnownBad) -> bool:
    """Whether a mended version, of which these folders' times tell nothing, may be meant."""
    if files is None or files.key is None or pinned or files.model.default_version:
        return False
    return bool(found) or files.key.version != files.versions[-1]


def read_files(
    prepared: PreparedVersions,
    ref: ModelRef,
    pinned: ModelRef,
    served: ModelKey | None,
    found: KnownBad,
    versions: tuple[str, ...] | None = None,
) -> ModelFiles:
    """Read a model; one with unreadable files is described, not hidden. Blocks on the disk.

    Args:
        prepared: Reads them.
        ref: The model, or a version of it.
        pinned: The same with the version that the bare name is pinned to.
        served: The version that `ref` has meant so far; None: nobody asked.
        found: Which of its versions are known to be bad.
        versions: Those that it has; None: they are looked for, which takes a while where
            they are many.

    Raises:
        InvalidInput: It can not be a name.
        ModelNotFound: There is no such model or version.
    """
    repository = prepared.repository
    if versions is None:
        versions = tuple(repository.versions(ref.name))
    if not versions and not repository.has(ref.name):
        raise ModelNotFound(f"there is no model {ref.name!r}", metadata={"model": ref.name})
    model, key, problem = ModelManifest(), served, ""
    manifest, capabilities, chosen = None, None, None
    try:
        model = repository.model_manifest(ref.name)
        if key is None and pinned.version is None:
            key = ModelKey(ref.name, default_sound(repository, ref.name, model, versions, found))
        key = key or repository.resolve(pinned)
        manifest = repository.version_manifest(key.name, key.version)
        capabilities = read_capabilities(repository, key, manifest)
        chosen = prepared.choose(key, manifest, model.serving)
    except ModelNotFound as error:
        if ref.version is not None:
            raise
        problem = str(error) if versions else f"run `shoal models pull {ref.name}`"
        key = ModelKey(ref.name, versions[-1]) if versions else None
    except InvalidInput:
        raise
    except ShoalError as error:
        problem = error.message
        key = key or (ModelKey(ref.name, versions[-1]) if versions else None)
    text = "\n".join((ref.name, model.description, model.source, model.license)).lower()
    return ModelFiles(key, versions, model, manifest, chosen, problem, text, capabilities)


def inner_paths_of(version: str) -> tuple[str, ...]:
    """Of a version's folder: what changes with its variants, and its manifest."""
    return version, f"{version}/{VERSION_FILE}", f"{version}/{VARIANTS_FOLDER}"


def see_all(paths: Iterable[str]) -> tuple[Seen, ...]:
    """What `stat` shows of some paths."""
    return tuple(map(_see, paths))


def were_settled(seen: Iterable[Seen], at_ns: int) -> bool:
    """Whether what is written from `at_ns` on shows in the times."""
    return max((each[2] for each in seen if each), default=0) < at_ns - _TICK_NS


def _folders(root: str) -> list[str]:
    try:
        with os.scandir(root) as found:
            return sorted(each.name for each in found if is_name(each.name) and each.is_dir())
    except FileNotFoundError:
        return []


def _is_stale(entry: _Entry, pinned: str | None, served: ModelKey | None, found: KnownBad) -> bool:
    if (
        not entry.is_settled
        or entry.pinned != pinned
        or entry.served != served
        or entry.found != found
    ):
        return True
    folder, manifest = entry.paths
    folder_seen, manifest_seen = entry.seen
    return _see(folder) != folder_seen or _see(manifest) != manifest_seen


def _see(path: str) -> Seen:
    try:
        stat = os.stat(path)  # noqa: PTH116  (Path costs as much again)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
