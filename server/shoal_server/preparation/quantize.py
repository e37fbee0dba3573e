"""How a version gets a graph in int8: the page to read first.

    verify the version → see what its tensors hold on ordinary texts → rewrite the graph
    → check it against the version → manifest → publish

The variant appears beside the version's files by one rename; they stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import onnx

from shoal_server.core import ModelKey
from shoal_server.preparation.calibration import calibrate
from shoal_server.preparation.check import cosine, embed_texts, is_batch_invariant
from shoal_server.preparation.errors import ReferenceMismatch, Unsupported
from shoal_server.preparation.graph import load_weights, save_graph
from shoal_server.preparation.int8 import activations, quantize_graph
from shoal_server.preparation.progress import Progress
from shoal_server.preparation.publish import disk_full_told, hash_files, publish_variant
from shoal_server.preparation.running import TextRunner
from shoal_server.registry.manifest import (
    GRAPH_FILE,
    TOKENIZER_FILE,
    Closeness,
    VariantManifest,
    VersionManifest,
)
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.scratch import scratch_folder

_SOURCE_PRECISION = "fp32"
_PRECISION = "int8"
# Rounding to int8 costs a few thousandths; below this the graph is another model.
_MIN_COSINE = 0.9


@dataclass(frozen=True, slots=True)
class Quantized:
    """What is in the repository now.

    Attributes:
        key: The version.
        manifest: Of the variant.
        was_there: Whether it had been made before; then its files were verified.
    """

    key: ModelKey
    manifest: VariantManifest
    was_there: bool


def quantize(
    key: ModelKey, repository: ModelRepository, progress: Progress, *, again: bool = False
) -> Quantized:
    """Make the int8 variant of a prepared version, unless it is there.

    Blocks for seconds to minutes. Interrupted, it leaves nothing in the repository.

    Args:
        key: The version.
        repository: Holds it.
        progress: Told of each step.
        again: Make it anew where it is there.

    Raises:
        PreparationError: It can not be made; the text says why.
        ShoalError: There is no such version, or its files are corrupt.
        OSError: The disk refuses.
    """
    progress.step(f"verifying {key}")
    if not again and _PRECISION in repository.variants(key.name, key.version):
        there = repository.verify_variant(key.name, key.version, _PRECISION)
        return Quantized(key, there, was_there=True)
    manifest = repository.verify(key.name, key.version)
    if manifest.precision != _SOURCE_PRECISION:
        raise Unsupported(
            f"{key} is in {manifest.precision}; int8 is made from {_SOURCE_PRECISION}"
        )
    folder = repository.version_folder(key.name, key.version)
    with disk_full_told(), scratch_folder(repository.root) as scratch:
        staged = scratch / "variant"
        staged.mkdir()
        progress.step("quantizing the graph")
        _write_graph(folder, manifest, staged)
        progress.step("comparing it with the version")
        variant = _check(folder, manifest, staged)
        publish_variant(staged, repository, key, variant)
    return Quantized(key, variant, was_there=False)


def _write_graph(folder: Path, manifest: VersionManifest, staged: Path) -> None:
    graph = onnx.load(str(folder / GRAPH_FILE), load_external_data=False)
    names = activations(graph)
    seen = calibrate(graph, names, folder, folder / TOKENIZER_FILE, manifest.max_tokens)
    load_weights(graph, folder)
    quantize_graph(graph, seen)
    save_graph(graph, staged / GRAPH_FILE)


def _check(folder: Path, manifest: VersionManifest, staged: Path) -> VariantManifest:
    """Compare a staged variant with its version, and write down how close it came."""
    before, after = (
        TextRunner(where / GRAPH_FILE, folder / TOKENIZER_FILE, manifest.max_tokens)
        for where in (folder, staged)
    )
    vectors = embed_texts(after)
    cosines = cosine(vectors, embed_texts(before))
    least = float(cosines.min())
    if least < _MIN_COSINE:
        raise ReferenceMismatch(
            f"int8 does not suit this model: its vector for text {cosines.argmin()} has the "
            f"cosine {least:.4f} to that of {_SOURCE_PRECISION}, the least allowed is {_MIN_COSINE}"
        )
    return VariantManifest(
        precision=_PRECISION,
        batch_invariant=is_batch_invariant(after, vectors),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        cosine=Closeness(texts=len(cosines), mean=_down(float(cosines.mean())), least=_down(least)),
        files=hash_files(staged),
    )


def _down(cosine: float) -> float:
    # To six digits, and never to more than it is.
    return math.floor(cosine * 1e6) / 1e6
