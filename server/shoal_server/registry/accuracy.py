"""How close a model's vectors came to those that are kept with it, and whether that will do."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from shoal_server.core import ModelKey, ModelRef
from shoal_server.registry.reference import KeptVectors, Vectors, cosine
from shoal_server.registry.store import Change, Record

ACCURACY = "accuracy"
"""Kind of the store's records."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the manifest says: cosines when the model was prepared."""

    mean: float | None
    least: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The outcome of a comparison."""

    texts: int
    mean: float | None
    """Cosine over the texts; None when a vector was not finite."""
    least: float | None
    expected_mean: float | None
    expected_least: float
    tolerance: float
    problem: str
    """Why it did not pass, in words; empty when it did."""
    reference: str
    """What the kept vectors are of."""
    precision: str
    at_s: float
    """Seconds since the epoch."""
    seconds: float
    """What it took."""

    @property
    def passed(self) -> bool:
        """Whether it is as good as when it was prepared."""
        return not self.problem


def judge(
    kept: KeptVectors,
    vectors: Vectors | None,
    expected: Expected,
    *,
    tolerance: float,
    precision: str,
    at_s: float,
    seconds: float,
) -> Accuracy:
    """Compare a model's vectors with those that are kept with it.

    Args:
        kept: With the model.
        vectors: float32[N, D] of the same texts; None: they were not all finite.
        expected: By its manifest.
        tolerance: How far the least cosine may be below what is expected.
        precision: Of the graph that was asked.
        at_s: Seconds since the epoch.
        seconds: What it took.
    """
    mean = least = None
    if vectors is None or not np.isfinite(vectors).all():
        problem = "a vector is not finite"
    elif vectors.shape != kept.vectors.shape:
        problem = f"{vectors.shape[1]} dimensions, {kept.vectors.shape[1]} are kept"
    else:
        cosines = cosine(vectors, kept.vectors)
        mean, least = float(cosines.mean()), float(cosines.min())
        problem = ""
        if not least >= expected.least - tolerance:
            problem = (
                f"the least cosine to {kept.runtime} is {least:.6f}, when it was prepared it was "
                f"{expected.least:.6f}, {tolerance:g} less is tolerated"
            )
    return Accuracy(
        texts=len(kept.texts),
        mean=mean,
        least=least,
        expected_mean=expected.mean,
        expected_least=expected.least,
        tolerance=tolerance,
        problem=problem,
        reference=kept.runtime,
        precision=precision,
        at_s=at_s,
        seconds=seconds,
    )


def accuracy_change(key: ModelKey, accuracy: Accuracy) -> Change:
    """To write how accurate a version was found to be."""
    return Change(ACCURACY, str(key), asdict(accuracy))


def read_accuracy(text: str, record: Record) -> tuple[ModelKey, Accuracy]:
    """What `accuracy_change` wrote.

    Raises:
        ValueError: It makes no sense.
        TypeError: Likewise.
    """
    ref = ModelRef.parse(text)
    if ref.version is None:
        raise ValueError(f"{text} has no version")
    return ModelKey(ref.name, ref.version), Accuracy(**record)  # type: ignore[arg-type]
