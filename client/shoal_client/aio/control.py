"""The calls, from tasks, that steer and describe a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc_health.v1.health_pb2 import HealthCheckRequest

from shoal.v1.model_control_pb2 import (
    Event,
    GetModelRequest,
    GetServerInfoRequest,
    GetServerInfoResponse,
    Limits,
    LoadModelRequest,
    ModelInfo,
    PinModelRequest,
)
from shoal.v1.statistics_pb2 import GetStatisticsRequest
from shoal_client.aio.calls import AsyncCalls, Method, Request, Response
from shoal_client.aio.profile import AsyncProfileClient
from shoal_client.aio.registration import AsyncRegistrationClient
from shoal_client.aio.upkeep import AsyncUpkeepClient
from shoal_client.aio.usage import AsyncUsageClient
from shoal_client.errors import ModelNotFoundError, PermissionDeniedError, UnimplementedError
from shoal_client.events import EventPosition
from shoal_client.requests import (
    new_list_request,
    new_request_id,
    new_settings_request,
    new_unload_request,
)
from shoal_client.results import HealthStatus, health_status
from shoal_client.settings import Setting, read_settings
from shoal_client.splitting import DEFAULT_LIMITS
from shoal_client.statistics import Statistics, read_statistics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping

    from shoal_client.retry import Deadline


class AsyncControlClient(
    AsyncUpkeepClient, AsyncUsageClient, AsyncProfileClient, AsyncRegistrationClient
):
    """The part of `AsyncClient` that is not about texts."""

    async def list_models(
        self,
        text: str = "",
        *,
        states: Iterable[str] = (),
        device: str = "",
        tags: Iterable[str] = (),
        kind: str = "",
        dimensions: int = 0,
        languages: Iterable[str] = (),
        precision: str = "",
        input_type: str = "",
        runs_on: str = "",
        prompt: str = "",
        tokens: int = 0,
        scope: str = "names",
        order_by: str = "name",
        descending: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> list[ModelInfo]:
        """As `Client.list_models`."""
        request = new_list_request(
            text,
            states,
            device,
            tags,
            kind,
            dimensions,
            languages,
            precision,
            input_type,
            runs_on,
            prompt,
            tokens,
            scope,
            order_by,
            descending,
        )
        models: list[ModelInfo] = []
        while True:
            response = await self._call(
                lambda server: server.control.ListModels, request, timeout_s, request_id
            )
            models += response.models
            if not response.next_page_token:
                return models
            request.page_token = response.next_page_token

    async def get_model(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> ModelInfo:
        """As `Client.get_model`."""
        request = GetModelRequest(model=model)
        response = await self._call(
            lambda server: server.control.GetModel, request, timeout_s, request_id
        )
        return response.model

    async def load_model(
        self,
        model: str = "",
        *,
        pin: bool | None = None,
        device: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> ModelInfo:
        """As `Client.load_model`."""
        request = LoadModelRequest(model=model, pin=pin, device=device)
        response = await self._call(
            lambda server: server.control.LoadModel, request, timeout_s, request_id
        )
        return response.model

    async def pin_model(
        self,
        model: str = "",
        *,
        pin: bool = True,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> ModelInfo:
        """As `Client.pin_model`."""
        request = PinModelRequest(model=model, pin=pin)
        response = await self._call(
            lambda server: server.control.PinModel, request, timeout_s, request_id
        )
        return response.model

    async def unload_model(
        self,
        model: str = "",
        *,
        force_after_s: float | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> ModelInfo:
        """As `Client.unload_model`."""
        request = new_unload_request(model, force_after_s)
        response = await self._call(
            lambda server: server.control.UnloadModel, request, timeout_s, request_id
        )
        return response.model

    async def statistics(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> Statistics:
        """As `Client.statistics`."""
        request = GetStatisticsRequest(model=model)
        response = await self._call(
            lambda server: server.control.GetStatistics, request, timeout_s, request_id
        )
        return read_statistics(response)

    def watch_events(
        self,
        models: Iterable[str] = (),
        kinds: Iterable[str] = (),
        *,
        after_sequence: int | None = None,
        instance_id: str = "",
        request_id: str = "",
    ) -> AsyncGenerator[Event, None]:
        """As `Client.watch_events`."""
        position = EventPosition(models, kinds, after_sequence, instance_id)
        return self._calls.watch_events(position, request_id or new_request_id())

    async def update_settings(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        persist: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> dict[str, Setting]:
        """As `Client.update_settings`."""
        request = new_settings_request(settings, persist)
        response = await self._call(
            lambda server: server.control.UpdateSettings, request, timeout_s, request_id
        )
        return read_settings(response)

    async def server_info(
        self, *, timeout_s: float | None = None, request_id: str = ""
    ) -> GetServerInfoResponse:
        """As `Client.server_info`."""
        return await self._call(
            lambda server: server.control.GetServerInfo,
            GetServerInfoRequest(),
            timeout_s,
            request_id,
        )

    async def health(
        self, service: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> HealthStatus:
        """As `Client.health`."""
        request = HealthCheckRequest(service=service)
        try:
            response = await self._call(
                lambda server: server.check_health, request, timeout_s, request_id
            )
        except ModelNotFoundError:  # NOT_FOUND, in the health protocol: no such service
            return HealthStatus.UNKNOWN
        return health_status(response)

    def _open(self) -> None:
        self._calls = AsyncCalls(self._planner)

    async def _call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout_s: float | None,
        request_id: str,
        *,
        once: bool = False,
    ) -> Response:
        attempts = self._planner.once if once else self._planner.attempts
        response, _ = await self._calls.unary(
            method,
            request,
            attempts=attempts(self._planner.deadline(timeout_s)),
            request_id=request_id or new_request_id(),
        )
        return response

    async def _server_limits(self, deadline: Deadline) -> Limits:
        # No lock: several callers may ask at first, but none waits for another's answer.
        if self._limits is None:
            self._limits = await self._fetch_limits(deadline)
        return self._limits

    async def _fetch_limits(self, deadline: Deadline) -> Limits:
        try:
            response, _ = await self._calls.unary(
                lambda server: server.control.GetServerInfo,
                GetServerInfoRequest(),
                attempts=self._planner.attempts(deadline),
                request_id=new_request_id(),
            )
        except (UnimplementedError, PermissionDeniedError):
            return DEFAULT_LIMITS
        return response.limits
