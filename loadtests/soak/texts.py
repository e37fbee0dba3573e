"""What the callers ask about: many short texts, few long ones."""

from __future__ import annotations

import random

_SENTENCE = (
    "a shoal of fish swims as one here many requests run as one batch and each caller gets "
    "the vector that its text has alone whoever it was batched with"
)
# Words of each text.
_LENGTHS = (*range(1, 17), 20, 24, 30, 40, 60, 100)


def make_texts() -> list[str]:
    """The same each time, one of each length."""
    draw = random.Random(0)
    return [" ".join(draw.choices(_SENTENCE.split(), k=length)) for length in _LENGTHS]
