"""How often each model is asked for, by the hour of the week.

Hours are those of UTC, counted from the epoch: a day has 24 of them everywhere, and none
twice. Where people's working day moves against UTC, twice a year in many places, the
pattern follows within a few weeks: a week counts `DECAY` of the one after it.

The machine's clock may be wrong, such as before it was set after a start. What it counts
weeks ahead does not touch the weeks before, and is taken back once the clock was right for
`BELIEVED_AFTER` hours; what it would count weeks behind is left out as long, and for as long
as it shows a time from before there were such servers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

HOURS_PER_WEEK = 168
DECAY = 0.75
"""What a week counts of the week after it: after a month a quarter."""
MAX_NAMES = 1000
"""Names with a pattern; beyond, the one that was asked for least recently is forgotten."""
BELIEVED_AFTER = 6
"""Hours for which a clock that went back by a week or more has to go on, to be believed."""

_HOUR_S = 3600
# The epoch was a Thursday; weeks are shown from Monday on.
_EPOCH_HOUR_OF_WEEK = 3 * 24
# A clock that shows an earlier one, such as in 1970 or 2000, was not set yet.
_FIRST_HOUR = int(datetime(2023, 1, 1, tzinfo=UTC).timestamp()) // _HOUR_S
_DIGITS = 3


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
    gap: int = 0
    """Weeks without a request right before `last`; the two sums are of the weeks before
    these."""

    def before(self, hour: int) -> tuple[float, float]:
        """Weeks of use and requests in the weeks before `hour`, weighed."""
        weeks = (hour - self.last) // HOURS_PER_WEEK
        if weeks < 1:  # what is later than `hour` is left out
            weight = DECAY ** max(0, self.gap + weeks)
            return weight * self.used, weight * self.requests
        used, requests = self._next_week()
        weight = DECAY ** (weeks - 1)
        return weight * used, weight * requests

    def _next_week(self) -> tuple[float, float]:
        """The sums, a week after `last`."""
        weight = DECAY ** (self.gap + 1)
        return 1 + weight * self.used, self.count + weight * self.requests

    def asked(self, hour: int) -> None:
        """Count a request in `hour`; one of an hour before `last` counts in that."""
        if hour > self.last:
            self.used, self.requests = self._next_week()
            self.gap = (hour - self.last) // HOURS_PER_WEEK - 1
            self.last, self.count = hour, 0
        self.count += 1

    def take_back(self, now: int) -> bool:
        """Have had no request after `now`; False: then nothing is left.

        What was before goes on as one week whose requests are those of all of them, which
        gives the same sums from then on.
        """
        if self.last <= now:
            return True
        if not self.used:
            return False
        last = self.last - (self.gap + 1) * HOURS_PER_WEEK
        self.last = min(last, now - (now - last) % HOURS_PER_WEEK)
        self.count, self.requests = self.requests, 0.0
        self.used, self.gap = max(0.0, (self.used - 1) / DECAY), 0
        return True


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

    def take_back(self, now: int) -> bool:
        """Have had no request after `now`; False: then nothing is left."""
        self.first, self.last = min(self.first, now), min(self.last, now)
        self.hours = {each: slot for each, slot in self.hours.items() if slot.take_back(now)}
        return bool(self.hours)

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
            [
                each.last,
                each.count,
                round(each.used, _DIGITS),
                round(each.requests, _DIGITS),
                *([each.gap] if each.gap else []),
            ]
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
        slots = [_read_hour(row) for row in rows]
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
        # The latest hour that is known, and since when the clock is weeks before that.
        self._newest = 0
        self._back_since: int | None = None

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
        if hour < _FIRST_HOUR:
            return
        if hour <= self._newest - HOURS_PER_WEEK and not self._believes(hour):
            return
        self._newest, self._back_since = max(self._newest, hour), None
        pattern = self._patterns.get(name)
        if pattern is None:
            pattern = self._add(name, Pattern(hour, hour))
        pattern.asked(hour)
        self.changed.add(name)

    def _believes(self, hour: int) -> bool:
        """Whether the clock was wrong before and is right now; then all that is later goes."""
        if self._back_since is None or hour < self._back_since:
            self._back_since = hour
        if hour - self._back_since < BELIEVED_AFTER:
            return False
        self.changed.update(self._patterns)
        for name, pattern in list(self._patterns.items()):
            if not pattern.take_back(hour):
                del self._patterns[name]
        self._newest = hour
        return True

    def _add(self, name: str, pattern: Pattern) -> Pattern:
        self._newest = max(self._newest, pattern.last)
        while len(self._patterns) >= MAX_NAMES:
            oldest = min(self._patterns, key=lambda each: self._patterns[each].last)
            del self._patterns[oldest]
            self.changed.add(oldest)
        self._patterns[name] = pattern
        return pattern


def _read_hour(row: Sequence[object]) -> HourOfWeek:
    count, used, requests = map(_number, row[1:4])
    gap = _whole(row[4]) if len(row) > 4 else 0
    return HourOfWeek(_whole(row[0]), count, used, requests, gap)


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value
