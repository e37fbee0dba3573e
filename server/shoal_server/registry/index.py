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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal_server.core import ModelKey, ModelRef, is_name
from shoal_server.errors import InvalidInput, ModelNotFound, ShoalError
from shoal_server.registry.manifest import (
    MODEL_FILE,
    VARIANTS_FOLDER,
    VERSION_FILE,
    ModelManifest,
    VersionManifest,
)
from shoal_server.registry.registry import Registry
from shoal_server.registry.variants import Chosen

# The clocks of files tick in milliseconds, on some file systems in whole seconds: what
# was written to just before may be written to again without showing it.
_TICK_NS = 2_000_000_000

# Of a path: inode, size, time of the last change; None where nothing is.
_Seen = tuple[int, int, int] | None


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
    pinned: ModelRef
    served: ModelKey | None
    paths: tuple[str, str]
    """The folder and its `model.toml`."""
    seen: tuple[_Seen, _Seen]
    inner_paths: tuple[str, ...]
    """Of the version described: what changes with its variants, and its manifest."""
    inner_seen: tuple[_Seen, ...]
    is_settled: bool


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
        self._root_seen: _Seen = None

    async def look(self) -> Found:
        """Every model as the disk has it now, described at the version its name means."""
        async with self._looking:
            pins = dict(self._registry.pins)
            served = {}
            for name in self._entries:
                if (known := self._registry.bare(name)) is not None:
                    served[name] = known.key
            return await asyncio.to_thread(self._look, pins, served)

    async def look_anew(self) -> Rescan:
        """Read every model, whether or not anybody seems to have written to it."""
        async with self._looking:
            before = {name: each.files for name, each in self._entries.items() if each.files}
            self._entries, self._root_seen = {}, None
            # Not what names have meant so far, but what they would mean.
            found = await asyncio.to_thread(self._look, dict(self._registry.pins), {})
            return Rescan(before, found.models)

    async def look_inside(self, names: Sequence[str]) -> Mapping[str, ModelFiles]:
        """Some of the models that `look` found, with what is inside their versions now."""
        async with self._looking:
            return await asyncio.to_thread(self._look_inside, names)

    def _look_inside(self, names: Sequence[str]) -> Mapping[str, ModelFiles]:
        root = str(self._registry.repository.root)
        models = {}
        for name in names:
            entry = self._entries.get(name)
            if entry is None:
                continue
            if not entry.is_settled or tuple(map(_see, entry.inner_paths)) != entry.inner_seen:
                entry = self._entries[name] = self._read(root, name, entry.pinned, entry.served)
            if entry.files is not None:
                models[name] = entry.files
        return models

    def _look(self, pins: Mapping[str, str], served: Mapping[str, ModelKey]) -> Found:
        root = str(self._registry.repository.root)
        models, anew, entries = {}, set(), {}
        for name in self._folder_names(root):
            pinned = ModelRef(name, pins.get(name))
            entry = self._entries.get(name)
            if entry is None or _is_stale(entry, pinned, served.get(name)):
                entry = self._read(root, name, pinned, served.get(name))
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

    def _read(self, root: str, name: str, pinned: ModelRef, served: ModelKey | None) -> _Entry:
        at_ns = time.time_ns()
        folder = f"{root}/{name}"
        manifest = f"{folder}/{MODEL_FILE}"
        # Before it is read: what is written meanwhile shows at the next look.
        seen = (_see(folder), _see(manifest))
        try:
            files = read_files(self._registry, ModelRef(name), pinned, served)
        except ModelNotFound:
            files = None
        version = f"{folder}/{files.key.version}" if files and files.key else folder
        inner_paths = (version, f"{version}/{VERSION_FILE}", f"{version}/{VARIANTS_FOLDER}")
        inner_seen = tuple(map(_see, inner_paths))
        changed_ns = max((each[2] for each in (*seen, *inner_seen) if each), default=0)
        return _Entry(
            files, pinned, served, (folder, manifest), seen, inner_paths, inner_seen,
            is_settled=changed_ns < at_ns - _TICK_NS,
        )  # fmt: skip


def read_files(
    registry: Registry, ref: ModelRef, pinned: ModelRef, served: ModelKey | None
) -> ModelFiles:
    """Read a model; one with unreadable files is described, not hidden. Blocks on the disk.

    Args:
        registry: Has the repository.
        ref: The model, or a version of it.
        pinned: The same with the version that the bare name is pinned to.
        served: The version that `ref` has meant so far; None: nobody asked.

    Raises:
        InvalidInput: It can not be a name.
        ModelNotFound: There is no such model or version.
    """
    repository = registry.repository
    versions = tuple(repository.versions(ref.name))
    if not versions and not repository.has(ref.name):
        raise ModelNotFound(f"there is no model {ref.name!r}", metadata={"model": ref.name})
    model, key, manifest, chosen, problem = ModelManifest(), served, None, None, ""
    try:
        model = repository.model_manifest(ref.name)
        key = key or repository.resolve(pinned)
        manifest = repository.version_manifest(key.name, key.version)
        chosen = registry.choose(key, manifest, model.serving)
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
    return ModelFiles(key, versions, model, manifest, chosen, problem, text)


def _folders(root: str) -> list[str]:
    try:
        with os.scandir(root) as found:
            return sorted(each.name for each in found if is_name(each.name) and each.is_dir())
    except FileNotFoundError:
        return []


def _is_stale(entry: _Entry, pinned: ModelRef, served: ModelKey | None) -> bool:
    if not entry.is_settled or entry.pinned != pinned or entry.served != served:
        return True
    folder, manifest = entry.paths
    return (_see(folder), _see(manifest)) != entry.seen


def _see(path: str) -> _Seen:
    try:
        stat = os.stat(path)  # noqa: PTH116  (Path costs as much again)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
