"""What was found of a version is forgotten when its files are others: who looks finds out."""

from __future__ import annotations

from typing import Protocol

from shoal_server.core import ModelKey
from shoal_server.registry.findings import Findings


class Sessions(Protocol):
    """What is known of memory; see `residency.pool.SessionPool`."""

    def get(self, key: ModelKey, /) -> object | None:
        """A version that is there, or on its way in or out."""

    def forget_failure(self, key: ModelKey, /) -> None:
        """Try it again at once when it is asked for next."""


class Mended:
    """Looks for versions that were mended. Belongs to the event loop's thread."""

    def __init__(self, findings: Findings, sessions: Sessions) -> None:
        """Wire it.

        Args:
            findings: Remember what is bad.
            sessions: Remember what could not be loaded.
        """
        self._findings = findings
        self._sessions = sessions

    async def forget(self, name: str = "") -> None:
        """Know nothing bad any longer of versions whose files are others.

        A version that is in memory serves the files as they were: reloading it tells.

        Args:
            name: Of a model; empty: all of them.
        """
        keys = [
            ModelKey(model, version)
            for model, found in self._findings.by_model.items()
            for version in found
            if name in ("", model)
        ]
        if away := [key for key in keys if self._sessions.get(key) is None]:
            await self._findings.drop_outdated(*away, outdated=self._sessions.forget_failure)
