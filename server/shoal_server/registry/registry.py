"""What a caller's name for a model stands for, without asking the disk each time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelNotFound
from shoal_server.registry.manifest import Precision, Serving, VersionManifest
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.variants import Chosen, choose

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A prepared version of a model: all that serving it takes to know."""

    key: ModelKey
    manifest: VersionManifest
    serving: Serving
    folder: Path
    chosen: Chosen
    """The precision that is served, and its files."""

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


class Registry:
    """Names of models to versions. Belongs to the event loop's thread.

    What a name stands for is read from the repository once and then kept, so that
    requests cost no disk access and a version that appears meanwhile changes
    nothing until `forget` (an explicit load, or a failed one) asks again.
    """

    def __init__(
        self,
        repository: ModelRepository,
        default_model: str,
        precision: Precision | Literal["auto"] = "fp32",
        *,
        gpu: bool = False,
    ) -> None:
        """Nothing is read yet.

        Args:
            repository: The files.
            default_model: What an empty name stands for.
            precision: Of models that ask for none and have it; auto: fp16 on a GPU, else
                fp32.
            gpu: Whether models that ask for no device run on one.
        """
        self.repository = repository
        self.default_model = default_model
        self.precision = precision
        self._gpu = gpu
        self._by_text: dict[str, ModelVersion] = {}
        self._by_key: dict[ModelKey, ModelVersion] = {}

    def known(self, text: str) -> ModelVersion | None:
        """What `text` stands for, if that was asked before."""
        return self._by_text.get(text)

    async def resolve(self, text: str) -> ModelVersion:
        """What `name`, `name@version` or nothing (the default model) stands for.

        Raises:
            InvalidInput: It can not be a name.
            ModelNotFound: The repository has no such model or version.
            ModelLoadFailed: A manifest can not be read.
            FailedPrecondition: It is to be served in a precision that it does not have.
        """
        known = self._by_text.get(text)
        if known is not None:
            return known
        ref = ModelRef.parse(text or self.default_model)
        version = await asyncio.to_thread(self._read, ref)
        wanted, used = self.precision, version.chosen.precision
        if version.serving.precision is None and used != wanted != "auto":
            log.info("precision_fallback", model=str(version.key), wanted=wanted, used=used)
        self._by_text[text] = version
        self._by_key[version.key] = version
        return version

    def version(self, key: ModelKey) -> ModelVersion:
        """A version that was resolved before.

        Raises:
            ModelNotFound: It was not, or was forgotten.
        """
        version = self._by_key.get(key)
        if version is None:
            raise ModelNotFound(f"there is no model {key}")
        return version

    def forget(self, name: str) -> None:
        """Read the repository again when one of this model's names is asked for next."""
        for text, version in list(self._by_text.items()):
            if version.key.name == name:
                del self._by_text[text]

    def choose(self, key: ModelKey, manifest: VersionManifest, serving: Serving) -> Chosen:
        """Which graph of a version is served as things stand; blocks on the disk.

        Raises:
            FailedPrecondition: It is to be served in a precision that it does not have.
            ModelFileCorrupt: The variant's manifest can not be read.
        """
        preferred = self._preferred(serving.device or "auto")
        return choose(self.repository, key, manifest, serving.precision, preferred)

    def _preferred(self, device: str) -> Precision:
        """The server's precision for a model that runs on a device: `auto`, `cpu`, `cuda…`."""
        on_gpu = self._gpu if device == "auto" else device != "cpu"
        if self.precision == "auto":
            return "fp16" if on_gpu else "fp32"
        # It is for GPUs, and slower than fp32 on a CPU.
        return "fp32" if self.precision == "fp16" and not on_gpu else self.precision

    def _read(self, ref: ModelRef) -> ModelVersion:
        repository = self.repository
        key = repository.resolve(ref)
        manifest = repository.version_manifest(key.name, key.version)
        serving = repository.model_manifest(key.name).serving
        return ModelVersion(
            key=key,
            manifest=manifest,
            serving=serving,
            folder=repository.version_folder(key.name, key.version),
            chosen=self.choose(key, manifest, serving),
        )
