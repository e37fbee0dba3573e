"""The real model's vectors over the wire are sentence-transformers' vectors."""

from __future__ import annotations

import numpy as np

from .calls import Connection, Float32, rows
from .texts import reference


def assert_equal_to_reference(found: Float32, expected: Float32) -> None:
    """Cosine at least 0.99999, no number further off than 1e-5."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert (found * expected).sum(axis=1).min() >= 0.99999 * lengths.min()
    assert np.abs(found - expected).max() <= 1e-5


def test_set_is_varied() -> None:
    """At least 60 texts: short, long, empty, in many scripts."""
    texts, _ = reference()

    assert len(texts) >= 60
    assert "" in texts
    assert max(map(len, texts)) > 1000
    assert any(ord(character) > 0xFFFF for text in texts for character in text)


def test_one_by_one(real: Connection) -> None:
    """Each text in a request of its own."""
    texts, expected = reference()

    found = np.concatenate([rows(real.embed(text)) for text in texts])

    assert_equal_to_reference(found, expected)


def test_all_at_once(real: Connection) -> None:
    """All texts in one request, in its order."""
    texts, expected = reference()

    assert_equal_to_reference(rows(real.embed(*texts)), expected)
