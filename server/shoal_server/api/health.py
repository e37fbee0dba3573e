"""grpc.health.v1: overall, per service, and per model as `shoal.model/<name>`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from grpc_health.v1 import health, health_pb2

MODEL_PREFIX = "shoal.model/"

# How long a watcher gets to hear that the server is going away.
_LAST_WORD_S = 0.5

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServicer(health.aio.HealthServicer):
    """The standard servicer; models' states are looked up, watchers hold up no shutdown."""

    def __init__(
        self, draining: asyncio.Event, can_serve: Callable[[str], Awaitable[bool | None]]
    ) -> None:
        """Wire it.

        Args:
            draining: Set when the server is going away.
            can_serve: Whether a model can be served, by name; None: there is none such.
        """
        super().__init__()
        self._draining = draining
        self._can_serve = can_serve
        self._models: set[str] = set()

    async def set_serving(self, service: str, serving: bool) -> None:
        """Say whether `service` serves; it becomes known by being set."""
        await self.set(service, _SERVING if serving else _NOT_SERVING)

    async def refresh(self, model: str) -> None:
        """Look a model up and tell its watchers; one that is gone is not served."""
        serving = await self._can_serve(model)
        if serving is not None:
            self._models.add(model)
        # What nobody ever had is not worth remembering, whoever asks for it.
        if model in self._models:
            await self.set_serving(MODEL_PREFIX + model, bool(serving))

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The state of a service now; NOT_FOUND for one that is not known."""
        await self._look_up(request.service)
        return await super().Check(request, context)

    async def _look_up(self, service: str) -> None:
        if service.startswith(MODEL_PREFIX):
            await self.refresh(service.removeprefix(MODEL_PREFIX))

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Stream the state of a service until the caller leaves or the server drains."""
        await self._look_up(request.service)
        watching = asyncio.ensure_future(super().Watch(request, context))
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({watching, draining}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({watching}, timeout=_LAST_WORD_S)
        finally:
            watching.cancel()
            draining.cancel()
