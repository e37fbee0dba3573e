"""Notices models that are loaded and pushed out back and forth."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from shoal_server.core import ModelKey
from shoal_server.lifecycle import Load, LoadReason, Unloading, UnloadReason

# Pushed out and back within so long: it need not have gone.
_SOON_S = 60.0
# Over how long returns are counted.
_WINDOW_S = 600.0
# Returns within the window from which on it is worth a word.
_TOLD_FROM = 3


@dataclass(slots=True)
class _History:
    pushed_out_s: float
    returns_s: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    told_s: float | None = None


@dataclass(frozen=True, slots=True)
class Return:
    """A model that came back soon after it had been pushed out."""

    after_s: float
    """How long it was away."""
    times: int
    """How often that happened lately."""
    worth_telling: bool
    """Whether it goes back and forth, and nobody was told so lately."""


class ChurnGuard:
    """Counts returns by model. Takes the time; reads no clock."""

    def __init__(self) -> None:
        self._histories: dict[ModelKey, _History] = {}

    def pushed_out(self, key: ModelKey, now_s: float) -> None:
        """A model left memory though somebody may want it: evicted, or under pressure."""
        history = self._histories.get(key)
        if history is None:
            self._histories[key] = _History(now_s)
        else:
            history.pushed_out_s = now_s

    def came(self, key: ModelKey, now_s: float) -> Return | None:
        """A model comes into memory; tells whether it was pushed out only just before."""
        history = self._histories.get(key)
        if history is None:
            return None
        after_s = now_s - history.pushed_out_s
        if after_s > _SOON_S:
            return None
        # Until it is pushed out again, it is here.
        history.pushed_out_s = float("-inf")
        returns_s = history.returns_s
        returns_s.append(now_s)
        while returns_s[0] < now_s - _WINDOW_S:
            returns_s.popleft()
        tell = len(returns_s) >= _TOLD_FROM and (
            history.told_s is None or now_s - history.told_s > _SOON_S
        )
        if tell:
            history.told_s = now_s
        return Return(after_s, len(returns_s), tell)


class ChurnListener(Protocol):
    """Is told of returns, on the event loop."""

    def model_returned(
        self, key: ModelKey, *, after_s: float, times: int, worth_telling: bool
    ) -> None:
        """A model came back soon after it had been pushed out; see `Return`."""


class ChurnObserver:
    """Watches a pool for returns (see `resident.PoolObserver`)."""

    def __init__(self, listener: ChurnListener, clock: Callable[[], float]) -> None:
        """Watch.

        Args:
            listener: Told of each return.
            clock: Monotonic seconds.
        """
        self._listener = listener
        self._clock = clock
        self._guard = ChurnGuard()

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        """Says nothing of who comes and goes."""

    def load_began(self, key: ModelKey, why: LoadReason) -> None:
        """Not here yet."""

    def load_ended(self, load: Load) -> None:
        """A load ended, well or not."""
        if load.error is None and (back := self._guard.came(load.key, self._clock())):
            self._listener.model_returned(
                load.key,
                after_s=back.after_s,
                times=back.times,
                worth_telling=back.worth_telling,
            )

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        """Not gone yet."""

    def stayed(self, key: ModelKey) -> None:
        """It never went."""

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        """A session left memory."""
        if why.reason in (UnloadReason.EVICTED, UnloadReason.PRESSURE):
            self._guard.pushed_out(key, self._clock())
