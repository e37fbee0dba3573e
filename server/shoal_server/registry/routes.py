"""Which of several versions behind one name serves a request: pure, but for chance."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import accumulate
from math import log
from typing import Generic, TypeVar

T = TypeVar("T")

_HASH_BYTES = 8
_HASHES = 2 ** (8 * _HASH_BYTES)


@dataclass(frozen=True, slots=True)
class Share(Generic[T]):
    """One of the choices, and how much of the traffic it gets, relative to the others."""

    label: str
    """The same as long as it is the same choice, over restarts and on every server."""
    weight: int
    value: T


class Split(Generic[T]):
    """Traffic between choices by weight.

    Without a key each request is a draw. With one the choice is always the same: the
    weighted rendezvous of Schindelhauer and Schomaker (SPAA 2005), where each choice
    scores -weight / ln(u) with u in (0, 1) hashed from key and choice, and the highest
    wins. When weights change, only as many keys move as must.
    """

    def __init__(self, name: str, shares: Sequence[Share[T]]) -> None:
        """Two shares or more.

        Args:
            name: Of what is split: the same caller may be on either side of another one.
            shares: With weights of at least 1.
        """
        self._name = name
        self.shares = tuple(shares)
        self._ends = list(accumulate(share.weight for share in shares))

    def choose(self, routing_key: str) -> T:
        """Whose turn it is; the same for the same key, by chance for an empty one."""
        if routing_key:
            return max(self.shares, key=lambda share: self._score(share, routing_key)).value
        drawn = random.randrange(self._ends[-1])  # noqa: S311  (no secret)
        return self.shares[bisect_right(self._ends, drawn)].value

    def replaced(self, label: str, value: T) -> Split[T]:
        """The same split, with another value behind one label."""
        shares = [replace(each, value=value) if each.label == label else each
                  for each in self.shares]  # fmt: skip
        return Split(self._name, shares)

    def _score(self, share: Share[T], routing_key: str) -> float:
        digest = blake2b(
            f"{self._name}\0{share.label}\0{routing_key}".encode(), digest_size=_HASH_BYTES
        ).digest()
        # The middle of one of 2^64 equal steps: neither 0 nor 1, whose logarithms are no scores.
        return -share.weight / log((int.from_bytes(digest) + 0.5) / _HASHES)
