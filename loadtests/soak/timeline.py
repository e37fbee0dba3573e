"""What held when, as callers can tell: no moment of the server's is known to them exactly.

Something that a call brings about holds, for all that its caller knows, from when the call
began; what a call ends, until that call was answered. A request is judged by what held at
any moment between being sent and being answered.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Longer than any request takes: what ended before that is asked for by nobody.
_KEPT_S = 300.0


@dataclass(slots=True)
class Span:
    """From one moment to another, on the monotonic clock."""

    began_s: float
    ended_s: float = math.inf


class Timeline:
    """Facts, and when they held."""

    def __init__(self) -> None:
        self._spans: defaultdict[Hashable, list[Span]] = defaultdict(list)

    def begin(self, fact: Hashable, now_s: float) -> Span:
        """From now on `fact` holds, until somebody sets the span's end."""
        spans = self._spans[fact]
        spans[:] = [each for each in spans if each.ended_s > now_s - _KEPT_S]
        spans.append(Span(now_s))
        return spans[-1]

    @contextmanager
    def during(self, *facts: Hashable, clock: Callable[[], float]) -> Iterator[None]:
        """While inside, `facts` hold."""
        spans = [self.begin(fact, clock()) for fact in facts]
        try:
            yield
        finally:
            for span in spans:
                span.ended_s = clock()

    def held(self, fact: Hashable, from_s: float, to_s: float) -> bool:
        """Whether `fact` held at some moment between the two."""
        spans = self._spans.get(fact, ())
        return any(each.began_s <= to_s and each.ended_s >= from_s for each in spans)
