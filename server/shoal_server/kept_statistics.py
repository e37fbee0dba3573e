"""What was counted outlasts the server: totals, usage by caller, and patterns of use.

They are written every so often, only what has changed, and when the server stops. A server
that is killed loses what it counted since it last wrote.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from shoal_server.errors import NotPersisted
from shoal_server.registry.remembered_counts import (
    began_change,
    caller_change,
    pattern_change,
    remembered_past,
    remembered_patterns,
    total_change,
)
from shoal_server.registry.store import Change, RecordStore
from shoal_server.statistics.all_time import AllTime
from shoal_server.statistics.statistics import OTHERS, Statistics
from shoal_server.statistics.totals import CallerTotals, within_bound
from shoal_server.usage.history import UsageHistory

# Of one transaction; between two of them requests have their turn.
_CHANGES_AT_ONCE = 100


class KeptStatistics:
    """Restores and writes what was counted. Belongs to the event loop's thread.

    Attributes:
        all_time: What was counted here and by the servers before.
    """

    def __init__(
        self,
        statistics: Statistics,
        history: UsageHistory,
        store: RecordStore,
        *,
        max_pairs: int,
        wall_clock: Callable[[], float],
    ) -> None:
        """Add what the store remembers to what is counted from now on.

        Args:
            statistics: Count requests.
            history: Knows when models are asked for; is given its past.
            store: Remembers both.
            max_pairs: Callers and models of the past that keep their names.
            wall_clock: Seconds since the epoch.
        """
        past = remembered_past(store, wall_clock())
        callers = within_bound(past.callers, max_pairs, OTHERS)
        self.all_time = AllTime(statistics, replace(past, callers=callers))
        history.restore(remembered_patterns(store))
        self._statistics = statistics
        self._history = history
        self._store = store
        self._wall_clock = wall_clock
        # What the past became by being read; written with the first counts.
        self._read = [began_change(past.began_s)]
        for key in {*past.callers, *callers}:
            if past.callers.get(key) != callers.get(key):
                self._read.append(caller_change(key, callers.get(key)))

    async def run(self, interval_s: float) -> None:
        """Write again and again, until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            # The store says it in the log, and the next time is soon.
            with suppress(NotPersisted):
                await self.write()

    async def close(self) -> None:
        """Write for the last time."""
        with suppress(NotPersisted):
            await self.write()

    async def write(self) -> None:
        """Write what was counted since the last time; returns when it is durable.

        Raises:
            NotPersisted: The disk refused; the next write has it again.
        """
        statistics, history = self._statistics, self._history
        models, statistics.changed_models = statistics.changed_models, set()
        callers, statistics.changed_callers = statistics.changed_callers, set()
        names, history.changed = history.changed, set()
        if not (models or callers or names):
            return

        def changes() -> Iterator[Change]:
            yield from self._read
            for key in models:
                yield total_change(key, self.all_time.of_model(key))
            for caller in callers:
                totals = CallerTotals(self.all_time.of_caller(caller), self._wall_clock())
                yield caller_change(caller, totals)
            for name in names:
                yield pattern_change(name, history.patterns.get(name))

        try:
            await self._write_in_parts(changes())
        except BaseException:
            statistics.changed_models |= models
            statistics.changed_callers |= callers
            history.changed |= names
            raise
        self._read = []

    async def _write_in_parts(self, changes: Iterator[Change]) -> None:
        part: list[Change] = []
        for change in changes:
            part.append(change)
            if len(part) == _CHANGES_AT_ONCE:
                await self._store.write(*part)
                part = []
        await self._store.write(*part)
