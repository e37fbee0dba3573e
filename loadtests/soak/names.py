"""What names mean, kept in the timeline by those who change it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from loadtests.soak.scene import Means
from loadtests.soak.timeline import Span, Timeline


@dataclass(slots=True)
class Change:
    """Of what a name means, while it goes on."""

    meant: Sequence[str] | None = None
    """The versions that it means then; None: those that it meant before."""


class Names:
    """Shared by all who change names. Belongs to the event loop's thread."""

    def __init__(self, timeline: Timeline) -> None:
        """Nothing means anything yet."""
        self._timeline = timeline
        self._spans: defaultdict[str, list[Span]] = defaultdict(list)
        self._ever: defaultdict[str, set[str]] = defaultdict(set)
        # Of two changes at once nobody on this side could tell which came last.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def always(self, name: str, version: str) -> None:
        """A name that nobody changes."""
        self._timeline.begin(Means(name, version), time.monotonic())

    @asynccontextmanager
    async def changing(
        self, name: str, perhaps: Iterable[str] | None = None, *, also: str | None = None
    ) -> AsyncIterator[Change]:
        """Let a name mean something else, in its turn; the block tells what it came to mean.

        Args:
            name: That is changed.
            perhaps: The versions that it may mean from now on; None: any that it ever meant.
            also: Another name that always means the same.
        """
        async with self._turns[name]:
            names = [name] if also is None else [name, also]
            versions = sorted(self._ever[name]) if perhaps is None else list(perhaps)
            began_s = time.monotonic()
            new = {
                version: [self._timeline.begin(Means(each, version), began_s) for each in names]
                for version in versions
            }
            change = Change()
            yield change
            now_s = time.monotonic()
            if change.meant is None:
                _end((span for spans in new.values() for span in spans), now_s)
                return
            _end(self._spans[name], now_s)
            _end((s for v, spans in new.items() if v not in change.meant for s in spans), now_s)
            self._spans[name] = [span for v in change.meant for span in new[v]]
            self._ever[name].update(change.meant)


def _end(spans: Iterable[Span], now_s: float) -> None:
    for span in spans:
        span.ended_s = now_s
