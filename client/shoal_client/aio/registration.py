"""The calls, from tasks, that let a server know models, or know them no longer."""

from __future__ import annotations

from shoal.v1.model_control_pb2 import RegisterModelRequest, RegisterModelResponse
from shoal_client.aio.versions import AsyncVersionsClient
from shoal_client.requests import new_deregister_request


class AsyncRegistrationClient(AsyncVersionsClient):
    """The part of `AsyncClient` that is about what a server knows."""

    async def register_model(
        self, model: str, *, timeout_s: float | None = None, request_id: str = ""
    ) -> RegisterModelResponse:
        """As `Client.register_model`."""
        request = RegisterModelRequest(model=model)
        return await self._call(
            lambda server: server.control.RegisterModel, request, timeout_s, request_id
        )

    async def deregister_model(
        self,
        model: str,
        *,
        force_after_s: float | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> None:
        """As `Client.deregister_model`."""
        request = new_deregister_request(model, force_after_s)
        await self._call(
            lambda server: server.control.DeregisterModel, request, timeout_s, request_id
        )
