"""The calls, from threads, that steer and describe a server."""

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
from shoal_client.sync.calls import Calls, Method, Request, Response
from shoal_client.sync.profile import ProfileClient
from shoal_client.sync.registration import RegistrationClient
from shoal_client.sync.upkeep import UpkeepClient
from shoal_client.sync.usage import UsageClient

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from shoal_client.retry import Deadline


class ControlClient(UpkeepClient, UsageClient, ProfileClient, RegistrationClient):
    """The part of `Client` that is not about texts."""

    def list_models(
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
        """The models of the server's repository, in memory or not; by default all, by name.

        Args:
            text: Words that must all be in name, description, source, licence or tags.
            states: "ready", "registered", "error", … (`ModelState`): any of them.
            device: In memory there: "cpu", "cuda:0", …
            tags: All of them.
            kind: Such as "text_embedding" (`ModelKind`).
            dimensions: Give vectors of that size, whole or cut; 0: of any.
            languages: Of all of these, as their cards have them; "zh" finds "zh-Hant" too.
            precision: Have a graph in it: "fp32", "int8", …
            input_type: Take "text" or "tokens".
            runs_on: Can be run there as they are served: "cpu", "cuda:0", or "cuda".
            prompt: Have a prompt of that name.
            tokens: Take inputs of so many; 0: of any.
            scope: "names": each model at the version that its bare name means;
                "every_version": each version by itself; "deregistered": only what
                `register_model` can take back.
            order_by: "name", "state", "file_bytes" or "last_used".
            descending: The greatest first.
            timeout_s: See the class; for each page of 500.
            request_id: See the class.

        Raises:
            InvalidArgumentError: A state, kind, type of inputs or order has no such name.
        """
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
            response = self._call(
                lambda server: server.control.ListModels, request, timeout_s, request_id
            )
            models += response.models
            if not response.next_page_token:
                return models
            request.page_token = response.next_page_token

    def get_model(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> ModelInfo:
        """One model.

        Args:
            model: "name", "name@version" or an alias; empty: the default model.
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            ModelNotFoundError: The repository has none of that name.
        """
        request = GetModelRequest(model=model)
        return self._call(
            lambda server: server.control.GetModel, request, timeout_s, request_id
        ).model

    def load_model(
        self,
        model: str = "",
        *,
        pin: bool | None = None,
        device: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> ModelInfo:
        """Bring a model into memory; returns when it can serve.

        Args:
            model: See `get_model`.
            pin: True: never evicted to make room. Default: as it is.
            device: "auto", "cpu", "cuda" or "cuda:N". Default: the model's.
            timeout_s: See the class. Large models take long to load.
            request_id: See the class.

        Raises:
            FailedPreconditionError: It can not be loaded, or not there.
            OverloadedError: There is no room, and nothing that may be evicted.
        """
        request = LoadModelRequest(model=model, pin=pin, device=device)
        return self._call(
            lambda server: server.control.LoadModel, request, timeout_s, request_id
        ).model

    def pin_model(
        self,
        model: str = "",
        *,
        pin: bool = True,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> ModelInfo:
        """Keep a model that is in memory there, or let it go again when it must.

        Args:
            model: See `get_model`.
            pin: False lets it go when room is needed or nobody uses it.
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            FailedPreconditionError: It is not in memory, and was to be pinned.
        """
        request = PinModelRequest(model=model, pin=pin)
        return self._call(
            lambda server: server.control.PinModel, request, timeout_s, request_id
        ).model

    def unload_model(
        self,
        model: str = "",
        *,
        force_after_s: float | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> ModelInfo:
        """Take a model out of memory; returns when the memory is free.

        Args:
            model: See `get_model`.
            force_after_s: Seconds that requests in flight get to finish, before
                they fail. Default: as long as the timeout allows.
            timeout_s: See the class.
            request_id: See the class.
        """
        request = new_unload_request(model, force_after_s)
        return self._call(
            lambda server: server.control.UnloadModel, request, timeout_s, request_id
        ).model

    def statistics(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> Statistics:
        """What models and callers asked of the server that answers, and what it took.

        Args:
            model: "name": every version of it; "name@version"; or an alias. Empty: all.
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            ModelNotFoundError: The repository has none of that name.
        """
        request = GetStatisticsRequest(model=model)
        response = self._call(
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
    ) -> Generator[Event, None, None]:
        """Yield what happens to the models and the server, as it happens, without end.

        When the server goes away the watch goes on where it was, as soon as the server is
        back and as the client's `retry` allows. A server that started again counts anew
        (`Event.instance_id` is another): then all that happened since comes first, as far
        as the server keeps it. Closing the generator ends the watch.

        Args:
            models: "name" for every version, "name@version" for one; empty: all events,
                also those that are about no model.
            kinds: "model_loaded" and so on, see `events.EVENT_KINDS`; empty: all.
            after_sequence: Begin behind this number of an event; 0: with the oldest that
                the server keeps. Default: with what happens from now on.
            instance_id: Of the event whose number it is; lets a server that has started
                again since begin with its oldest one.
            request_id: See the class.

        Raises:
            OutOfRangeError: The event behind `after_sequence` is no longer kept, or this
                reader was so slow that what comes next is not; `resume_after` says where
                one can go on.
        """
        position = EventPosition(models, kinds, after_sequence, instance_id)
        return self._calls.watch_events(position, request_id or new_request_id())

    def update_settings(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        persist: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> dict[str, Setting]:
        """Change settings of the server that answers, all of these or none.

        Without any, nothing changes.

        Args:
            settings: By name, values as the command line takes them: `"debug"`; `"unset"`
                where a setting may have no value, such as a limit that is switched off.
            persist: Keep them over restarts. Default: they last until it stops.
            timeout_s: See the class.
            request_id: See the class.

        Returns:
            Every setting as it is then, by name.

        Raises:
            InvalidArgumentError: There is no such setting, or its value is not allowed.
            FailedPreconditionError: Only a restart changes one of them.
        """
        request = new_settings_request(settings, persist)
        response = self._call(
            lambda server: server.control.UpdateSettings, request, timeout_s, request_id
        )
        return read_settings(response)

    def server_info(
        self, *, timeout_s: float | None = None, request_id: str = ""
    ) -> GetServerInfoResponse:
        """Version, limits, devices and memory of the server that answers."""
        return self._call(
            lambda server: server.control.GetServerInfo,
            GetServerInfoRequest(),
            timeout_s,
            request_id,
        )

    def health(
        self, service: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> HealthStatus:
        """Whether the server that answers takes requests.

        Args:
            service: Empty for all of it, or "shoal.v1.EmbedService", or
                "shoal.model/<name>".
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            UnavailableError: No server can be reached.
        """
        request = HealthCheckRequest(service=service)
        try:
            response = self._call(
                lambda server: server.check_health, request, timeout_s, request_id
            )
        except ModelNotFoundError:  # NOT_FOUND, in the health protocol: no such service
            return HealthStatus.UNKNOWN
        return health_status(response)

    def _open(self) -> None:
        self._calls = Calls(self._planner)

    def _call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout_s: float | None,
        request_id: str,
        *,
        once: bool = False,
    ) -> Response:
        attempts = self._planner.once if once else self._planner.attempts
        response, _ = self._calls.unary(
            method,
            request,
            attempts=attempts(self._planner.deadline(timeout_s)),
            request_id=request_id or new_request_id(),
        )
        return response

    def _server_limits(self, deadline: Deadline) -> Limits:
        # No lock: several callers may ask at first, but none waits for another's answer.
        if self._limits is None:
            self._limits = self._fetch_limits(deadline)
        return self._limits

    def _fetch_limits(self, deadline: Deadline) -> Limits:
        try:
            response, _ = self._calls.unary(
                lambda server: server.control.GetServerInfo,
                GetServerInfoRequest(),
                attempts=self._planner.attempts(deadline),
                request_id=new_request_id(),
            )
        except (UnimplementedError, PermissionDeniedError):
            return DEFAULT_LIMITS
        return response.limits
