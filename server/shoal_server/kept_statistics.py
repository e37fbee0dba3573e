"""What was counted outlasts the server: totals, usage by caller, and patterns of use.

They are written every so often, only what has changed, and when the server stops. A server
that is killed loses what it counted since it last wrote.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
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
from shoal_server.statistics.counts import UsageKey
from shoal_server.statistics.statistics import OTHERS, Statistics
from shoal_server.statistics.totals import CallerTotals, both, within_bound
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
        # What the past became by being read: transactions, written before the first counts.
        self._read = [[began_change(past.began_s)], *_merged(past.callers, callers)]

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
            for key in models:
                yield total_change(key, self.all_time.of_model(key))
            for caller in callers:
                totals = CallerTotals(self.all_time.of_caller(caller), self._wall_clock())
                yield caller_change(caller, totals)
            for name in names:
                yield pattern_change(name, history.patterns.get(name))

        try:
            while self._read:
                await self._store.write(*self._read[0])
                del self._read[0]
            await self._write_in_parts(changes())
        except BaseException:
            statistics.changed_models |= models
            statistics.changed_callers |= callers
            history.changed |= names
            raise

    async def _write_in_parts(self, changes: Iterator[Change]) -> None:
        part: list[Change] = []
        for change in changes:
            part.append(change)
            if len(part) == _CHANGES_AT_ONCE:
                await self._store.write(*part)
                part = []
        await self._store.write(*part)


def _merged(
    before: Mapping[UsageKey, CallerTotals], after: Mapping[UsageKey, CallerTotals]
) -> Iterator[list[Change]]:
    """Transactions after which callers that lost their names are counted as `OTHERS`.

    In each a few of them: as long as all are done in order, whatever ends the server in
    between, nothing is counted twice, or not at all.
    """
    lost = [key for key in before if key not in after]
    merged = {key: each for key, each in before.items() if key[0] == OTHERS}
    at_once = _CHANGES_AT_ONCE // 2  # each may change a record of the others, too
    for first in range(0, len(lost), at_once):
        some = lost[first : first + at_once]
        for key in some:
            others = (OTHERS, key[1])
            merged[others] = both(merged.get(others), before[key])
        changes = [caller_change(key, None) for key in some]
        changes += [caller_change(key, merged[key]) for key in {(OTHERS, key[1]) for key in some}]
        yield changes
