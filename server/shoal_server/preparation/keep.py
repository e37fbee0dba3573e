"""Vectors to compare it with, for a version that was prepared before any were kept."""

from __future__ import annotations

import onnxruntime

from shoal_server.core import ModelKey
from shoal_server.preparation.check import embed_texts, kept_vectors
from shoal_server.preparation.progress import Progress
from shoal_server.preparation.publish import publish_reference
from shoal_server.preparation.running import TextRunner
from shoal_server.registry.manifest import GRAPH_FILE, TOKENIZER_FILE, VersionManifest
from shoal_server.registry.reference import REFERENCE_FILE, save_reference
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.scratch import scratch_folder

_ITSELF = f"this graph when its vectors were kept (onnxruntime {onnxruntime.__version__})"


def keep_vectors(
    key: ModelKey, manifest: VersionManifest, repository: ModelRepository, progress: Progress
) -> VersionManifest:
    """Keep what a version's graph gives today, unless vectors of it are kept.

    That is what it gave when it was prepared: its files were just verified. Where the disk
    refuses, it is as good as before, and progress is told.

    Args:
        key: The version.
        manifest: Of it.
        repository: Has it.
        progress: Told of it.

    Returns:
        Its manifest, with what is kept.

    Raises:
        Unsupported: The graph can not run.
    """
    if REFERENCE_FILE in manifest.files:
        return manifest
    progress.step("keeping vectors to compare it with later")
    folder = repository.version_folder(key.name, key.version)
    runner = TextRunner(folder / GRAPH_FILE, folder / TOKENIZER_FILE, manifest.max_tokens)
    vectors = embed_texts(runner)
    try:
        with scratch_folder(repository.root) as scratch:
            staged = scratch / REFERENCE_FILE
            save_reference(staged, kept_vectors(_ITSELF, vectors))
            return publish_reference(staged, repository, key, manifest)
    except OSError as error:
        progress.step(f"warning: no vectors are kept: {error.strerror}")
        return manifest
