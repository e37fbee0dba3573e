"""Vectors that are kept with a model: written, read, compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shoal_server.registry.accuracy import Accuracy, Expected, judge
from shoal_server.registry.reference import (
    KeptVectors,
    ReferenceUnreadable,
    cosine,
    read_reference,
    save_reference,
)
from tests.tiny_model import Float32

TEXTS = ("", "naïve é", "\U0001f41f")


def some_vectors(seed: int = 0) -> Float32:
    return np.random.default_rng(seed).normal(size=(len(TEXTS), 4)).astype(np.float32)


def judged(vectors: Float32 | None, least: float = 1.0, tolerance: float = 0.001) -> Accuracy:
    return judge(
        KeptVectors("runtime 1", TEXTS, some_vectors()),
        vectors,
        Expected(None, least),
        tolerance=tolerance,
        precision="fp32",
        at_s=5.0,
        seconds=0.5,
    )


def turned(by: float) -> Float32:
    """The vectors, one of them with the cosine `by` to what it was."""
    vectors = some_vectors()
    first = vectors[0] / np.linalg.norm(vectors[0])
    other = np.roll(first, 1) - first * (np.roll(first, 1) @ first)
    other /= np.linalg.norm(other)
    vectors[0] = by * first + np.sqrt(1 - by**2) * other
    return vectors


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Bit for bit, texts in any language."""
    kept = KeptVectors("runtime 1", TEXTS, some_vectors())
    save_reference(tmp_path / "reference.npz", kept)
    read = read_reference(tmp_path / "reference.npz")
    assert (read.runtime, read.texts) == (kept.runtime, kept.texts)
    np.testing.assert_array_equal(read.vectors, kept.vectors)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    """An array of objects is refused before anything of it runs."""
    path = tmp_path / "reference.npz"
    np.savez(path, about=np.array([object()], dtype=object), vectors=some_vectors())
    with pytest.raises(ReferenceUnreadable):
        read_reference(path)


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_something_else_is_told(tmp_path: Path, data: bytes) -> None:
    """The message names the file, and not its folder."""
    path = tmp_path / "reference.npz"
    path.write_bytes(data)
    with pytest.raises(ReferenceUnreadable, match=r"^reference.npz") as told:
        read_reference(path)
    assert str(tmp_path) not in str(told.value)


def test_a_vector_too_few_is_told(tmp_path: Path) -> None:
    """Texts and vectors belong together."""
    path = tmp_path / "reference.npz"
    save_reference(path, KeptVectors("runtime 1", TEXTS, some_vectors()[:-1]))
    with pytest.raises(ReferenceUnreadable, match="one float32 vector for each text"):
        read_reference(path)


def test_the_cosine_of_nothing_with_nothing_is_one() -> None:
    """A text without tokens has the vector zero, before and after."""
    zero, one = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    assert cosine(zero, zero) == [1.0]
    assert cosine(zero, one) == [0.0]
    assert cosine(one, -one) == [pytest.approx(-1.0)]


def test_the_same_vectors_pass() -> None:
    """Also when they have another length, which a cosine does not see."""
    outcome = judged(3 * some_vectors())
    assert outcome.passed
    assert outcome.least == pytest.approx(1.0)
    assert outcome.mean == pytest.approx(1.0)


def test_a_drop_beyond_the_tolerance_does_not_pass() -> None:
    """One text out of all is enough; the problem says by how much."""
    assert judged(turned(0.9992)).passed
    worse = judged(turned(0.998))
    assert not worse.passed
    assert worse.least == pytest.approx(0.998, abs=1e-5)
    assert "0.998" in worse.problem


def test_what_was_less_close_from_the_start_passes() -> None:
    """What counts is what the manifest says, not perfection."""
    assert judged(turned(0.95), least=0.95).passed


@pytest.mark.parametrize("bad", [None, np.nan, np.inf])
def test_what_is_not_finite_does_not_pass(bad: float | None) -> None:
    """Whether the runtime said so or the numbers do; there is no cosine then."""
    vectors = None
    if bad is not None:
        vectors = some_vectors()
        vectors[1, 2] = bad
    outcome = judged(vectors, tolerance=2.0)
    assert not outcome.passed
    assert (outcome.mean, outcome.least) == (None, None)


def test_other_dimensions_do_not_pass() -> None:
    """The model is another one."""
    outcome = judged(some_vectors()[:, :3])
    assert not outcome.passed
    assert "3 dimensions, 4 are kept" in outcome.problem


def test_the_same_vectors_give_the_same_file(tmp_path: Path) -> None:
    """A version's SHA-256 does not depend on the time."""
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    for path in (first, second):
        save_reference(path, KeptVectors("runtime 1", TEXTS, some_vectors()))
    assert first.read_bytes() == second.read_bytes()
