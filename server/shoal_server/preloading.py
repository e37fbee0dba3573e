"""Loads models ahead that are usually wanted soon: when nothing goes on, into free memory.

What will be wanted, `usage.prediction` says. A model is loaded ahead when that is likely
enough, nobody has to leave for it, and memory is not short with it either; so many of them
at once as are allowed to wait for their first request. Until that comes it is the first to
leave when others need room; when it does not come within the horizon, the idle rules hold.

Whatever left memory a short while ago is not loaded ahead: nobody wanted it, or others
needed its room, and it would come and go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from shoal_server.core import ModelKey
from shoal_server.errors import ShoalError
from shoal_server.lifecycle import Load, LoadReason, Unloading, UnloadReason
from shoal_server.loading import LoadedModel
from shoal_server.placement import Placement
from shoal_server.registry.event_log import Publisher
from shoal_server.registry.events import PreloadDecided
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.residency.free_memory import FreeMemory
from shoal_server.residency.pool import SessionPool
from shoal_server.usage.history import UsageHistory
from shoal_server.usage.prediction import Prediction, predict

log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 30.0
# What is likely and would have been loaded, had nothing gone on.
_LOOK_AGAIN_S = 1.0

USED, UNUSED, FAILED = "used", "unused", "failed"
"""What became of what was loaded ahead."""


@dataclass(frozen=True, slots=True)
class PreloadRules:
    """When models are loaded ahead; the names are those of the settings."""

    is_on: bool
    horizon_s: float
    threshold: float
    """Least probability."""
    max_models: int
    """Loaded ahead and not used yet, at once."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that may be wanted soon."""

    prediction: Prediction
    version: ModelVersion | None
    """None: it is not likely enough to look, or the name means nothing any longer."""
    device: str
    obstacle: str
    """Why it is not loaded ahead now, in words; empty: it is, when nothing else goes on."""


class PreloadObserver(Protocol):
    """Is told what became of what was loaded ahead, on the event loop."""

    def preload_ended(self, key: ModelKey, outcome: str) -> None:
        """A request used it, it left memory without one, or it could not be loaded."""


class Preloader:
    """Loads ahead. A `PoolObserver`; belongs to the event loop's thread."""

    def __init__(
        self,
        history: UsageHistory,
        *,
        rules: Callable[[], PreloadRules],
        events: Publisher,
        observer: PreloadObserver,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        """Load nothing yet; see `begin`.

        Args:
            history: When models are asked for.
            rules: As they are now.
            events: Are told of each decision to load.
            observer: Told what became of it.
            wall_clock: Seconds since the epoch.
            clock: That of the pool.
        """
        self._history = history
        self._rules = rules
        self._events = events
        self._observer = observer
        self._wall_clock = wall_clock
        self._clock = clock
        # Whether a request has used what was loaded ahead; told once it is known.
        self._used: dict[ModelKey, bool] = {}

    def begin(
        self,
        registry: Registry,
        pool: SessionPool[LoadedModel],
        placement: Placement,
        free: FreeMemory,
        is_idle: Callable[[], bool],
    ) -> None:
        """Look at these from now on; `is_idle` says whether no request is being worked on."""
        self._registry = registry
        self._pool = pool
        self._placement = placement
        self._free = free
        self._is_idle = is_idle

    @property
    def rules(self) -> PreloadRules:
        """As they are now."""
        return self._rules()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            wait_s = _LOOK_EVERY_S
            try:
                if not await self.look():
                    wait_s = _LOOK_AGAIN_S
            except Exception:
                log.exception("preload_look_failed")
            await asyncio.sleep(wait_s)

    async def look(self) -> bool:
        """Load ahead what should be, one after the other.

        Returns:
            False: something should be, but requests are being worked on.
        """
        self._note_uses()
        if not self.rules.is_on:
            return True
        async for candidate in self.candidates():
            if candidate.obstacle or candidate.version is None:
                continue
            if not self._is_idle():
                return False
            if self._pool.get(candidate.version.key) is not None:
                continue  # somebody has asked for it since it was looked at
            await self._load(candidate.version, candidate)
        return True

    async def candidates(self, name: str = "") -> AsyncIterator[Candidate]:
        """What is expected within the horizon, the most probable first; each as it is then.

        Args:
            name: Only of what is asked for by that; empty: of all.
        """
        self._note_uses()
        rules = self.rules
        patterns = self._history.patterns
        if name:
            patterns = {name: patterns[name]} if name in patterns else {}
        for each in predict(patterns, self._wall_clock(), rules.horizon_s):
            if each.probability < rules.threshold:
                yield Candidate(each, None, "", f"less likely than {rules.threshold:g}")
                continue
            try:
                refs = [target.ref for target in self._registry.targets(each.name)]
                for ref in refs:
                    known = self._registry.meanings.known(str(ref))
                    version = known or await self._registry.look_up(ref)
                    yield await self._candidate(each, version, rules)
            except ShoalError as error:
                yield Candidate(each, None, "", error.message)

    async def _candidate(
        self, prediction: Prediction, version: ModelVersion, rules: PreloadRules
    ) -> Candidate:
        key, device = version.key, ""
        try:
            device = self._placement.device_for(version)
            obstacle = self._no_need(key, rules) or await self._free.obstacle(key, device)
        except ShoalError as error:
            obstacle = error.message
        return Candidate(prediction, version, device, obstacle)

    def _no_need(self, key: ModelKey, rules: PreloadRules) -> str:
        if self._pool.get(key) is not None:
            return "in memory"
        failure = self._pool.failure(key)
        if failure is not None and self._clock() - failure.until_s < rules.horizon_s:
            return "could not be loaded a short while ago"
        departure = self._pool.departure(key)
        if departure is not None and self._clock() - departure.at_s < rules.horizon_s:
            return f"left memory a short while ago: {departure.why}"
        waiting = len(self._used)
        if waiting >= rules.max_models:
            return f"{waiting} models wait for their first request already"
        return ""

    async def _load(self, version: ModelVersion, candidate: Candidate) -> None:
        key, expected, horizon_s = version.key, candidate.prediction, self.rules.horizon_s
        log.info("preload_decided", model=str(key), asked_for_as=expected.name,
                 probability=round(expected.probability, 3),
                 requests=round(expected.requests, 1))  # fmt: skip
        self._events.publish(
            PreloadDecided(
                key,
                name=expected.name,
                device=candidate.device,
                probability=expected.probability,
                requests=expected.requests,
                horizon_s=horizon_s,
            )
        )
        self._used[key] = False
        try:
            await self._pool.load_ahead(
                key,
                candidate.device,
                pinned=version.serving.pinned,
                hold_s=horizon_s,
                why=LoadReason.PRELOADED,
            )
        except ShoalError:
            self._used.pop(key, None)
            self._observer.preload_ended(key, FAILED)

    # -- what became of it -----------------------------------------------------

    def _note_uses(self) -> None:
        for key in list(self._used):
            resident = self._pool.get(key)
            if resident is not None and resident.uses:
                del self._used[key]
                self._observer.preload_ended(key, USED)

    def resident_changed(self, device: str, models: int, size_bytes: int) -> None:
        """Of no account here."""

    def load_began(self, key: ModelKey, why: LoadReason) -> None:
        """Of no account here."""

    def load_ended(self, load: Load) -> None:
        """Who loads ahead waits for it."""

    def unloading(self, key: ModelKey, why: Unloading) -> None:
        """Look for the last time whether it was used."""
        resident = self._pool.get(key)
        if key in self._used and resident is not None:
            self._used[key] = resident.uses > 0

    def stayed(self, key: ModelKey) -> None:
        """It is still there."""

    def unloaded(self, key: ModelKey, why: Unloading) -> None:
        """Tell whether it was used, unless everything leaves."""
        used = self._used.pop(key, None)
        if used is not None and why.reason is not UnloadReason.SHUTDOWN:
            self._observer.preload_ended(key, USED if used else UNUSED)
