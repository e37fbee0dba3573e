"""What an alias stands for, and what it stood for before. Values only.

A change appends a revision; going back appends one that says which it restores. So the
history stays whole, and going back twice goes back two changes, not to and fro.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shoal_server.core import ModelKey, ModelRef, valid_name
from shoal_server.errors import FailedPrecondition, InvalidInput
from shoal_server.registry.store import Record

MAX_REVISIONS = 20
"""Kept of each alias; the oldest go."""
MAX_TARGETS = 16
MAX_WEIGHT = 1_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """A version that an alias stands for, and its part of the traffic."""

    key: ModelKey
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Revision:
    """What an alias stood for from one moment on."""

    number: int
    """Counts the changes of the alias, from 1."""
    targets: tuple[Target, ...]
    at_s: float
    """Seconds since the epoch."""
    restores: int | None = None
    """The revision that this one went back to."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for versions of models, with its history."""

    name: str
    revisions: tuple[Revision, ...]
    """Oldest first; the last is what it stands for."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """What it stands for."""
        return self.revisions[-1].targets

    def switched(self, targets: Sequence[Target], now_s: float) -> Alias:
        """The alias with other targets; itself when they are the same."""
        if tuple(targets) == self.targets:
            return self
        return self._with(Revision(self.revisions[-1].number + 1, tuple(targets), now_s))

    def revision_before(self, number: int | None = None) -> Revision:
        """The one to go back to.

        Args:
            number: Of the revision wanted; None: what served before the last change.

        Raises:
            FailedPrecondition: There is none.
        """
        if number is not None:
            wanted = [each for each in self.revisions if each.number == number]
            if not wanted:
                kept = f"{self.revisions[0].number} to {self.revisions[-1].number}"
                raise FailedPrecondition(
                    f"alias {self.name!r} has no revision {number}; it has {kept}"
                )
            return wanted[0]
        current = self.revisions[-1]
        upto = current.restores or current.number
        earlier = [
            each
            for each in self.revisions
            if each.number < upto and each.targets != current.targets
        ]
        if not earlier:
            raise FailedPrecondition(f"alias {self.name!r} stood for nothing else before")
        return earlier[-1]

    def rolled_back(self, revision: Revision, now_s: float) -> Alias:
        """The alias as it was at a revision of its history."""
        restores = revision.restores or revision.number
        number = self.revisions[-1].number + 1
        return self._with(Revision(number, revision.targets, now_s, restores))

    def to_record(self) -> Record:
        """As it is stored."""
        return {
            "revisions": [
                {
                    "number": each.number,
                    "targets": [[str(target.key), target.weight] for target in each.targets],
                    "at_s": each.at_s,
                    "restores": each.restores,
                }
                for each in self.revisions
            ]
        }

    @classmethod
    def from_record(cls, name: str, record: Record) -> Alias:
        """As it was stored.

        Raises:
            ValueError, KeyError, TypeError, InvalidInput: It was not stored by us.
        """
        revisions = tuple(
            Revision(
                number=int(each["number"]),
                targets=tuple(Target(_key(key), int(weight)) for key, weight in each["targets"]),
                at_s=float(each["at_s"]),
                restores=None if each["restores"] is None else int(each["restores"]),
            )
            for each in record["revisions"]  # type: ignore[attr-defined]
        )
        if not revisions:
            raise ValueError(f"{name} has no revisions")
        for revision in revisions:
            check_targets(revision.targets, "targets")
        return cls(valid_name(name, "alias"), revisions)

    def _with(self, revision: Revision) -> Alias:
        return replace(self, revisions=(*self.revisions, revision)[-MAX_REVISIONS:])


def new_alias(name: str, targets: Sequence[Target], now_s: float) -> Alias:
    """An alias that was not there before."""
    return Alias(name, (Revision(1, tuple(targets), now_s),))


def check_count(targets: int, field: str) -> None:
    """Refuse as many targets as no alias can have.

    Raises:
        InvalidInput: None, or too many.
    """
    if not 1 <= targets <= MAX_TARGETS:
        raise InvalidInput(field, f"{targets} targets; an alias has 1 to {MAX_TARGETS}")


def check_targets(targets: Sequence[Target], field: str) -> None:
    """Refuse targets that no alias can have.

    Raises:
        InvalidInput: None, too many, one twice, or a weight out of its limits.
    """
    check_count(len(targets), field)
    for index, target in enumerate(targets):
        if not 1 <= target.weight <= MAX_WEIGHT:
            raise InvalidInput(
                f"{field}[{index}].weight", f"{target.weight} is not in [1, {MAX_WEIGHT}]"
            )
        if target.key in [each.key for each in targets[:index]]:
            raise InvalidInput(f"{field}[{index}]", f"{target.key} is there twice")


def _key(text: str) -> ModelKey:
    ref = ModelRef.parse(text)
    if ref.version is None:
        raise ValueError(f"{text} has no version")
    return ModelKey(ref.name, ref.version)
