"""Which of a version's graphs is served: its own, or one in another precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition
from shoal_server.registry.manifest import (
    GRAPH_FILE,
    Closeness,
    Precision,
    VersionManifest,
)
from shoal_server.registry.reference import REFERENCE_FILE
from shoal_server.registry.repository import ModelRepository, variant_files, variant_path


@dataclass(frozen=True, slots=True)
class Chosen:
    """A graph of a version, and what a session of it reads."""

    precision: str
    graph: str
    """Path of the ONNX file below the version's folder."""
    files: Mapping[str, str]
    """Path below the version's folder to SHA-256: the graph's files and what all share."""
    file_bytes: int
    batch_invariant: bool
    """Whether a text's vector is the same alone and in any batch."""
    cosine: Closeness | None
    """To the version's own graph; None for that one."""

    @property
    def gpu_only(self) -> bool:
        """Whether a CPU has a better graph to run: the one that a variant in fp16 is of."""
        return self.precision == "fp16" and self.cosine is not None


def choose(
    repository: ModelRepository,
    key: ModelKey,
    manifest: VersionManifest,
    required: Precision | None,
    preferred: Precision,
) -> Chosen:
    """The graph to serve; blocks on the disk.

    Args:
        repository: Has the files.
        key: The version.
        manifest: Of the version.
        required: The only precision that will do; None: whatever there is.
        preferred: Taken where nothing is required and the version has it; else the
            version's own graph is.

    Raises:
        FailedPrecondition: What is required is not there; says how to make it.
        ModelFileCorrupt: The variant's manifest can not be read.
    """
    wanted = required or preferred
    if wanted == manifest.precision:
        return _own(repository, key, manifest)
    if wanted in repository.variants(key.name, key.version):
        return _variant(repository, key, manifest, wanted)
    if required is not None:
        raise _missing(key, manifest, required)
    return _own(repository, key, manifest)


def _own(repository: ModelRepository, key: ModelKey, manifest: VersionManifest) -> Chosen:
    return Chosen(
        precision=manifest.precision,
        graph=GRAPH_FILE,
        files=_read_by_sessions(manifest.files),
        file_bytes=repository.size_bytes(key.name, key.version),
        batch_invariant=manifest.batch_invariant,
        cosine=None,
    )


def _variant(
    repository: ModelRepository, key: ModelKey, manifest: VersionManifest, precision: Precision
) -> Chosen:
    variant = repository.variant_manifest(key.name, key.version, precision)
    own = {name for name in manifest.files if name.startswith(GRAPH_FILE)}
    shared = {name: digest for name, digest in manifest.files.items() if name not in own}
    folder = repository.version_folder(key.name, key.version)
    shared_bytes = sum(path.stat().st_size for name in shared if (path := folder / name).is_file())
    return Chosen(
        precision=precision,
        graph=f"{variant_path(precision)}/{GRAPH_FILE}",
        files=_read_by_sessions(shared | variant_files(variant)),
        file_bytes=shared_bytes + repository.variant_size_bytes(key.name, key.version, precision),
        batch_invariant=variant.batch_invariant,
        cosine=variant.cosine,
    )


def _read_by_sessions(files: Mapping[str, str]) -> dict[str, str]:
    return {name: files[name] for name in files if PurePath(name).name != REFERENCE_FILE}


def _missing(key: ModelKey, manifest: VersionManifest, required: Precision) -> FailedPrecondition:
    how = f": make it with `shoal models quantize {key} --precision {required}`"
    return FailedPrecondition(
        f"model {key} is to be served in {required} and has only {manifest.precision}"
        + (how if manifest.precision == "fp32" and required != "fp32" else ""),
        metadata={"model": key.name, "version": key.version, "precision": required},
    )
