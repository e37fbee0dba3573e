"""How a model comes into the repository: the page to read first.

    find the source → fetch → read the card → export what the authors did not make
    → pooling and L2 into the graph → check, compare → manifest → publish

Everything is made in a scratch folder inside the repository and appears by one rename.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from shoal_server.core import ModelKey, Pooling, valid_name
from shoal_server.errors import ModelFileCorrupt
from shoal_server.preparation.default_model import DefaultSource, default_manifest
from shoal_server.preparation.environment import ExportEnvironment
from shoal_server.preparation.errors import AlreadyPrepared, SourceNotFound
from shoal_server.preparation.keep import keep_vectors
from shoal_server.preparation.prepare import prepare
from shoal_server.preparation.progress import Progress
from shoal_server.preparation.publish import disk_full_told, publish
from shoal_server.preparation.resolve import find_source
from shoal_server.preparation.sources import ModelSource, Workshop
from shoal_server.registry.manifest import ModelManifest, VersionManifest
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.scratch import scratch_folder

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Order:
    """What the user asks for.

    Attributes:
        source: See `find_source`; None for the default model.
        name: None for the source's own.
        version: The version to make.
        revision: Commit, branch or tag of the hub; version of the package.
        pooling: For a source that does not say.
    """

    source: str | None = None
    name: str | None = None
    version: str = "1"
    revision: str | None = None
    pooling: Pooling | None = None


@dataclass(frozen=True, slots=True)
class Newest:
    """What there is, after a look for something newer.

    Attributes:
        key: The newest version.
        manifest: Of it.
        is_new: Whether it was prepared just now.
    """

    key: ModelKey
    manifest: VersionManifest
    is_new: bool


@dataclass(frozen=True, slots=True)
class Pulled:
    """What is in the repository now.

    Attributes:
        key: The model and its version.
        manifest: Of the version.
        was_there: Whether it had been prepared before; then its files were verified.
    """

    key: ModelKey
    manifest: VersionManifest
    was_there: bool


def pull(
    order: Order, repository: ModelRepository, environment: ExportEnvironment, progress: Progress
) -> Pulled:
    """Prepare a model, unless that version of it is there.

    Blocks for seconds to minutes. Interrupted, it leaves nothing in the repository.

    Raises:
        PreparationError: The model can not be prepared; the text says why and what to do.
        ShoalError: A name is not valid, or what is there is corrupt.
        OSError: The disk refuses.
    """
    suggested, source = find_source(order.source, order.revision, repository)
    key = ModelKey(
        valid_name(order.name or suggested, "name"), valid_name(order.version, "version")
    )
    was_there = key.version in repository.versions(key.name)
    if not was_there:
        with disk_full_told(), scratch_folder(repository.root) as scratch:
            workshop = Workshop(scratch, environment, progress)
            staged = scratch / "version"
            staged.mkdir()
            manifest = prepare(source.fetch(workshop), order.pooling, staged, workshop)
            model = _model_manifest(source, manifest)
            was_there = not publish(staged, repository, key, manifest, model)
    if was_there:
        progress.step(f"verifying {key}")
        manifest = repository.verify(key.name, key.version)
        _check_same(key, manifest, source, order.revision)
        manifest = keep_vectors(key, manifest, repository, progress)
    return Pulled(key, manifest, was_there)


def pull_newer(
    name: str,
    repository: ModelRepository,
    environment: ExportEnvironment,
    progress: Progress,
    began: Callable[[ModelKey], None] = lambda key: None,
) -> Newest:
    """Prepare another version of a model, if its source has another revision by now.

    Args:
        name: Of a model that is prepared, and whose `model.toml` names its source.
        repository: Has it.
        environment: As in `pull`.
        progress: Told of each step.
        began: Told which version is prepared from now on, if any is.

    Raises:
        PreparationError: The source does not answer, or the revision can not be prepared.
        ShoalError: There is no such model.
        OSError: The disk refuses.
    """
    versions = repository.versions(name)
    if not versions:
        raise SourceNotFound(f"{name} is not prepared: `shoal models pull {name}` prepares it")
    if not repository.model_manifest(name).source:
        raise SourceNotFound(f"the model.toml of {name} names no source")
    _, source = find_source(name, None, repository)
    progress.step(f"looking for a newer revision of {source.reference}")
    pinned, revision = source.at_newest()
    manifests = list(_readable(name, versions, repository, progress))
    for version, manifest in manifests:
        there = manifest.source
        if source.made(there.kind, there.location) and there.revision == revision:
            return Newest(ModelKey(name, version), manifest, is_new=False)
    key = ModelKey(name, version_after(versions[-1]))
    pooling = manifests[-1][1].pooling if manifests else None
    began(key)
    with disk_full_told(), scratch_folder(repository.root) as scratch:
        workshop = Workshop(scratch, environment, progress)
        staged = scratch / "version"
        staged.mkdir()
        manifest = prepare(pinned.fetch(workshop), pooling, staged, workshop)
        is_new = publish(staged, repository, key, manifest, repository.model_manifest(name))
    return Newest(key, repository.version_manifest(name, key.version), is_new)


def _readable(
    name: str, versions: Iterable[str], repository: ModelRepository, progress: Progress
) -> Iterator[tuple[str, VersionManifest]]:
    """The versions whose manifests can be read; a broken one hinders no newer one."""
    for version in versions:
        try:
            yield version, repository.version_manifest(name, version)
        except ModelFileCorrupt as error:
            progress.step(f"warning: passed over: {error.message}")


def version_after(latest: str) -> str:
    """The name of a version that comes after `latest`, such as 8 after 7, v1.10 after v1.9."""
    match = re.fullmatch(r"(.*?)([0-9]+)", latest)
    return f"{match[1]}{int(match[2]) + 1}" if match else f"{latest}.2"


def _check_same(
    key: ModelKey, manifest: VersionManifest, source: ModelSource, revision: str | None
) -> None:
    """Refuse to call a version prepared that was made from something else."""
    there = manifest.source
    is_other_commit = _COMMIT.fullmatch(revision or "") and revision != there.revision
    if not source.made(there.kind, there.location) or is_other_commit:
        origin = f"{there.location} {there.revision}".strip()
        raise AlreadyPrepared(
            f"{key} is there and was prepared from {there.kind} {origin}; "
            "choose another --version or --name"
        )


def _model_manifest(source: ModelSource, manifest: VersionManifest) -> ModelManifest:
    if isinstance(source, DefaultSource):
        return default_manifest()
    return ModelManifest(license=manifest.license, source=source.reference)
