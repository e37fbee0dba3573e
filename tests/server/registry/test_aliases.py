"""What an alias stood for is not forgotten, and going back goes back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition, InvalidInput
from shoal_server.registry.aliases import (
    MAX_REVISIONS,
    MAX_TARGETS,
    MAX_WEIGHT,
    Alias,
    Target,
    check_targets,
    new_alias,
)


def on(version: str, weight: int = 1) -> Target:
    return Target(ModelKey("m", version), weight)


def alias_of(*versions: str) -> Alias:
    """An alias that was switched to one version after the other."""
    alias = new_alias("prod", [on(versions[0])], 0.0)
    for number, version in enumerate(versions[1:], start=1):
        alias = alias.switched([on(version)], float(number))
    return alias


def back(alias: Alias, revision: int | None = None) -> Alias:
    return alias.rolled_back(alias.revision_before(revision), 99.0)


def version_of(alias: Alias) -> str:
    (target,) = alias.targets
    return target.key.version


def test_going_back_twice_goes_back_two_switches() -> None:
    """Not to and fro: what was left because it was bad is not come back to."""
    alias = back(alias_of("1", "2", "3"))
    assert version_of(alias) == "2"
    assert version_of(back(alias)) == "1"
    with pytest.raises(FailedPrecondition, match="nothing else before"):
        back(back(alias))


def test_a_switch_after_going_back_goes_back_to_what_served() -> None:
    """1, 2, back to 1, then 3: before 3 there was 1, not 2."""
    alias = back(alias_of("1", "2")).switched([on("3")], 5.0)
    assert version_of(back(alias)) == "1"


def test_going_back_is_a_revision_of_its_own() -> None:
    """The history is whole: what was, when, and that it was gone back to."""
    alias = back(alias_of("1", "2"))
    assert [(each.number, each.restores) for each in alias.revisions] == [
        (1, None),
        (2, None),
        (3, 1),
    ]


def test_any_revision_that_is_kept_can_be_gone_back_to() -> None:
    """By its number; others are refused."""
    alias = alias_of("1", "2", "3")
    assert version_of(back(alias, 1)) == "1"
    with pytest.raises(FailedPrecondition, match="no revision 7"):
        back(alias, 7)


def test_the_same_targets_again_are_no_change() -> None:
    """A switch that is tried again leaves one revision, so going back still goes back."""
    alias = alias_of("1", "2")
    assert alias.switched([on("2")], 7.0) is alias


@given(st.lists(st.sampled_from("123456b"), min_size=1, max_size=60))
def test_the_history_is_bounded_and_its_end_is_what_serves(steps: list[str]) -> None:
    """Whatever is done, the last revision is what the alias stands for, and none is too many."""
    alias = alias_of("0")
    for step in steps:
        if step != "b":
            alias = alias.switched([on(step)], 0.0)
            assert version_of(alias) == step
        elif len({each.targets for each in alias.revisions}) > 1:
            try:
                earlier = alias.revision_before()
            except FailedPrecondition:
                continue
            alias = alias.rolled_back(earlier, 0.0)
            assert alias.targets == earlier.targets
    assert len(alias.revisions) <= MAX_REVISIONS
    numbers = [each.number for each in alias.revisions]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_an_alias_is_read_as_it_was_written() -> None:
    """Through JSON."""
    alias = back(alias_of("1", "2").switched([on("1", 95), on("2", 5)], 3.5))
    assert Alias.from_record("prod", json.loads(json.dumps(alias.to_record()))) == alias


@pytest.mark.parametrize(
    ("targets", "field"),
    [
        ([], "targets"),
        ([on(str(number)) for number in range(MAX_TARGETS + 1)], "targets"),
        ([on("1"), on("1", 2)], "targets[1]"),
        ([on("1", 0)], "targets[0].weight"),
        ([on("1"), on("2", MAX_WEIGHT + 1)], "targets[1].weight"),
    ],
)
def test_targets_that_make_no_sense_are_refused(targets: list[Target], field: str) -> None:
    """The field is named."""
    with pytest.raises(InvalidInput) as raised:
        check_targets(targets, "targets")
    assert raised.value.field == field


@pytest.mark.parametrize(
    "revisions", [[], [{"number": 1, "targets": [], "at_s": 1.0, "restores": None}]]
)
def test_a_record_of_nothing_is_no_alias(revisions: list[object]) -> None:
    """It would be found out only when somebody asks for it, again and again."""
    with pytest.raises((ValueError, InvalidInput)):
        Alias.from_record("prod", {"revisions": revisions})
