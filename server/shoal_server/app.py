"""The composition root: builds the parts, starts them, serves, drains.

The only place that wires. What was opened last is closed first.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib import metadata

import grpc.aio
import onnxruntime
import structlog

from shoal_server.api.embed import EmbedServicer
from shoal_server.api.health import HealthServicer
from shoal_server.api.http import HttpServer
from shoal_server.api.model_control import ModelControlServicer
from shoal_server.api.rpc import RpcOptions, Rpcs
from shoal_server.api.server import SERVICE_NAMES, ListenError, listen, make_grpc_server
from shoal_server.api.server_info import ServerInfo
from shoal_server.batching.admission import Admission, AdmissionLimits
from shoal_server.batching.policy import BatchLimits
from shoal_server.batching.slots import Slots
from shoal_server.catalog import Catalog
from shoal_server.core import ModelKey
from shoal_server.embedder import Embedder, RequestLimits
from shoal_server.errors import FailedPrecondition, ModelNotFound, ShoalError
from shoal_server.inference.cuda import CudaOptions, cuda_problem
from shoal_server.inference.devices import CPU, AvailableDevices, find_devices
from shoal_server.inference.packed import PackedCache
from shoal_server.loading import LoadedModel, LoadOptions, ModelLoader
from shoal_server.placement import Placement
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository, default_model_dir
from shoal_server.residency.eviction import Budget
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.probes import Gpus, available_cpus, cpu_memory
from shoal_server.residency.resident import PoolSettings
from shoal_server.settings import Settings
from shoal_server.telemetry import BatchTelemetry, Metrics, PoolTelemetry

log = structlog.get_logger(__name__)

# Of a device's memory, what models may take when no budget is set.
_MEMORY_SHARE = 0.8
_THREADS_START_S = 10.0
_HOW_TO_GET_ONE = " (`shoal models list` shows those there are, `shoal models pull` prepares one)"


class StartError(Exception):
    """The server can not start; the message says why and what to do."""


class App:
    """One server. Made and used on one event loop; `start` once, then `stop`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.grpc_port = 0
        self.http_port = 0
        self.pool: SessionPool[LoadedModel]
        self.admission: Admission
        self._started_at_s = time.time()
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
        settings = self.settings
        gpus = Gpus()
        devices = find_devices(onnxruntime.get_available_providers(), gpus.count, cuda_problem)
        _check_device(settings, devices)
        repository = ModelRepository(settings.model_dir or default_model_dir())
        registry = Registry(
            repository,
            settings.default_model,
            settings.precision,
            gpu=devices.resolve(settings.device) != CPU,
        )
        placement = Placement(devices, gpus, settings.device)
        slots = _make_slots(settings, devices)
        self.admission = self._make_admission()
        loader = self._make_loader(registry, slots, gpus)
        self.pool = SessionPool(
            loader,
            budgets=_budgets(settings, devices, gpus),
            settings=PoolSettings(
                eviction_wait_s=settings.eviction_wait_s,
                load_backoff_s=settings.load_backoff_s,
                load_backoff_max_s=settings.load_backoff_max_s,
            ),
            observer=PoolTelemetry(self.metrics, self._model_changed),
            clock=time.monotonic,
        )
        self._exits.push_async_callback(self.pool.close)
        catalog = Catalog(registry, self.pool, placement)
        embedder = self._make_embedder(registry, placement)
        server_info = ServerInfo(
            settings=settings,
            admission=self.admission,
            pool=self.pool,
            slots=slots,
            gpus=gpus,
            draining=self._draining,
            started_at_s=self._started_at_s,
        )
        self.metrics.build_info.labels(
            metadata.version("shoal-server"), onnxruntime.__version__
        ).set(1)

        await self._start_http()
        self._health = health = HealthServicer(self._draining, catalog.can_serve)
        server = await self._start_grpc(embedder, catalog, server_info, health)
        await self._preload(catalog)
        await server.start()
        await self._announce_health(health, repository)
        self._ready = True

    def _executor(self, threads: int, name: str) -> ThreadPoolExecutor:
        executor = ThreadPoolExecutor(threads, thread_name_prefix=f"shoal-{name}")
        self._exits.callback(executor.shutdown, wait=False, cancel_futures=True)
        # Start them now: a limit on threads must end the start, not lose a batch later.
        started = threading.Barrier(threads + 1)
        for _ in range(threads):
            executor.submit(started.wait, _THREADS_START_S)
        started.wait(_THREADS_START_S)
        return executor

    def _make_admission(self) -> Admission:
        settings, metrics = self.settings, self.metrics
        items_in_flight = metrics.items_in_flight.labels()
        bytes_in_flight = metrics.bytes_in_flight.labels()

        def changed(items: int, size_bytes: int) -> None:
            items_in_flight.set(items)
            bytes_in_flight.set(size_bytes)

        return Admission(
            AdmissionLimits(
                items=settings.max_waiting_items,
                items_per_model=settings.max_waiting_items_per_model,
                bytes=settings.max_inflight_bytes,
            ),
            clock=time.monotonic,
            changed=changed,
            rejected=lambda limit: metrics.rejected.labels(limit).inc(),
        )

    def _make_loader(self, registry: Registry, slots: dict[str, Slots], gpus: Gpus) -> ModelLoader:
        settings = self.settings
        limits = BatchLimits(
            max_items=settings.max_batch_items,
            max_tokens=settings.max_batch_tokens,
            max_padding_waste=settings.max_padding_waste,
            max_wait_s=settings.max_wait_ms / 1000,
        )
        return ModelLoader(
            registry,
            options=LoadOptions(
                intra_op_threads=settings.intra_op_threads,
                wide_threads=slots[CPU].count * settings.intra_op_threads,
                verify_files=settings.verify_files,
                cuda=CudaOptions(
                    memory_limit_bytes=settings.cuda_memory_limit_bytes,
                    arena_strategy=settings.cuda_arena_strategy,
                    cudnn_search=settings.cuda_cudnn_search,
                    tf32=settings.cuda_tf32,
                    cudnn_attention=settings.cuda_cudnn_attention,
                ),
                limits=limits,
                cuda_limits=replace(
                    limits,
                    max_items=settings.cuda_max_batch_items,
                    max_tokens=settings.cuda_max_batch_tokens,
                ),
                max_queue_s=settings.max_queue_s,
                priority_head_start_s=settings.priority_head_start_ms / 1000,
            ),
            slots=slots,
            run_executor=self._executor(sum(each.count for each in slots.values()), "run"),
            load_executor=self._executor(settings.load_threads, "load"),
            gpus=gpus,
            cache=_packed_cache(settings, registry.repository),
            observer=lambda model: BatchTelemetry(self.metrics, model),
        )

    def _make_embedder(self, registry: Registry, placement: Placement) -> Embedder:
        settings = self.settings
        return Embedder(
            registry=registry,
            admission=self.admission,
            pool=self.pool,
            placement=placement,
            limits=RequestLimits(
                max_texts_per_request=settings.max_texts_per_request,
                max_text_bytes=settings.max_text_bytes,
                max_request_bytes=settings.max_request_bytes,
                inline_tokenize_bytes=settings.inline_tokenize_bytes,
            ),
            tokenize_executor=self._executor(
                settings.tokenize_threads or available_cpus(), "tokenize"
            ),
            metrics=self.metrics,
        )

    async def _start_http(self) -> None:
        http = HttpServer(self.metrics.registry, self._not_ready)
        settings = self.settings
        self._exits.push_async_callback(http.stop)
        try:
            self.http_port = await http.start(settings.http_host, settings.http_port)
        except OSError as error:
            raise StartError(
                f"HTTP can not listen on {settings.http_host}:{settings.http_port}: "
                f"{error.strerror or error} (--http-port 0 takes a free one)"
            ) from error

    async def _start_grpc(
        self,
        embedder: Embedder,
        catalog: Catalog,
        server_info: ServerInfo,
        health: HealthServicer,
    ) -> grpc.aio.Server:
        """Bind the port, so that a port in use is told before models are loaded."""
        settings = self.settings
        rpcs = Rpcs(
            self.metrics,
            RpcOptions(
                max_request_bytes=settings.max_request_bytes,
                log_requests=settings.log_requests,
                slow_request_s=settings.slow_request_ms / 1000,
            ),
        )
        embed = EmbedServicer(
            embedder,
            max_stream_requests=settings.max_stream_requests,
            max_request_bytes=settings.max_request_bytes,
            draining=self._draining,
            default_model=settings.default_model,
            stream_requests=self.metrics.stream_requests,
        )
        control = ModelControlServicer(catalog, server_info.read)
        server = make_grpc_server(settings, [embed.handler(rpcs), control.handler(rpcs)], health)
        try:
            self.grpc_port = listen(server, settings)
        except ListenError as error:
            raise StartError(str(error)) from error

        async def drain() -> None:
            await health.enter_graceful_shutdown()
            await server.stop(settings.drain_s)

        self._exits.push_async_callback(drain)
        return server

    async def _preload(self, catalog: Catalog) -> None:
        for name in self.settings.preload:
            try:
                await catalog.load(name)
            except ShoalError as error:
                shown = name or f"{self.settings.default_model} (the default model)"
                hint = self._how_to_get_one() if isinstance(error, ModelNotFound) else ""
                raise StartError(f"can not load {shown}: {error.message}{hint}") from error

    async def _announce_health(self, health: HealthServicer, repository: ModelRepository) -> None:
        for service in ("", *SERVICE_NAMES):
            await health.set_serving(service, True)
        for name in await asyncio.to_thread(repository.names):
            await health.refresh(name)

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


def _check_device(settings: Settings, devices: AvailableDevices) -> None:
    """Say at once when the default device can not be had."""
    try:
        device = devices.resolve(settings.device)
    except FailedPrecondition as error:
        raise StartError(error.message) from error
    if settings.device == "auto" and device == CPU and devices.gpu_expected:
        log.warning("device_fallback", device=CPU, reason=devices.gpu_problem)


def _make_slots(settings: Settings, devices: AvailableDevices) -> dict[str, Slots]:
    cpu_slots = settings.cpu_slots or max(1, available_cpus() // settings.intra_op_threads)
    return {
        device: Slots(cpu_slots if device == CPU else settings.cuda_slots)
        for device in devices.names
    }


def _packed_cache(settings: Settings, repository: ModelRepository) -> PackedCache | None:
    if settings.packed_cache_bytes == 0:
        return None
    root = settings.packed_cache_dir or repository.root / ".packed"
    return PackedCache(
        root, settings.packed_cache_bytes, trust_signatures=settings.trust_file_times
    )


def _budgets(settings: Settings, devices: AvailableDevices, gpus: Gpus) -> dict[str, Budget]:
    budgets = {}
    for index, device in enumerate(devices.names, start=-1):
        memory = cpu_memory() if device == CPU else gpus.memory(index)
        usual = int(memory.total_bytes * _MEMORY_SHARE) if memory else None
        if device == CPU:
            budgets[device] = Budget(
                settings.max_resident_models, settings.memory_budget_bytes or usual
            )
        else:
            budgets[device] = Budget(
                settings.cuda_max_resident_models, settings.cuda_memory_budget_bytes or usual
            )
    return budgets
