"""Versions as the disk has them, and in which precision they are served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelNotFound, ShoalError
from shoal_server.registry.findings import KnownBad, default_sound, is_of_the_version, why_bad
from shoal_server.registry.labels import Deprecation
from shoal_server.registry.manifest import Precision, Serving, VersionManifest
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.variants import Chosen, choose


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A prepared version of a model: all that serving it takes to know."""

    key: ModelKey
    manifest: VersionManifest
    serving: Serving
    folder: Path
    chosen: Chosen
    """The precision that is served, and its files."""
    deprecation: Deprecation | None = None
    """Of the version, else of the model."""

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / self.chosen.graph

    @property
    def files(self) -> Mapping[str, str]:
        """All that a session reads: path below `folder` to SHA-256."""
        return self.chosen.files

    @property
    def file_bytes(self) -> int:
        """Size of what a session reads."""
        return self.chosen.file_bytes


class PreparedVersions:
    """Reads versions; remembers nothing. Any thread may, and each call blocks on the disk."""

    def __init__(
        self, repository: ModelRepository, precision: Precision | Literal["auto"], *, gpu: bool
    ) -> None:
        """Nothing is read yet.

        Args:
            repository: The files.
            precision: Of models that ask for none and have it; auto: fp16 on a GPU, else
                fp32.
            gpu: Whether models that ask for no device run on one.
        """
        self.repository = repository
        self.precision = precision
        self._gpu = gpu

    def choose(self, key: ModelKey, manifest: VersionManifest, serving: Serving) -> Chosen:
        """Which graph of a version is served as things stand.

        Raises:
            FailedPrecondition: It is to be served in a precision that it does not have.
            ModelFileCorrupt: The variant's manifest can not be read.
        """
        preferred = self._preferred(serving.device or "auto")
        return choose(self.repository, key, manifest, serving.precision, preferred)

    def read(self, ref: ModelRef, found: KnownBad) -> ModelVersion:
        """A version, with its manifests.

        Args:
            ref: The version, or a model: then what its bare name would mean if it were pinned
                to nothing.
            found: Which versions of the model are known to be bad.

        Raises:
            ModelNotFound: There is no such model or version.
            ModelLoadFailed: A manifest can not be read.
            FailedPrecondition: It is to be served in a precision that it does not have.
        """
        repository = self.repository
        model = repository.model_manifest(ref.name)
        if ref.version is None:
            versions = repository.versions(ref.name)
            version = default_sound(repository, ref.name, model, versions, found)
            key = ModelKey(ref.name, version)
        else:
            key = repository.resolve(ref)
        manifest = repository.version_manifest(key.name, key.version)
        serving = model.serving
        return ModelVersion(
            key=key,
            manifest=manifest,
            serving=serving,
            folder=repository.version_folder(key.name, key.version),
            chosen=self.choose(key, manifest, serving),
        )

    def has(self, version: ModelVersion) -> bool:
        """Whether a version's manifests are these yet, or can not be understood any longer.

        What was made of others says nothing of the files that there are now.
        """
        key = version.key
        try:
            manifest = self.repository.version_manifest(key.name, key.version)
            chosen = self.choose(key, manifest, version.serving)
        except ModelNotFound:
            return False
        except ShoalError as error:
            return is_of_the_version(error)
        return (manifest, chosen) == (version.manifest, version.chosen)

    def default(self, name: str, found: KnownBad) -> str:
        """What a model's bare name would mean if it were pinned to nothing.

        Raises:
            ModelNotFound: There is no such model, or no version of it.
            ModelLoadFailed: Its `model.toml` can not be read.
        """
        model, versions = self.repository.model_manifest(name), self.repository.versions(name)
        return default_sound(self.repository, name, model, versions, found)

    def passed_over(self, name: str, found: KnownBad) -> dict[ModelKey, str]:
        """The versions newer than that, which are known to be bad; why, the newest first.

        Raises:
            ShoalError: As `default`.
        """
        bad: dict[ModelKey, str] = {}
        if self.repository.model_manifest(name).default_version is None:
            for version in reversed(self.repository.versions(name)):
                key = ModelKey(name, version)
                reason = why_bad(self.repository, key, found)
                if reason is None:
                    return bad
                bad[key] = reason
        return {}  # nothing is: it means what model.toml says, or all are bad and it the newest

    def _preferred(self, device: str) -> Precision:
        """The server's precision for a model that runs on a device: `auto`, `cpu`, `cuda…`."""
        on_gpu = self._gpu if device == "auto" else device != "cpu"
        if self.precision == "auto":
            return "fp16" if on_gpu else "fp32"
        # It is for GPUs, and slower than fp32 on a CPU.
        return "fp32" if self.precision == "fp16" and not on_gpu else self.precision
