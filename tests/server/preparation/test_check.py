"""Comparing a prepared graph with the reference runtime."""

from __future__ import annotations

import numpy as np
import pytest

from shoal_server.preparation.check import compare
from shoal_server.preparation.errors import ReferenceMismatch

from .authors import Float32

VECTORS: Float32 = np.random.default_rng(5).normal(size=(6, 16)).astype(np.float32)


def test_equal_vectors() -> None:
    """Equal vectors have the cosine 1 and no difference, also where both are zero."""
    vectors = VECTORS.copy()
    vectors[2] = 0
    reference = compare(vectors, vectors.copy(), "runtime 1.0")
    assert (reference.runtime, reference.texts) == ("runtime 1.0", 6)
    assert reference.min_cosine == pytest.approx(1.0, abs=1e-9)
    assert reference.max_abs_difference == 0.0


def test_the_worst_text_counts() -> None:
    """One text that differs is enough to refuse, and is named."""
    vectors = VECTORS.copy()
    vectors[4] = -vectors[4]
    with pytest.raises(ReferenceMismatch, match="text 4"):
        compare(vectors, VECTORS, "runtime 1.0")


def test_length_alone_shows_in_the_difference() -> None:
    """The cosine does not see a vector's length; the difference does."""
    reference = compare(VECTORS * 2, VECTORS, "runtime 1.0")
    assert reference.min_cosine == pytest.approx(1.0, abs=1e-6)
    assert reference.max_abs_difference == pytest.approx(np.abs(VECTORS).max(), rel=1e-2)


def test_zero_is_not_like_anything_else() -> None:
    """A vector of zeros where the reference has none is refused."""
    with pytest.raises(ReferenceMismatch):
        compare(np.zeros_like(VECTORS), VECTORS, "runtime 1.0")


def test_other_dimensions_are_told() -> None:
    """The error names both numbers."""
    with pytest.raises(ReferenceMismatch, match=r"8 dimensions.*16"):
        compare(VECTORS[:, :8], VECTORS, "runtime 1.0")
