"""How states follow from facts, and that no other step than a legal one can be told."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from shoal_server.lifecycle import ModelState
from shoal_server.registry.conditions import Condition
from shoal_server.registry.states import BEGINNING, LEGAL, Facts, Place, state_of, steps

DOCS = Path(__file__).resolve().parents[3] / "docs" / "operations.md"

REGISTERED, LOADING, READY = ModelState.REGISTERED, ModelState.LOADING, ModelState.READY
UNLOADING, ERROR, UPDATING = ModelState.UNLOADING, ModelState.ERROR, ModelState.UPDATING
DOWNLOADING, DEPRECATED = ModelState.DOWNLOADING, ModelState.DEPRECATED
IN_MEMORY = {
    REGISTERED: {LOADING},
    LOADING: {READY, REGISTERED},
    READY: {UNLOADING},
    UNLOADING: {REGISTERED, READY},
}
EVERYTHING = Facts(
    why="why", condition=Condition("u", "d", "f"), failure="failed", deprecated="deprecated"
)
ALL_FACTS = [
    Facts(memory, "why", Condition(updating, downloading, fault), failure, deprecated)
    for memory, updating, downloading, fault, failure, deprecated in product(
        IN_MEMORY, ("u", None), ("d", None), ("f", None), ("failed", None), ("old", None)
    )
]


@pytest.mark.parametrize(
    ("facts", "state", "reason"),
    [
        (Facts(), REGISTERED, ""),
        (Facts(why="idle"), REGISTERED, "idle"),
        (Facts(READY, "pinned"), READY, "pinned"),
        (replace(EVERYTHING, memory=LOADING), LOADING, "why"),
        (replace(EVERYTHING, memory=UNLOADING), UNLOADING, "why"),
        (replace(EVERYTHING, memory=READY), UPDATING, "u"),
        (EVERYTHING, UPDATING, "u"),
        (replace(EVERYTHING, condition=Condition(None, "d", "f")), DOWNLOADING, "d"),
        (replace(EVERYTHING, condition=Condition(fault="f")), ERROR, "f"),
        (replace(EVERYTHING, condition=Condition()), ERROR, "failed"),
        (replace(EVERYTHING, condition=Condition(), memory=READY), DEPRECATED, "deprecated"),
        (Facts(READY, failure="its files are broken now"), READY, ""),
        (Facts(READY, condition=Condition(fault="f")), ERROR, "f"),
        (Facts(deprecated="no longer"), DEPRECATED, "no longer"),
    ],
)
def test_the_first_that_is_so_is_the_state(facts: Facts, state: ModelState, reason: str) -> None:
    """What passes soon, what is being done, what is wrong, what is said of it, where it is."""
    assert state_of(facts) == (state, reason)


def test_whatever_facts_follow_each_other_each_step_is_legal() -> None:
    """From any place to any facts: legal steps, one after the other in memory, to the end."""
    for before, after in product(ALL_FACTS, ALL_FACTS):
        place = Place(before.memory, state_of(before)[0])
        for step, _ in steps(place, after):
            assert step.state in LEGAL[place.state], (before, after)
            assert step.memory is place.memory or step.memory in IN_MEMORY[place.memory]
            place = step
        assert place == Place(after.memory, state_of(after)[0]), (before, after)


def test_every_legal_step_can_happen() -> None:
    """The table allows nothing that no facts lead to."""
    seen = {state: set[ModelState]() for state in ModelState}
    for before, after in product(ALL_FACTS, ALL_FACTS):
        place = Place(before.memory, state_of(before)[0])
        for step, _ in steps(place, after):
            seen[place.state].add(step.state)
            place = step
    assert seen == {state: set(after) for state, after in LEGAL.items()}


def test_the_last_step_has_the_reason_and_those_that_were_missed_have_none() -> None:
    """Nobody knows why it was where nobody saw it."""
    told = list(steps(BEGINNING, Facts(UNLOADING, "evicted")))
    assert told == [
        (Place(LOADING, LOADING), ""),
        (Place(READY, READY), ""),
        (Place(UNLOADING, UNLOADING), "evicted"),
    ]


def test_the_documented_table_is_the_one_of_the_code() -> None:
    """docs/operations.md has each state with all that may follow it."""
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", DOCS.read_text(), re.MULTILINE)
    documented = {
        state: set(ModelState) - {state} if after == "any other" else set(after.split(", "))
        for state, after in rows
        if state in set(ModelState)
    }
    assert documented == {str(state): set(after) for state, after in LEGAL.items()}
