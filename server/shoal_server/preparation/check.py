"""Running a prepared version on texts, alone and against the reference runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from shoal_server.preparation.errors import ReferenceMismatch, Unsupported
from shoal_server.preparation.running import TextRunner, read_texts
from shoal_server.registry.manifest import EMBEDDING, Reference
from shoal_server.registry.reference import KeptVectors, Vectors, cosine

TEXTS_FILE = Path(__file__).with_name("check_texts.json")
MIN_COSINE = 0.999
# Of a vector's length. Sums of float32 in another order move it by some 1e-7, a scale that
# a batch shares by 1e-3 and more: this is far from both.
MAX_BATCH_EFFECT = 1e-5
_BATCHES = 5  # so that each has short texts and long ones


def kept_vectors(runtime: str, vectors: Vectors) -> KeptVectors:
    """Vectors of the texts of `check_texts.json`, to be kept with what is prepared."""
    return KeptVectors(runtime, tuple(read_texts(TEXTS_FILE.name)), vectors)


def embed_texts(runner: TextRunner) -> Vectors:
    """Embed the texts of `check_texts.json` with a prepared version, one by one.

    Returns:
        float32[N, D]

    Raises:
        Unsupported: The graph can not run, or gives no finite vectors.
    """
    vectors = np.concatenate(
        [runner.run([text], [EMBEDDING])[0] for text in read_texts(TEXTS_FILE.name)]
    )
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise Unsupported("the graph does not give one finite vector for each text")
    return vectors


def is_batch_invariant(runner: TextRunner, alone: Vectors) -> bool:
    """Whether texts have the same vectors in batches of mixed lengths as they have alone.

    Args:
        runner: Of the graph.
        alone: From `embed_texts`.

    Raises:
        Unsupported: The graph can not run.
    """
    texts = read_texts(TEXTS_FILE.name)
    norms = np.linalg.norm(alone, axis=1)
    for first in range(_BATCHES):
        rows = slice(first, None, _BATCHES)
        together = runner.run(texts[rows], [EMBEDDING])[0]
        distances = np.linalg.norm(together - alone[rows], axis=1)
        # Not `any(>)`: a vector that is not finite fails too.
        if not (distances <= MAX_BATCH_EFFECT * norms[rows]).all():
            return False
    return True


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        Unsupported: It is not one.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise Unsupported(f"{path.name} can not be read: {error}") from error


def compare(actual: Vectors, expected: Vectors, runtime: str) -> Reference:
    """How close prepared vectors are to those of the reference runtime.

    Args:
        actual: float32[N, D] of the prepared graph.
        expected: float32[N, D] of the reference.
        runtime: The reference's name and version.

    Raises:
        ReferenceMismatch: A text's cosine is below 0.999, or the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ReferenceMismatch(
            f"the graph gives {actual.shape[1]} dimensions, {runtime} gives {expected.shape[1]}"
        )
    cosines = cosine(actual, expected)
    if cosines.min() < MIN_COSINE:
        raise ReferenceMismatch(
            f"the prepared graph is not the model: its vector for text {cosines.argmin()} has the "
            f"cosine {cosines.min():.6f} to that of {runtime}, the least allowed is {MIN_COSINE}"
        )
    return Reference(
        runtime=runtime,
        texts=len(cosines),
        min_cosine=round(float(cosines.min()), 9),
        max_abs_difference=float(f"{np.abs(actual - expected).max():.3g}"),
    )
