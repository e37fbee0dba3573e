"""Making a prepared version, or a variant of one, appear: whole, for good, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal_server.core import ModelKey
from shoal_server.preparation.errors import DiskFull
from shoal_server.registry.manifest import (
    MODEL_FILE,
    VARIANT_FILE,
    VERSION_FILE,
    ModelManifest,
    VariantManifest,
    VersionManifest,
)
from shoal_server.registry.repository import ModelRepository, sha256_of, variant_path


def hash_files(folder: Path) -> dict[str, str]:
    """File name to SHA-256, for every file in a version's folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}


def publish(
    staged: Path,
    repository: ModelRepository,
    key: ModelKey,
    manifest: VersionManifest,
    model: ModelManifest,
) -> bool:
    """Write the manifests and move a staged version to its place.

    Args:
        staged: Folder with the version's files, on the repository's file system.
        repository: Where the version is to appear.
        key: The model and its new version.
        manifest: Becomes the version's `version.toml`.
        model: Becomes the model's `model.toml`, unless it has one.

    Returns:
        Whether it was moved; False when the version is there by now, from another pull.

    Raises:
        OSError: The disk refuses.
    """
    (staged / VERSION_FILE).write_text(manifest.to_toml(), encoding="utf-8")
    _settle(staged)
    folder = repository.model_folder(key.name)
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        _make_readable(folder)
    _write_once(folder / MODEL_FILE, model.to_toml(), staged.with_name(MODEL_FILE))
    try:
        # Fails when the target is a folder with anything in it.
        staged.rename(folder / key.version)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        return False
    _sync(folder)
    _sync(repository.root)
    return True


def publish_variant(
    staged: Path, repository: ModelRepository, key: ModelKey, manifest: VariantManifest
) -> None:
    """Write the manifest and move a staged variant to its place beside its version's files.

    A variant that is there is moved away first, to beside `staged`. Servers that have it
    in memory keep its files until they close them.

    Args:
        staged: Folder with the variant's files, on the repository's file system.
        repository: Where the variant is to appear.
        key: The version.
        manifest: Becomes the variant's `variant.toml`.

    Raises:
        ModelNotFound: The version was removed meanwhile.
        OSError: The disk refuses.
    """
    (staged / VARIANT_FILE).write_text(manifest.to_toml(), encoding="utf-8")
    _settle(staged)
    version = repository.version_folder(key.name, key.version)
    target = version / variant_path(manifest.precision)
    if not target.parent.exists():
        target.parent.mkdir(exist_ok=True)
        _make_readable(target.parent)
        _sync(version)
    if target.exists():
        target.rename(staged.with_name("replaced"))
    staged.rename(target)
    _sync(target.parent)


def publish_reference(
    staged: Path, repository: ModelRepository, key: ModelKey, manifest: VersionManifest
) -> VersionManifest:
    """Move a file to a version's others, and then write that it is one of them.

    Nothing is done where the version is another by now, or somebody else was faster.

    Args:
        staged: The file, named as it will be, on the repository's file system.
        repository: Where the version is.
        key: The version.
        manifest: Of it, so far.

    Returns:
        The manifest that the version has now.

    Raises:
        ShoalError: The version was removed meanwhile, or its manifest can not be read.
        OSError: The disk refuses.
    """
    now = repository.version_manifest(key.name, key.version)
    if now != manifest:
        return now
    files = {**manifest.files, staged.name: sha256_of(staged)}
    manifest = manifest.model_copy(update={"files": files})
    folder = repository.version_folder(key.name, key.version)
    written = staged.with_name(VERSION_FILE)
    written.write_text(manifest.to_toml(), encoding="utf-8")
    for path in (staged, written):
        _make_readable(path)
        _sync(path)
        path.rename(folder / path.name)
    _sync(folder)
    return manifest


@contextmanager
def disk_full_told() -> Iterator[None]:
    """Raise `DiskFull` in place of the system's own error.

    Raises:
        DiskFull: The disk filled up inside.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        raise DiskFull(f"no space left on the disk{where}; nothing was kept") from error


def _settle(staged: Path) -> None:
    """Make a folder and all in it readable, and safe from a power cut."""
    for path in (*staged.rglob("*"), staged):
        _make_readable(path)
        _sync(path)


def _write_once(path: Path, text: str, staged: Path) -> None:
    if path.exists():
        return
    staged.write_text(text, encoding="utf-8")
    _make_readable(staged)
    _sync(staged)
    staged.rename(path)


def _make_readable(path: Path) -> None:
    # Temporary folders, and what libraries write by way of temporary files, are their
    # owner's only; the server often runs as somebody else, as in a container.
    path.chmod(0o755 if path.is_dir() else 0o644)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
