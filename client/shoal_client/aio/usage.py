"""The call, from tasks, that tells when models are asked for."""

from __future__ import annotations

from shoal.v1.usage_pb2 import GetUsageRequest, GetUsageResponse
from shoal_client.aio.versions import AsyncVersionsClient


class AsyncUsageClient(AsyncVersionsClient):
    """The part of `AsyncClient` that is about patterns of use."""

    async def get_usage(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> GetUsageResponse:
        """As `Client.get_usage`."""
        request = GetUsageRequest(model=model)
        return await self._call(
            lambda server: server.control.GetUsage, request, timeout_s, request_id
        )
