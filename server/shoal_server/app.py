"""The composition root: builds the parts, starts them, serves, drains.

What was opened last is closed first. The parts are wired in `composition/`:

    instruments   metrics, events, statistics, settings     what tells about the server
    hardware      devices, slots, budgets
    models        repository, registry, pool, switching     their observers are listed there
    requests      admission, rate limits, embedder
    servicers     who answers RPCs
    activities    what goes on beside serving
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from importlib import metadata

import grpc.aio
import onnxruntime
import structlog

from shoal_server.api.health import HealthServicer
from shoal_server.api.http import HttpServer
from shoal_server.api.server import SERVICE_NAMES, ListenError, listen, make_grpc_server
from shoal_server.composition.activities import (
    begin_activities,
    begin_reading,
    begin_watching,
    recall_names,
)
from shoal_server.composition.hardware import find_hardware
from shoal_server.composition.instruments import Instruments, make_instruments
from shoal_server.composition.models import Models, open_models
from shoal_server.composition.requests import open_requests
from shoal_server.composition.servicers import make_servicers
from shoal_server.composition.start_error import StartError
from shoal_server.core import ModelKey
from shoal_server.errors import ModelLoadFailed, ModelNotFound, ShoalError
from shoal_server.lifecycle import LoadReason
from shoal_server.registry.findings import FoundBy, is_of_the_version
from shoal_server.registry.repository import default_model_dir
from shoal_server.settings import Settings

__all__ = ["App", "StartError"]

log = structlog.get_logger(__name__)

_HOW_TO_GET_ONE = " (`shoal models list` shows those there are, `shoal models pull` prepares one)"


class App:
    """One server. Made and used on one event loop; `start` once, then `stop`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.instruments: Instruments = make_instruments(settings)
        self.grpc_port = 0
        self.http_port = 0
        self._ready = False
        self._health: HealthServicer | None = None
        self._refreshing: set[asyncio.Task[None]] = set()
        self._draining = asyncio.Event()
        self._exits = AsyncExitStack()

    async def start(self) -> None:
        """Build everything, load what is to be preloaded, and serve.

        Raises:
            StartError: A device, a port or a model can not be had.
        """
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise

    async def stop(self) -> None:
        """Drain: take no new RPCs, finish what is in flight, free the models."""
        self._draining.set()
        await self._exits.aclose()

    async def _start(self) -> None:
        instruments, exits = self.instruments, self._exits
        hardware = find_hardware(self.settings)
        models = await open_models(instruments, hardware, self._model_changed, exits)
        requests = open_requests(instruments, hardware, models, exits)
        servicers = make_servicers(instruments, hardware, models, requests, self._draining)
        instruments.metrics.build_info.labels(
            metadata.version("shoal-server"), onnxruntime.__version__
        ).set(1)
        await self._start_http()
        self._health = health = HealthServicer(self._draining, models.catalog.can_serve)
        server = await self._bind_grpc([each.handler(requests.rpcs) for each in servicers], health)
        await self._preload(models)
        await recall_names(instruments, models)
        begin_watching(instruments, models, exits)
        await server.start()
        await self._announce_health(health)
        self._ready = True
        begin_activities(instruments, models, exits)
        begin_reading(models, health.refresh, exits)

    async def _start_http(self) -> None:
        http = HttpServer(self.instruments.metrics.registry, self._not_ready)
        settings = self.settings
        self._exits.push_async_callback(http.stop)
        try:
            self.http_port = await http.start(settings.http_host, settings.http_port)
        except OSError as error:
            raise StartError(
                f"HTTP can not listen on {settings.http_host}:{settings.http_port}: "
                f"{error.strerror or error} (--http-port 0 takes a free one)"
            ) from error

    async def _bind_grpc(
        self, handlers: list[grpc.GenericRpcHandler], health: HealthServicer
    ) -> grpc.aio.Server:
        """Bind the port, so that a port in use is told before models are loaded."""
        server = make_grpc_server(self.settings, handlers, health)
        try:
            self.grpc_port = listen(server, self.settings)
        except ListenError as error:
            raise StartError(str(error)) from error

        async def drain() -> None:
            await health.enter_graceful_shutdown()
            await server.stop(self.instruments.runtime.values.drain_s)

        self._exits.push_async_callback(drain)
        return server

    async def _preload(self, models: Models) -> None:
        deregistered = models.registry.deregistered
        for name in self.settings.preload:
            try:
                if any(each.ref.name in deregistered for each in models.registry.targets(name)):
                    # To register it again takes a server.
                    log.warning("preload_left_out", model=name or self.settings.default_model)
                    continue
                await self._load(models, name)
            except ShoalError as error:
                shown = name or f"{self.settings.default_model} (the default model)"
                hint = self._how_to_get_one() if isinstance(error, ModelNotFound) else ""
                raise StartError(f"can not load {shown}: {error.message}{hint}") from error

    async def _load(self, models: Models, name: str) -> None:
        """Load what a name means; where a version is bad, what the name means without it."""
        ref = models.registry.targets(name)[0].ref
        while True:
            key = (await models.registry.look_up(ref)).key
            try:
                await models.catalog.load(name, why=LoadReason.START)
                return
            except ModelLoadFailed as error:
                if ref.version is not None or not is_of_the_version(error):
                    raise
                await models.findings.note(key, error.message, FoundBy.LOADING)
                if (await models.registry.look_up(ref)).key == key:
                    raise
                log.warning("preload_passed_over", model=str(key), error=error.message)

    async def _announce_health(self, health: HealthServicer) -> None:
        for service in ("", *SERVICE_NAMES):
            await health.set_serving(service, True)

    def _how_to_get_one(self) -> str:
        folder = self.settings.model_dir or default_model_dir()
        if not folder.is_dir():
            return f" (there is no folder {folder}; `shoal models pull` makes it)"
        return _HOW_TO_GET_ONE

    def _model_changed(self, key: ModelKey) -> None:
        """A load or an unloading ended: watchers of the model's health should hear."""
        if self._health is not None:
            task = asyncio.get_running_loop().create_task(self._health.refresh(key.name))
            self._refreshing.add(task)
            task.add_done_callback(self._refreshing.discard)

    def _not_ready(self) -> str | None:
        if self._draining.is_set():
            return "draining"
        return None if self._ready else "starting"
