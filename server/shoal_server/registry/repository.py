"""The model repository on disk: which models and versions there are, and whether they are whole.

    <root>/<name>/model.toml              the operator's manifest
    <root>/<name>/<version>/version.toml  a prepared version; without it the folder does not count
    <root>/<name>/<version>/variants/<precision>/variant.toml
                                          its graph in another precision, likewise

Names that start with a dot are ours (staging, trash) or nobody's, and links that
leave the root are not followed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import platformdirs

from shoal_server.core import ModelKey, ModelRef, is_name, valid_name
from shoal_server.errors import ModelLoadFailed, ModelNotFound
from shoal_server.registry.file_errors import corrupt, no_model, no_version, plainly, unreadable
from shoal_server.registry.manifest import (
    MODEL_FILE,
    VARIANT_FILE,
    VARIANTS_FOLDER,
    VERSION_FILE,
    ManifestError,
    ModelManifest,
    Precision,
    VariantManifest,
    VersionManifest,
)
from shoal_server.registry.scratch import scratch_folder

_HASH_CHUNK_BYTES = 1 << 20
_PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def default_model_dir() -> Path:
    """Where models are when nobody says: `./models` where there is one, else the user's data."""
    local = Path("models")
    return local if local.is_dir() else platformdirs.user_data_path("shoal") / "models"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as hexadecimal digits, read in pieces of 1 MiB.

    Raises:
        OSError: It can not be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def default_of(name: str, manifest: ModelManifest, versions: Sequence[str]) -> str:
    """The version that a bare name means: the manifest's, else the latest.

    Args:
        name: Of the model.
        manifest: Of it.
        versions: Its prepared ones, oldest first.

    Raises:
        ModelNotFound: There is no such version.
    """
    if not versions:
        raise ModelNotFound(f"model {name!r} is not prepared", metadata={"model": name})
    chosen = manifest.default_version
    if chosen is None:
        return versions[-1]
    if chosen not in versions:
        raise no_version(name, chosen)
    return chosen


def variant_path(precision: Precision) -> str:
    """Where a version's variant is, below the version's folder."""
    return f"{VARIANTS_FOLDER}/{precision}"


def variant_files(manifest: VariantManifest) -> dict[str, str]:
    """A variant's files as paths below the version's folder, with their SHA-256."""
    folder = variant_path(manifest.precision)
    return {f"{folder}/{name}": digest for name, digest in manifest.files.items()}


class ModelRepository:
    """Reads and checks a model repository; changes it only in `remove` and `remove_model`.

    Holds nothing but the root: every answer is what the disk says now. Methods
    block on the disk; call them from any thread.

    Args:
        root: The folder of the models. It need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Names of the models, prepared or only described by their manifest, sorted."""
        return sorted(name for name in _folder_names(self.root) if self._is_model(name))

    def has(self, name: str) -> bool:
        """Whether there is a model of that name, prepared or not.

        Raises:
            InvalidInput: `name` is not a name.
        """
        return self._is_model(name)

    def versions(self, name: str) -> list[str]:
        """Prepared versions of a model, oldest first: 2 comes before 10.

        Raises:
            InvalidInput: `name` is not a name.
        """
        folder = self.model_folder(name)
        if not self._is_inside(folder):
            return []
        return sorted(
            (version for version in _folder_names(folder) if self._is_version(folder / version)),
            key=version_order,
        )

    def default_version(self, name: str) -> str:
        """The version that the bare name means: `default_version`, else the latest.

        Raises:
            InvalidInput: `name` is not a name.
            ModelNotFound: There is no such model, or no such version of it.
            ModelLoadFailed: Its `model.toml` can not be read.
        """
        return default_of(name, self.model_manifest(name), self.versions(name))

    def resolve(self, ref: ModelRef) -> ModelKey:
        """The version that a name, with or without a version, stands for.

        Raises:
            ModelNotFound: There is no such model or version.
            ModelLoadFailed: Its `model.toml` can not be read.
        """
        if ref.version is None:
            return ModelKey(ref.name, self.default_version(ref.name))
        self.version_folder(ref.name, ref.version)
        return ModelKey(ref.name, ref.version)

    def model_manifest(self, name: str) -> ModelManifest:
        """What `model.toml` says; all defaults where a prepared model has none.

        Raises:
            InvalidInput: `name` is not a name.
            ModelNotFound: There is no such model.
            ModelLoadFailed: The manifest can not be read.
        """
        if not self._is_model(name):
            raise no_model(name)
        try:
            return ModelManifest.read(self.model_folder(name) / MODEL_FILE)
        except FileNotFoundError:
            return ModelManifest()
        except (ManifestError, OSError) as error:
            raise ModelLoadFailed(
                f"model {name!r}: {plainly(error, MODEL_FILE)}", metadata={"model": name}
            ) from error

    def version_manifest(self, name: str, version: str) -> VersionManifest:
        """What `version.toml` says of one version's files.

        Raises:
            InvalidInput: `name` or `version` is not a name.
            ModelNotFound: There is no such version.
            ModelFileCorrupt: The manifest can not be read.
        """
        folder = self.version_folder(name, version)
        try:
            return VersionManifest.read(folder / VERSION_FILE)
        except (ManifestError, OSError) as error:
            raise unreadable(name, version, VERSION_FILE, error) from error

    def variants(self, name: str, version: str) -> list[Precision]:
        """Precisions, besides its own, in which a version has a graph.

        Raises:
            InvalidInput: `name` or `version` is not a name.
            ModelNotFound: There is no such version.
        """
        folder = self.version_folder(name, version) / VARIANTS_FOLDER
        if not folder.is_dir():  # as for most
            return []
        return [each for each in _PRECISIONS if self._is_variant(folder / each)]

    def variant_manifest(self, name: str, version: str, precision: Precision) -> VariantManifest:
        """What `variant.toml` says of one variant's files.

        Raises:
            InvalidInput: `name` or `version` is not a name.
            ModelNotFound: There is no such version.
            ModelFileCorrupt: The manifest can not be read, or is of another precision.
        """
        manifest_name = f"{variant_path(precision)}/{VARIANT_FILE}"
        path = self.version_folder(name, version) / manifest_name
        try:
            manifest = VariantManifest.read(path)
        except (ManifestError, OSError) as error:
            raise unreadable(name, version, manifest_name, error) from error
        if manifest.precision != precision:
            what = f"{manifest_name} is of {manifest.precision}, its folder is of {precision}"
            raise corrupt(name, version, manifest_name, what)
        return manifest

    def verify(self, name: str, version: str) -> VersionManifest:
        """Check every file of a version, variants apart, against its SHA-256; reads all of them.

        Returns:
            The version's manifest.

        Raises:
            InvalidInput: `name` or `version` is not a name.
            ModelNotFound: There is no such version.
            ModelFileCorrupt: A file is missing, unreadable or not what was prepared.
        """
        manifest = self.version_manifest(name, version)
        self.verify_files(name, version, manifest.files)
        return manifest

    def verify_variant(self, name: str, version: str, precision: Precision) -> VariantManifest:
        """As `verify`, for the files of one variant.

        Raises:
            InvalidInput: `name` or `version` is not a name.
            ModelNotFound: There is no such version.
            ModelFileCorrupt: A file is missing, unreadable or not what was made.
        """
        manifest = self.variant_manifest(name, version, precision)
        self.verify_files(name, version, variant_files(manifest))
        return manifest

    def verify_files(self, name: str, version: str, files: Mapping[str, str]) -> None:
        """Check some of a version's files against their SHA-256.

        Args:
            name: Of the model.
            version: Of its files.
            files: Path below the version's folder to SHA-256.

        Raises:
            InvalidInput: `name` or `version` is not a name.
            ModelNotFound: There is no such version.
            ModelFileCorrupt: A file is missing, unreadable or not what was prepared.
        """
        self.look_for_files(name, version, files)
        folder = self.version_folder(name, version)
        for file_name, expected in files.items():
            try:
                actual = sha256_of(folder / file_name)
            except OSError as error:
                raise unreadable(name, version, file_name, error) from error
            if actual != expected:
                what = f"{file_name} is not the file that was prepared (its SHA-256 differs)"
                raise corrupt(name, version, file_name, what)

    def look_for_files(self, name: str, version: str, files: Iterable[str]) -> None:
        """Check that some of a version's files are there; nothing is read.

        Args:
            name: Of the model.
            version: Of its files.
            files: Paths below the version's folder.

        Raises:
            InvalidInput: `name` or `version` is not a name.
            ModelNotFound: There is no such version.
            ModelFileCorrupt: A file is missing, or a link that leaves the repository.
        """
        folder = self.version_folder(name, version)
        for file_name in files:
            path = folder / file_name
            if not self._is_inside(path) or not path.is_file():
                raise corrupt(name, version, file_name, f"{file_name} is missing")

    def size_bytes(self, name: str, version: str) -> int:
        """Bytes on disk of a version's files, variants apart.

        Raises:
            InvalidInput: `name` or `version` is not a name.
            ModelNotFound: There is no such version.
        """
        folder = self.version_folder(name, version)
        return _size_bytes(folder) - _size_bytes(folder / VARIANTS_FOLDER)

    def variant_size_bytes(self, name: str, version: str, precision: Precision) -> int:
        """Bytes on disk of a variant's files.

        Raises:
            InvalidInput: `name` or `version` is not a name.
            ModelNotFound: There is no such version.
        """
        return _size_bytes(self.version_folder(name, version) / variant_path(precision))

    def model_folder(self, name: str) -> Path:
        """Where a model's files are or would be.

        Raises:
            InvalidInput: `name` is not a name.
        """
        return self.root / valid_name(name, "model")

    def version_folder(self, name: str, version: str) -> Path:
        """Where the files of a prepared version are.

        Raises:
            InvalidInput: `name` or `version` is not a name.
            ModelNotFound: There is no such version.
        """
        folder = self.model_folder(name) / valid_name(version, "version")
        if not self._is_version(folder):
            raise no_version(name, version) if self._is_model(name) else no_model(name)
        return folder

    def remove(self, name: str, version: str) -> None:
        """Remove one prepared version; the model's manifest stays.

        Raises:
            InvalidInput: `name` or `version` is not a name.
            ModelNotFound: There is no such version.
            OSError: The disk refuses.
        """
        self._discard(self.version_folder(name, version))

    def remove_model(self, name: str) -> None:
        """Remove a model: its manifest and every version.

        Raises:
            InvalidInput: `name` is not a name.
            ModelNotFound: There is no such model.
            OSError: The disk refuses.
        """
        if not self._is_model(name):
            raise no_model(name)
        self._discard(self.model_folder(name))

    def _is_model(self, name: str) -> bool:
        manifest = self.model_folder(name) / MODEL_FILE
        return (manifest.is_file() and self._is_inside(manifest)) or bool(self.versions(name))

    def _is_version(self, folder: Path) -> bool:
        manifest = folder / VERSION_FILE
        return manifest.is_file() and self._is_inside(manifest)

    def _is_variant(self, folder: Path) -> bool:
        manifest = folder / VARIANT_FILE
        return manifest.is_file() and self._is_inside(manifest)

    def _is_inside(self, path: Path) -> bool:
        """Whether no link on the way to `path`, which is below the root, leaves the root."""
        here = os.fspath(self.root)
        for part in path.relative_to(self.root).parts:
            here = f"{here}/{part}"
            if os.path.islink(here):  # noqa: PTH114  (Path costs as much again)
                # Only then: to resolve a path costs a call for each of its parts.
                return path.resolve().is_relative_to(self.root.resolve())
        return True

    def _discard(self, folder: Path) -> None:
        # Renamed away first: a reader sees the folder whole or not at all.
        with scratch_folder(self.root) as trash:
            folder.rename(trash / folder.name)


def _size_bytes(folder: Path) -> int:
    """Of all files in it and below; links to folders are not followed."""
    try:
        with os.scandir(folder) as entries:
            return sum(
                _size_bytes(Path(entry.path))
                if entry.is_dir(follow_symlinks=False)
                else entry.stat().st_size
                for entry in entries
                if entry.is_dir(follow_symlinks=False) or entry.is_file()
            )
    except FileNotFoundError:
        return 0


def _folder_names(parent: Path) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return [entry.name for entry in entries if is_name(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def version_order(version: str) -> list[tuple[int, int, str]]:
    """What versions are sorted by: numbers by their value, and before letters, 2 < 10 < beta."""
    parts = re.findall(r"\d+|\D+", version)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
