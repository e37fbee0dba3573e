"""Where each version is in its life: read from those who know, told to who watches.

The one place that advances states. Who changes something prompts: the pool (through
`announcing.PoolEvents`), `Conditions`, labels, and whoever looks at a model; the state is
then read anew, and each step from the one that was told last is an event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from shoal_server.core import ModelKey
from shoal_server.lifecycle import LoadReason, ModelState, Unloading
from shoal_server.registry.conditions import SOUND, Conditions
from shoal_server.registry.event_log import Publisher
from shoal_server.registry.events import ModelStateChanged
from shoal_server.registry.labelled import Labelled
from shoal_server.registry.states import BEGINNING, Facts, Place, state_of, steps
from shoal_server.residency.resident import Departure, Failure, State

_MEMORY: Mapping[State, ModelState] = {
    State.LOADING: ModelState.LOADING,
    State.READY: ModelState.READY,
    State.LEAVING: ModelState.UNLOADING,
    State.CLOSING: ModelState.UNLOADING,
}


class Versions(Protocol):
    """What is known of versions on disk; see `registry.registry.Registry`."""

    def versions_known(self, name: str) -> Iterable[ModelKey]:
        """Those of a model that were looked up."""

    @property
    def labelled(self) -> Labelled:
        """What is said of them."""


class InMemory(Protocol):
    """What is known of a version in memory; see `resident.Resident`."""

    @property
    def state(self) -> State:
        """Where it is."""

    @property
    def why_loaded(self) -> LoadReason:
        """It came, or comes, into memory."""

    @property
    def why_unloading(self) -> Unloading | None:
        """It is on its way out; None: it is not."""

    @property
    def pinned(self) -> bool:
        """Whether it stays whatever happens."""

    @property
    def keep_alive_s(self) -> float | None:
        """What a request said last of how long it may be idle; negative: for ever."""


class Memory(Protocol):
    """What is known of memory; see `residency.pool.SessionPool`."""

    def get(self, key: ModelKey, /) -> InMemory | None:
        """A version that is there, or on its way in or out."""

    def failure(self, key: ModelKey, /) -> Failure | None:
        """How the last load of a version failed, if it did."""

    def departure(self, key: ModelKey, /) -> Departure | None:
        """Why and when a version left memory last."""

    def is_warm(self, key: ModelKey, /) -> bool:
        """Whether a version that is not there stays warm in RAM."""


class ModelStates:
    """The states of all versions. Belongs to the event loop's thread."""

    def __init__(self, versions: Versions, conditions: Conditions, publisher: Publisher) -> None:
        """All are registered. `begin` comes before anything else.

        Args:
            versions: Know what is deprecated.
            conditions: Know what else goes on.
            publisher: Told each step.
        """
        self._versions = versions
        self._conditions = conditions
        self._publisher = publisher
        self._memory: Memory
        # Those that are elsewhere than at the beginning.
        self._places: dict[ModelKey, Place] = {}
        # Of files, as they were seen last.
        self._problems: dict[ModelKey, str] = {}
        conditions.observe(self.noted)

    def begin(self, memory: Memory) -> None:
        """Read from the pool, which is made after its observers."""
        self._memory = memory

    def look(self, key: ModelKey, problem: str) -> tuple[ModelState, str]:
        """The state of a version, and why it is that.

        Args:
            key: The version; empty where a model has none.
            problem: What is wrong with its files, as they are now; empty: nothing.
        """
        if problem:
            self._problems[key] = problem
        else:
            self._problems.pop(key, None)
        return state_of(self.advance(key))

    def state(self, key: ModelKey, problem: str) -> ModelState:
        """As `look`, without the reason; quick for the many of which nothing is known."""
        if (
            problem
            or key in self._places
            or self._conditions.of(key) is not SOUND
            or self._versions.labelled.deprecation_of(key) is not None
        ):
            return self.look(key, problem)[0]
        return ModelState.REGISTERED

    def advance(self, key: ModelKey, because: str = "") -> Facts:
        """Tell the steps to where a version is now.

        Args:
            key: The version.
            because: Why it is now where it is in memory, where that is not known elsewhere.

        Returns:
            What is known of it.
        """
        facts = self._read(key)
        place = self._places.get(key, BEGINNING)
        for step, reason in steps(place, replace(facts, why=because or facts.why)):
            self._publisher.publish(ModelStateChanged(key, place.state, step.state, reason))
            place = step
        if place == BEGINNING:
            self._places.pop(key, None)
        else:
            self._places[key] = place
        return facts

    def came(self, name: str, versions: Iterable[str]) -> None:
        """A model's files were read: tell what is known of these versions already."""
        for version in versions:
            self.advance(ModelKey(name, version))

    def noted(self, key: ModelKey) -> None:
        """Something was noted of a version, or, where `key` has none, of a model."""
        keys = {key} if key.version else set(self._versions.versions_known(key.name))
        if not key.version:
            # Also those that nobody ever asked for, but looked at.
            keys.update(each for each in self._places if each.name == key.name)
        for each in sorted(keys or {key}, key=str):
            self.advance(each)

    def _read(self, key: ModelKey) -> Facts:
        resident = self._memory.get(key)
        deprecation = self._versions.labelled.deprecation_of(key)
        memory, why = ModelState.REGISTERED, ""
        failure = None
        if resident is not None:
            memory, why = _MEMORY[resident.state], _reason(resident)
        else:
            failed, problem = self._memory.failure(key), self._problems.get(key)
            departure = self._memory.departure(key)
            why = str(departure.why) if departure else ""
            if self._memory.is_warm(key):
                why = "warm in RAM"
            if not key.version:
                why = problem or ""  # none is prepared, and this is how to get one
            else:
                failure = failed.error.message if failed else problem
        return Facts(
            memory=memory,
            why=why,
            condition=self._conditions.of(key),
            failure=failure,
            deprecated=deprecation.notice(key) if deprecation else None,
        )


def _reason(resident: InMemory) -> str:
    """Why it is where it is in memory."""
    if resident.why_unloading is not None:
        return str(resident.why_unloading)
    if resident.state is State.LOADING:
        return str(resident.why_loaded)
    if resident.pinned:
        return "pinned"
    return "kept for ever: a request's keep-alive" if (resident.keep_alive_s or 0) < 0 else ""
