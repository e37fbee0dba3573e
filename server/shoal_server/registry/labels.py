"""What an operator says of a model or a version: tags, and that it is deprecated. Values only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import FailedPrecondition, InvalidInput
from shoal_server.registry.store import Record

MAX_TAGS = 32
MAX_MESSAGE_CHARACTERS = 500
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")


@dataclass(frozen=True, slots=True)
class Deprecation:
    """That a model should not be used any longer, and what should."""

    since_s: float
    """Seconds since the epoch."""
    message: str = ""
    """For people; may be empty."""
    replacement: str = ""
    """What to ask for instead: a model, a version or an alias; may be empty."""
    refuse_after_s: float | None = None
    """Seconds since the epoch from when on it is not served; None: it always is."""

    def notice(self, key: ModelKey) -> str:
        """What callers are told, in a sentence."""
        parts = [f"{key} is deprecated"]
        if self.replacement:
            parts.append(f"use {self.replacement}")
        if self.refuse_after_s is not None:
            parts.append(f"refused after {_date(self.refuse_after_s)}")
        return "; ".join(parts) + (f": {self.message}" if self.message else "")

    def facts(self, key: ModelKey) -> str:
        """The same for programs, in ASCII: `name@version; replacement=…; refused-after=…`."""
        parts = [str(key)]
        if self.replacement:
            parts.append(f"replacement={self.replacement}")
        if self.refuse_after_s is not None:
            parts.append(f"refused-after={_date(self.refuse_after_s)}")
        return "; ".join(parts)

    def check(self, key: ModelKey, now_s: float) -> None:
        """Refuse when the time has come.

        Raises:
            FailedPrecondition: It is not served any longer.
        """
        if self.refuse_after_s is not None and now_s >= self.refuse_after_s:
            raise FailedPrecondition(
                self.notice(key),
                metadata={"model": key.name, "version": key.version,
                          "replacement": self.replacement},
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Labels:
    """Of a model, or of one version of it."""

    tags: tuple[str, ...] = ()
    """Sorted."""
    deprecation: Deprecation | None = None

    def tagged(self, add: Iterable[str], remove: Iterable[str]) -> Labels:
        """With other tags.

        Raises:
            InvalidInput: One can not be a tag, or they are too many.
        """
        added = list(add)
        for index, tag in enumerate(added):
            if not _TAG.fullmatch(tag):
                raise InvalidInput(
                    f"add[{index}]",
                    f"{tag[:64]!r} is not a tag: 1 to 64 letters, digits, '.', '_', ':', '/', "
                    "'-', starting with a letter or digit",
                )
        tags = (set(self.tags) | set(added)) - set(remove)
        if len(tags) > MAX_TAGS:
            raise InvalidInput("add", f"{len(tags)} tags, a model has at most {MAX_TAGS}")
        return replace(self, tags=tuple(sorted(tags)))

    def to_record(self) -> Record | None:
        """As it is stored; None when there is nothing to store."""
        if self == Labels():
            return None
        deprecation = self.deprecation
        return {
            "tags": list(self.tags),
            "deprecation": None
            if deprecation is None
            else {
                "since_s": deprecation.since_s,
                "message": deprecation.message,
                "replacement": deprecation.replacement,
                "refuse_after_s": deprecation.refuse_after_s,
            },
        }

    @classmethod
    def from_record(cls, ref: str, record: Record) -> Labels:
        """As it was stored.

        Raises:
            ValueError, KeyError, TypeError, InvalidInput: It was not stored by us.
        """
        ModelRef.parse(ref)
        tags, found = record["tags"], record["deprecation"]
        if not isinstance(tags, list) or not isinstance(found, dict | None):
            raise TypeError("tags are a list, a deprecation is an object")
        deprecation = None
        if found is not None:
            until_s = found["refuse_after_s"]
            deprecation = Deprecation(
                float(found["since_s"]),
                str(found["message"]),
                str(found["replacement"]),
                None if until_s is None else float(until_s),
            )
        return cls(tuple(map(str, tags)), deprecation)


def new_deprecation(
    now_s: float, message: str, replacement: str, refuse_after_s: float | None
) -> Deprecation:
    """A deprecation from now on.

    Raises:
        InvalidInput: The message is too long, or the replacement can not be a name.
    """
    if len(message) > MAX_MESSAGE_CHARACTERS:
        raise InvalidInput(
            "deprecation.message",
            f"{len(message)} characters, at most {MAX_MESSAGE_CHARACTERS}",
        )
    if replacement:
        ModelRef.parse(replacement, "deprecation.replacement")
    return Deprecation(now_s, message, replacement, refuse_after_s)


def _date(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")
