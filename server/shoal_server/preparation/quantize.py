"""How a version gets a graph in another precision: the page to read first.

    verify the version → rewrite the graph → check it against the version → manifest → publish

`int8` is for CPUs and has to see first what the graph's tensors hold on ordinary texts;
`fp16` is for GPUs. The variant appears beside the version's files by one rename; they stay
as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import onnx

from shoal_server.core import ModelKey
from shoal_server.inference.packing import without_padding
from shoal_server.preparation.calibration import calibrate
from shoal_server.preparation.check import embed_texts, is_batch_invariant, kept_vectors
from shoal_server.preparation.errors import ReferenceMismatch, Unsupported
from shoal_server.preparation.fp16 import fused_nodes, half_graph
from shoal_server.preparation.graph import load_weights, save_graph
from shoal_server.preparation.int8 import activations, quantize_graph
from shoal_server.preparation.progress import Progress
from shoal_server.preparation.publish import disk_full_told, hash_files, publish_variant
from shoal_server.preparation.running import TextRunner
from shoal_server.registry.manifest import (
    GRAPH_FILE,
    TOKENIZER_FILE,
    Closeness,
    Precision,
    VariantManifest,
    VersionManifest,
)
from shoal_server.registry.reference import REFERENCE_FILE, cosine, save_reference
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.scratch import scratch_folder

_SOURCE_PRECISION = "fp32"


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
    key: ModelKey,
    repository: ModelRepository,
    progress: Progress,
    *,
    precision: Precision = "int8",
    again: bool = False,
) -> Quantized:
    """Make a variant of a prepared version, unless it is there.

    Blocks for seconds to minutes. Interrupted, it leaves nothing in the repository.

    Args:
        key: The version.
        repository: Holds it.
        progress: Told of each step.
        precision: Of the variant: int8 or fp16.
        again: Make it anew where it is there.

    Raises:
        PreparationError: It can not be made; the text says why.
        ShoalError: There is no such version, or its files are corrupt.
        OSError: The disk refuses.
    """
    progress.step(f"verifying {key}")
    if not again and precision in repository.variants(key.name, key.version):
        there = repository.verify_variant(key.name, key.version, precision)
        return Quantized(key, there, was_there=True)
    manifest = repository.verify(key.name, key.version)
    if manifest.precision != _SOURCE_PRECISION:
        raise Unsupported(
            f"{key} is in {manifest.precision}; {precision} is made from {_SOURCE_PRECISION}"
        )
    folder = repository.version_folder(key.name, key.version)
    with disk_full_told(), scratch_folder(repository.root) as scratch:
        staged = scratch / "variant"
        staged.mkdir()
        progress.step(f"rewriting the graph in {precision}")
        graph = _REWRITE[precision](folder, manifest, scratch, progress)
        save_graph(graph, staged / GRAPH_FILE)
        progress.step("comparing it with the version")
        variant = _check(folder, manifest, staged, precision)
        publish_variant(staged, repository, key, variant)
    return Quantized(key, variant, was_there=False)


def _in_int8(
    folder: Path, manifest: VersionManifest, scratch: Path, progress: Progress
) -> onnx.ModelProto:
    source = folder / GRAPH_FILE
    # Afterwards the products are not to be recognised any longer.
    graph = without_padding(
        source, vocabulary_size=manifest.vocabulary_size, max_tokens=manifest.max_tokens
    )
    if graph is None:
        graph = onnx.load(str(source), load_external_data=False)
    names = activations(graph)
    seen = calibrate(graph, names, folder, folder / TOKENIZER_FILE, manifest.max_tokens)
    load_weights(graph, folder)
    quantize_graph(graph, seen)
    return graph


def _in_fp16(
    folder: Path, manifest: VersionManifest, scratch: Path, progress: Progress
) -> onnx.ModelProto:
    graph = onnx.load(str(folder / GRAPH_FILE), load_external_data=False)
    halved = half_graph(graph, folder, scratch)
    fused = fused_nodes(halved)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(fused.items()))
    progress.step(f"fused nodes: {told or 'none, its patterns are not known'}")
    return halved


_Rewrite = Callable[[Path, VersionManifest, Path, Progress], onnx.ModelProto]
_REWRITE: Mapping[Precision, _Rewrite] = {"int8": _in_int8, "fp16": _in_fp16}
# Below this the graph is another model: rounding to int8 costs a few thousandths, to fp16
# a few millionths.
_LEAST_COSINE: Mapping[Precision, float] = {"int8": 0.9, "fp16": 0.9995}


def _check(
    folder: Path, manifest: VersionManifest, staged: Path, precision: Precision
) -> VariantManifest:
    """Compare a staged variant with its version, and write down how close it came."""
    before, after = (
        TextRunner(where / GRAPH_FILE, folder / TOKENIZER_FILE, manifest.max_tokens)
        for where in (folder, staged)
    )
    vectors = embed_texts(after)
    own = embed_texts(before)
    cosines = cosine(vectors, own)
    least = float(cosines.min())
    allowed = _LEAST_COSINE[precision]
    if least < allowed:
        raise ReferenceMismatch(
            f"{precision} does not suit this model: its vector for text {cosines.argmin()} has "
            f"the cosine {least:.6f} to that of {_SOURCE_PRECISION}, the least allowed is {allowed}"
        )
    runtime = f"the version's graph in {_SOURCE_PRECISION}"
    save_reference(staged / REFERENCE_FILE, kept_vectors(runtime, own))
    return VariantManifest(
        precision=precision,
        batch_invariant=is_batch_invariant(after, vectors),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        cosine=Closeness(texts=len(cosines), mean=_down(float(cosines.mean())), least=_down(least)),
        files=hash_files(staged),
    )


def _down(cosine: float) -> float:
    # To six digits, and never to more than it is.
    return math.floor(cosine * 1e6) / 1e6
