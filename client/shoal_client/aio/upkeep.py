"""The calls, from tasks, that keep models as they should be."""

from __future__ import annotations

from shoal.v1.updates_pb2 import ModelReloaded, ReloadModelRequest, UpdateModelResponse
from shoal.v1.verification_pb2 import ModelVerified, VerifyModelRequest
from shoal_client.aio.versions import AsyncVersionsClient
from shoal_client.requests import new_update_request


class AsyncUpkeepClient(AsyncVersionsClient):
    """The part of `AsyncClient` that verifies, reloads and updates models."""

    async def verify_model(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> list[ModelVerified]:
        """As `Client.verify_model`."""
        request = VerifyModelRequest(model=model)
        response = await self._call(
            lambda server: server.control.VerifyModel, request, timeout_s, request_id
        )
        return list(response.results)

    async def reload_model(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> list[ModelReloaded]:
        """As `Client.reload_model`."""
        request = ReloadModelRequest(model=model)
        response = await self._call(
            lambda server: server.control.ReloadModel, request, timeout_s, request_id
        )
        return list(response.results)

    async def update_model(
        self,
        model: str = "",
        *,
        source: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> UpdateModelResponse:
        """As `Client.update_model`."""
        request = new_update_request(model, source)
        return await self._call(
            lambda server: server.control.UpdateModel, request, timeout_s, request_id
        )
