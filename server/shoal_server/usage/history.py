"""How often each model is asked for, by the hour of the week.

Hours are those of UTC, counted from the epoch: a day has 24 of them everywhere, and none
twice. Where people's working day moves against UTC, twice a year in many places, the
pattern follows within a few weeks: a week counts `DECAY` of the one after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

HOURS_PER_WEEK = 168
DECAY = 0.75
"""What a week counts of the week after it: after a month a quarter."""
MAX_NAMES = 1000
"""Names with a pattern; beyond, the one that was asked for least recently is forgotten."""

_HOUR_S = 3600
# The epoch was a Thursday; weeks are shown from Monday on.
_EPOCH_HOUR_OF_WEEK = 3 * 24
_DIGITS = 3

Numbers = tuple[float, ...]


def hour_of(time_s: float) -> int:
    """The hour that a time lies in, counted from the epoch."""
    return int(time_s // _HOUR_S)


def hour_of_week(hour: int) -> int:
    """Which hour of the week an hour is; 0: Monday, midnight to one, UTC."""
    return (hour + _EPOCH_HOUR_OF_WEEK) % HOURS_PER_WEEK


@dataclass(slots=True)
class HourOfWeek:
    """One hour of the week, over the weeks.

    Sums over the weeks before an hour weigh each week: the last one 1, the one before
    it DECAY, the next DECAY², …
    """

    last: int
    """The last such hour in which the model was asked for."""
    count: float = 1
    """Requests in it."""
    used: float = 0.0
    """Weeks before it in which the model was asked for, weighed."""
    requests: float = 0.0
    """Requests in these, weighed."""

    def before(self, hour: int) -> tuple[float, float]:
        """Weeks of use and requests in the weeks before `hour`, weighed."""
        weeks = (hour - self.last) // HOURS_PER_WEEK
        if weeks < 1:
            return self.used, self.requests
        weight = DECAY ** (weeks - 1)
        return weight * (1 + DECAY * self.used), weight * (self.count + DECAY * self.requests)

    def asked(self, hour: int) -> None:
        """Count a request in `hour`; one of an hour before `last` counts in that."""
        if hour > self.last:
            self.used, self.requests = self.before(hour)
            self.last, self.count = hour, 0
        self.count += 1


@dataclass(slots=True)
class Pattern:
    """When one model is asked for."""

    first: int
    """The hour of the first request."""
    last: int
    """The hour of the last one."""
    hours: dict[int, HourOfWeek] = field(default_factory=dict)
    """By hour modulo the week; those without a request are left out."""

    def asked(self, hour: int) -> None:
        """Count a request."""
        self.last = hour
        slot = self.hours.get(hour % HOURS_PER_WEEK)
        if slot is None:
            self.hours[hour % HOURS_PER_WEEK] = HourOfWeek(hour)
        else:
            slot.asked(hour)

    def before(self, hour: int) -> tuple[float, float, float]:
        """What the weeks before `hour` say of it.

        Returns:
            Weeks since the first request, weeks in which it was asked for in this hour,
            requests in these; each week weighed.
        """
        weeks = max(0, hour - self.first) // HOURS_PER_WEEK
        slot = self.hours.get(hour % HOURS_PER_WEEK)
        used, requests = slot.before(hour) if slot else (0.0, 0.0)
        return (1 - DECAY**weeks) / (1 - DECAY), used, requests

    def mean_requests(self, now: int) -> list[float]:
        """Requests in each hour of a week on average, from Monday midnight UTC on.

        Of the weeks before; in the first week, what there was so far.
        """
        means = [0.0] * HOURS_PER_WEEK
        for slot in self.hours.values():
            next_one = now + (slot.last - now) % HOURS_PER_WEEK
            weeks, _, requests = self.before(next_one)
            means[hour_of_week(next_one)] = requests / weeks if weeks else slot.count
        return means

    def to_record(self) -> dict[str, object]:
        """As the store keeps it."""
        hours = [
            [each.last, each.count, round(each.used, _DIGITS), round(each.requests, _DIGITS)]
            for each in self.hours.values()
        ]
        return {"first": self.first, "last": self.last, "hours": hours}

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Self:
        """The reverse of `to_record`.

        Raises:
            ValueError: It is none.
            TypeError: The same.
            KeyError: The same.
        """
        rows = record["hours"]
        if not isinstance(rows, list):
            raise TypeError("hours are a list")
        slots = [HourOfWeek(_whole(row[0]), *map(_number, row[1:4])) for row in rows]
        hours = {each.last % HOURS_PER_WEEK: each for each in slots}
        return cls(_whole(record["first"]), _whole(record["last"]), hours)


class UsageHistory:
    """The patterns of all models. Belongs to the event loop's thread.

    A model goes by the name that callers ask for it by: `name`, `name@version` or an alias.
    So what is learnt of a name holds for whatever it means by then.

    Attributes:
        changed: Names whose pattern is another one than when this was last emptied.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin without a past.

        Args:
            clock: Seconds since the epoch.
        """
        self._clock = clock
        self._patterns: dict[str, Pattern] = {}
        self.changed: set[str] = set()

    @property
    def patterns(self) -> Mapping[str, Pattern]:
        """By name; do not change them."""
        return self._patterns

    @property
    def hour(self) -> int:
        """The hour that is now, counted from the epoch."""
        return hour_of(self._clock())

    def restore(self, patterns: Mapping[str, Pattern]) -> None:
        """Have had this past."""
        for name, pattern in patterns.items():
            self._add(name, pattern)

    def asked(self, name: str) -> None:
        """Somebody asks for a model of that name, which there is."""
        hour = hour_of(self._clock())
        pattern = self._patterns.get(name)
        if pattern is None:
            pattern = self._add(name, Pattern(hour, hour))
        pattern.asked(hour)
        self.changed.add(name)

    def _add(self, name: str, pattern: Pattern) -> Pattern:
        while len(self._patterns) >= MAX_NAMES:
            oldest = min(self._patterns, key=lambda each: self._patterns[each].last)
            del self._patterns[oldest]
            self.changed.add(oldest)
        self._patterns[name] = pattern
        return pattern


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value
