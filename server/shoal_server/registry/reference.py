"""The vectors that a model is compared with: kept with its files since it was prepared.

    <version>/reference.npz                       of the version's own graph
    <version>/variants/<precision>/reference.npz  of a variant

A file holds its texts, so that what a later Shoal compares on is of no account.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REFERENCE_FILE = "reference.npz"

Vectors = NDArray[np.float32]


class ReferenceUnreadable(Exception):
    """The file is not what `save_reference` writes; the message says why."""


@dataclass(frozen=True, slots=True)
class KeptVectors:
    """Texts, and the vectors that belong to them.

    Attributes:
        runtime: What made the vectors, with its version.
        texts: At least one.
        vectors: float32[N, D]
    """

    runtime: str
    texts: tuple[str, ...]
    vectors: Vectors


def save_reference(path: Path, kept: KeptVectors) -> None:
    """Write vectors with their texts; no pickle is needed to read them.

    Raises:
        OSError: The disk refuses.
    """
    about = json.dumps({"runtime": kept.runtime, "texts": kept.texts})
    np.savez(
        path,
        about=np.frombuffer(about.encode(), dtype=np.uint8),
        vectors=kept.vectors.astype(np.float32),
    )


def read_reference(path: Path) -> KeptVectors:
    """Read what `save_reference` wrote; blocks on the disk.

    Raises:
        ReferenceUnreadable: It is something else.
        OSError: It can not be read.
    """
    try:
        # By numpy itself, a file that is no archive would be left open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            vectors = arrays["vectors"]
        runtime, texts = str(about["runtime"]), tuple(map(str, about["texts"]))
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ReferenceUnreadable(f"{path.name} can not be read: {error}") from error
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != len(texts) or not texts:
        raise ReferenceUnreadable(f"{path.name} does not hold one float32 vector for each text")
    return KeptVectors(runtime, texts, vectors)


def cosine(left: Vectors, right: Vectors) -> NDArray[np.float64]:
    """The cosine of each pair of rows, float64[N]; of two zero vectors it is 1."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = np.einsum("nd,nd->n", left, right) / np.maximum(norms, np.finfo(np.float64).tiny)
    # A text without tokens has the vector zero, and zero is zero.
    equal = (left == right).all(axis=1)
    return np.where(equal, 1.0, cosines)
