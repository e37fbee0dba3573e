"""What is going on with a version, or wrong with it, beside its life in memory.

    with conditions.updating(key, "its files are read again"):
        …
    conditions.fault(key, "verification: cosine 0.91, at least 0.99 is wanted")
    conditions.mend(key)
    conditions.remark(key, "its files could not be read again: …")

A key without a version is a model whose new version has no number yet: what is noted of it
holds for each of its versions that has nothing noted of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from shoal_server.core import ModelKey


@dataclass(frozen=True, slots=True)
class Condition:
    """Of one version: reasons in words; None: that is not so."""

    updating: str | None = None
    """It, or its successor, is being made ready to be served."""
    downloading: str | None = None
    """Files are being fetched."""
    fault: str | None = None
    """It was found wrong; it may serve all the same."""
    remark: str | None = None
    """What else there is to know; it changes no state."""


SOUND = Condition()


class Conditions:
    """Who does something to a version notes it here. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        # What goes on may do so several times over; the last begun is shown.
        self._updating: dict[ModelKey, list[str]] = {}
        self._downloading: dict[ModelKey, list[str]] = {}
        self._faults: dict[ModelKey, str] = {}
        self._remarks: dict[ModelKey, str] = {}
        self._observers: list[Callable[[ModelKey], None]] = []

    def of(self, key: ModelKey) -> Condition:
        """What is so of a version now: its own, else its model's."""
        if not (self._updating or self._downloading or self._faults or self._remarks):
            return SOUND
        own = self._noted(key)
        if own != Condition(remark=own.remark):
            return own
        models = self._noted(ModelKey(key.name, ""))
        return models if own.remark is None else replace(models, remark=own.remark)

    def observe(self, changed: Callable[[ModelKey], None]) -> None:
        """Call `changed` after each change, with the key that was named."""
        self._observers.append(changed)

    def updating(self, key: ModelKey, reason: str) -> AbstractContextManager[None]:
        """While inside, `key` is being updated."""
        return self._during(self._updating, key, reason)

    def downloading(self, key: ModelKey, reason: str) -> AbstractContextManager[None]:
        """While inside, files of `key` are being fetched."""
        return self._during(self._downloading, key, reason)

    def fault(self, key: ModelKey, reason: str) -> None:
        """From now on, `key` is known to be wrong; the last reason counts."""
        self._faults[key] = reason
        self._tell(key)

    def mend(self, key: ModelKey) -> None:
        """It is all right again. Idempotent."""
        if self._faults.pop(key, None) is not None:
            self._tell(key)

    def remark(self, key: ModelKey, text: str | None) -> None:
        """From now on, this is shown beside its state; None: nothing. Idempotent."""
        if text is None:
            self._remarks.pop(key, None)
        else:
            self._remarks[key] = text

    @contextmanager
    def _during(
        self, reasons: dict[ModelKey, list[str]], key: ModelKey, reason: str
    ) -> Iterator[None]:
        reasons.setdefault(key, []).append(reason)
        self._tell(key)
        try:
            yield
        finally:
            reasons[key].remove(reason)
            if not reasons[key]:
                del reasons[key]
            self._tell(key)

    def _noted(self, key: ModelKey) -> Condition:
        updating, downloading = self._updating.get(key), self._downloading.get(key)
        fault, remark = self._faults.get(key), self._remarks.get(key)
        if updating is None and downloading is None and fault is None and remark is None:
            return SOUND
        return Condition(
            updating[-1] if updating else None,
            downloading[-1] if downloading else None,
            fault,
            remark,
        )

    def _tell(self, key: ModelKey) -> None:
        for changed in self._observers:
            changed(key)
