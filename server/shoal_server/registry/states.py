"""The states of a version: how they follow from what is known of it, and in which steps.

    registered ──> loading ──> ready ──> unloading ──> registered     its life in memory
    updating, downloading, error, deprecated                          shown over a rest in it

Pure functions. A state follows from facts, and the way from one state to the next goes
through memory step by step: whatever is told of a version, a step that is not in `LEGAL` can
not be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from shoal_server.lifecycle import ModelState
from shoal_server.registry.conditions import SOUND, Condition

REGISTERED, LOADING = ModelState.REGISTERED, ModelState.LOADING
READY, UNLOADING = ModelState.READY, ModelState.UNLOADING

# What is shown in place of registered and ready, whether it is in memory or not.
_SHOWN_OVER = frozenset(
    (ModelState.DOWNLOADING, ModelState.UPDATING, ModelState.ERROR, ModelState.DEPRECATED)
)

LEGAL: Mapping[ModelState, frozenset[ModelState]] = {
    REGISTERED: _SHOWN_OVER | {LOADING},
    LOADING: _SHOWN_OVER | {READY, REGISTERED},
    READY: _SHOWN_OVER | {UNLOADING},
    UNLOADING: _SHOWN_OVER | {READY, REGISTERED},
    **{state: frozenset(ModelState) - {state} for state in _SHOWN_OVER},
}
"""Which state may follow which; docs/operations.md shows it as a table."""

# Through memory there is one way: in by loading, out by unloading; both may be given up.
_WAYS: Mapping[tuple[ModelState, ModelState], tuple[ModelState, ...]] = {
    (REGISTERED, LOADING): (LOADING,),
    (REGISTERED, READY): (LOADING, READY),
    (REGISTERED, UNLOADING): (LOADING, READY, UNLOADING),
    (LOADING, REGISTERED): (REGISTERED,),
    (LOADING, READY): (READY,),
    (LOADING, UNLOADING): (READY, UNLOADING),
    (READY, REGISTERED): (UNLOADING, REGISTERED),
    (READY, LOADING): (UNLOADING, REGISTERED, LOADING),
    (READY, UNLOADING): (UNLOADING,),
    (UNLOADING, REGISTERED): (REGISTERED,),
    (UNLOADING, LOADING): (REGISTERED, LOADING),
    (UNLOADING, READY): (READY,),
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a version. None: that is not so."""

    memory: ModelState = REGISTERED
    """Where it is in memory: registered (it is not), loading, ready or unloading."""
    why: str = ""
    """It is there; may be empty."""
    condition: Condition = SOUND
    failure: str | None = None
    """Why it can not be loaded."""
    deprecated: str | None = None
    """What callers are told."""


def state_of(facts: Facts) -> tuple[ModelState, str]:
    """The state, and why it is that; the first of these that is so.

    Loading and unloading, since they pass soon. Then what is being done about it: updating,
    downloading. Then error: a fault, and, of what is not in memory, a failure. Then
    deprecated. Else ready or registered, with what else there is to know of it.
    """
    if facts.memory in (LOADING, UNLOADING):
        return facts.memory, facts.why
    condition = facts.condition
    for state, reason in (
        (ModelState.UPDATING, condition.updating),
        (ModelState.DOWNLOADING, condition.downloading),
        (ModelState.ERROR, condition.fault),
        (ModelState.ERROR, None if facts.memory is READY else facts.failure),
        (ModelState.DEPRECATED, facts.deprecated),
    ):
        if reason is not None:
            return state, reason
    return facts.memory, "; ".join(filter(None, (facts.why, condition.remark)))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a version was when its state was told last."""

    memory: ModelState = REGISTERED
    state: ModelState = REGISTERED


BEGINNING = Place()


def steps(place: Place, facts: Facts) -> Iterator[tuple[Place, str]]:
    """The way from `place` to where `facts` say it is, each step with its reason.

    Facts that follow each other in memory give one step. Others pass through what lies
    between, for which no reason is known. Nothing where the state is the same.
    """
    state = place.state
    way = _WAYS.get((place.memory, facts.memory), (facts.memory,))
    for memory in way:
        is_there = memory is facts.memory
        after, reason = state_of(facts if is_there else replace(facts, memory=memory, why=""))
        if after is not state:
            yield Place(memory, after), reason
            state = after
