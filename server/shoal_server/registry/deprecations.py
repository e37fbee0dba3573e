"""Tells the log who uses what is deprecated, and refuses what is not served any longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import structlog

from shoal_server.core import ModelKey
from shoal_server.registry.prepared import ModelVersion

log = structlog.get_logger(__name__)

_WARN_EVERY_S = 60.0


class DeprecationWarnings:
    """Tells the log, now and then, who uses what is deprecated. On the event loop."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Nobody was warned yet.

        Args:
            clock: Monotonic seconds.
            wall_clock: Seconds since the epoch.
        """
        self._clock = clock
        self._wall_clock = wall_clock
        self._quiet_until_s: dict[ModelKey, float] = {}
        self._unsaid: dict[ModelKey, int] = {}

    def used(self, version: ModelVersion, caller: str) -> None:
        """A request asks for `version`.

        Raises:
            FailedPrecondition: It is deprecated and not served any longer.
        """
        deprecation = version.deprecation
        if deprecation is None:
            return
        key, now_s = version.key, self._clock()
        if now_s >= self._quiet_until_s.get(key, now_s):
            self._quiet_until_s[key] = now_s + _WARN_EVERY_S
            log.warning(
                "deprecated_model_used",
                model=str(key),
                notice=deprecation.notice(key),
                caller=caller,
                requests_since_the_last_warning=self._unsaid.pop(key, 0) + 1,
            )
        else:
            self._unsaid[key] = self._unsaid.get(key, 0) + 1
        deprecation.check(key, self._wall_clock())


def check_not_refused(versions: Iterable[ModelVersion], now_s: float) -> None:
    """Refuse to give a name versions that requests would be refused for.

    Raises:
        FailedPrecondition: One is deprecated and not served any longer.
    """
    for version in versions:
        if version.deprecation is not None:
            version.deprecation.check(version.key, now_s)
