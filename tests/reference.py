"""Vectors that are kept with a tiny model, right ones and wrong ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from shoal_server.registry.manifest import VERSION_FILE, Reference, VersionManifest
from shoal_server.registry.reference import REFERENCE_FILE, KeptVectors, save_reference
from tests.tiny_model import Float32, TinyModel

TEXTS = ("red", "orange yellow", "green blue violet", "red blue")


def keep_vectors(
    model: TinyModel,
    *,
    texts: Sequence[str] = TEXTS,
    vectors: Float32 | None = None,
    min_cosine: float = 1.0,
) -> None:
    """Put vectors beside a tiny model, as preparing does.

    Args:
        model: Its manifest is written anew.
        texts: Of the vectors.
        vectors: float32[N, D]; None: those of the model.
        min_cosine: What the manifest says of them.
    """
    if vectors is None:
        vectors = np.stack([model.vector(text) for text in texts])
    path = model.folder / REFERENCE_FILE
    save_reference(path, KeptVectors("tests 1", tuple(texts), vectors))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = VersionManifest.read(model.folder / VERSION_FILE)
    reference = Reference(
        runtime="tests 1", texts=len(texts), min_cosine=min_cosine, max_abs_difference=0.0
    )
    fresh = manifest.model_copy(
        update={"files": {**manifest.files, REFERENCE_FILE: digest}, "reference": reference}
    )
    (model.folder / VERSION_FILE).write_text(fresh.to_toml())
