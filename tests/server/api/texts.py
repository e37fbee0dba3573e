"""Texts for the real model: of every length, and with the vectors they should have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .calls import Float32

_DATA = Path(__file__).parents[2] / "data"
_SENTENCE = (
    "a shoal of fish swims as one because each of them keeps its distance and its heading "
    "while many requests run as one batch so that none waits long and every answer stays the "
    "same whoever it travelled with from the wire to the device and back again über 東京 42"
)
_WORDS = _SENTENCE.split()
# Words of a text: every small number, then larger steps up to more than the model takes.
_LENGTHS = (*range(24), *range(24, 64, 4), 64, 96, 160, 300)


def many_texts(repeat: int = 1) -> list[str]:
    """Different texts, `repeat` of each number of words from 0 to above 256.

    Args:
        repeat: At most as many as there are words.
    """
    return [
        " ".join(_WORDS[(start * 7 + place * (1 + start)) % len(_WORDS)] for place in range(length))
        for length in _LENGTHS
        for start in range(repeat)
    ]


def reference() -> tuple[list[str], Float32]:
    """Varied texts and float32[N, 384], the vectors sentence-transformers gives them.

    Made by scripts/reference_vectors.py.
    """
    texts = json.loads((_DATA / "reference_texts.json").read_text())
    vectors: Float32 = np.load(_DATA / "reference_vectors.npy")
    assert len(texts) == len(vectors)
    return texts, vectors
