"""Whether a model fits into memory that is free: for loads that nobody waits for."""

from __future__ import annotations

from typing import Any, Protocol

from shoal_server.core import ModelKey
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import SessionLoader


class Watch(Protocol):
    """What is asked of who watches memory; see `PressureMonitor`."""

    async def shortage(self, device: str, more_bytes: int) -> str:
        """Why so many bytes more would be too many, in words; empty: they would not."""


class FreeMemory:
    """Looks at budgets and at the machine. Belongs to the event loop's thread."""

    def __init__(
        self, pool: SessionPool[Any], sizes: SessionLoader[Any], watch: Watch | None
    ) -> None:
        """Wire it.

        Args:
            pool: Has the budgets.
            sizes: Predicts what a model takes.
            watch: Knows how short memory is; None: nobody looks.
        """
        self._pool = pool
        self._sizes = sizes
        self._watch = watch

    async def obstacle(self, key: ModelKey, device: str) -> str:
        """Why `key` can not be loaded on `device` without anybody leaving; empty: it can.

        Raises:
            ShoalError: It can not be loaded at all.
        """
        obstacle = self._no_room(key, device)
        if obstacle or self._watch is None:
            return obstacle
        peak_bytes = self._sizes.predict_peak_bytes(key, device)
        # Another load may have begun during the look.
        return await self._watch.shortage(device, peak_bytes) or self._no_room(key, device)

    def _no_room(self, key: ModelKey, device: str) -> str:
        """What the budget has against it."""
        models, size_bytes = self._pool.counted(device)
        budget = self._pool.budget(device)
        if budget.max_models is not None and models >= budget.max_models:
            return f"no room on {device}: {models} models are in memory, the limit"
        needed_bytes = size_bytes + self._sizes.predict_bytes(key, device)
        if budget.max_bytes is not None and needed_bytes > budget.max_bytes:
            return (
                f"no room on {device}: {needed_bytes} bytes with it, "
                f"the budget is {budget.max_bytes}"
            )
        return ""
