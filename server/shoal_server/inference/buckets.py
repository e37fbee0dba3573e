"""The shapes that batches on a GPU are padded to.

A GPU's libraries and ONNX Runtime's planning of memory do work for every shape that is
new to them, and buffers are made for one. So that shapes can be met before the first
caller comes, there are few: a batch is padded up to the next one.

That costs nothing where a run waits for launches more than it computes, and, of batches
that are large enough to compute, up to an eighth for the lengths and as much for the
items: there are eight shapes an octave, 64, 72, 80, … 128,
144, …, and below 64 every eighth length, the width of a tensor core's tile. Up to eight
texts their number is a power of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

_TILE = 8
_STEPS_PER_OCTAVE = 8

Shape = tuple[int, int]
"""Items and tokens of a padded batch."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """The shapes for one model."""

    max_length: int
    """Tokens that the model takes; nothing is padded beyond."""

    def of(self, items: int, length: int) -> Shape:
        """The least shape that holds a batch.

        Args:
            items: At least 1.
            length: Tokens of the longest; at least 1.
        """
        return _items_bucket(items), self._length_bucket(length)

    def all(self, max_items: int, max_tokens: int) -> list[Shape]:
        """Every shape that batches can have.

        Args:
            max_items: Of one batch.
            max_tokens: Of one batch, before it is padded to its bucket; a longer item
                runs alone.

        Returns:
            The largest first.
        """
        found = {
            self.of(items, length)
            for length in _buckets_from(self.max_length, self._length_bucket)
            for items in _buckets_from(min(max_items, max(1, max_tokens // length)), _items_bucket)
        }
        return sorted(found, key=lambda shape: (shape[0] * shape[1], shape), reverse=True)

    def _length_bucket(self, length: int) -> int:
        return max(length, min(_round_up(length), self.max_length))


def _buckets_from(most: int, bucket: Callable[[int], int]) -> Iterator[int]:
    """The least number in each bucket that holds a number up to `most`."""
    least = 1
    while least <= most:
        yield least
        least = bucket(least) + 1


def _items_bucket(items: int) -> int:
    return _round_up(items) if items > _TILE else 1 << (items - 1).bit_length()


def _round_up(number: int) -> int:
    """To the next multiple of an eighth of the octave that it is in, 8 at least."""
    octave = 1 << (number - 1).bit_length() >> 1
    step = max(_TILE, octave // _STEPS_PER_OCTAVE)
    return -(-number // step) * step
