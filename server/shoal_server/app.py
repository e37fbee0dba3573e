"""The composition root: builds the parts, starts them, serves, drains.

The only place that wires. What was opened last is closed first.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from importlib import metadata

import grpc.aio
import onnxruntime
import structlog

from shoal_server.api.callers import Callers, read_names
from shoal_server.api.embed import EmbedServicer
from shoal_server.api.health import HealthServicer
from shoal_server.api.http import HttpServer
from shoal_server.api.labels import LabelsServicer
from shoal_server.api.model_control import ModelControlServicer
from shoal_server.api.rpc import Rpcs
from shoal_server.api.server import SERVICE_NAMES, ListenError, listen, make_grpc_server
from shoal_server.api.server_info import ServerInfo
from shoal_server.api.statistics import StatisticsReader
from shoal_server.api.versions import VersionsServicer
from shoal_server.api.watch_events import EventStreams
from shoal_server.batching.admission import Admission
from shoal_server.batching.slots import Slots
from shoal_server.catalog import Catalog
from shoal_server.core import ModelKey
from shoal_server.embedder import Embedder, RequestLimits
from shoal_server.errors import FailedPrecondition, ModelNotFound, ShoalError
from shoal_server.inference.cuda import cuda_problem
from shoal_server.inference.denormals import flush_denormals
from shoal_server.inference.devices import CPU, AvailableDevices, find_devices
from shoal_server.inference.packed import PackedCache
from shoal_server.kept_settings import KeptSettings
from shoal_server.labelling import Labeller
from shoal_server.lifecycle import LoadReason
from shoal_server.loading import LoadedModel, ModelLoader
from shoal_server.placement import Placement
from shoal_server.rate_limits import RateLimits, read_limits
from shoal_server.registry.deprecations import DeprecationWarnings
from shoal_server.registry.event_log import EventLog
from shoal_server.registry.events import PressureChanged, SettingsChanged
from shoal_server.registry.registry import Registry
from shoal_server.registry.remembered import remembered_names
from shoal_server.registry.repository import ModelRepository, default_model_dir
from shoal_server.registry.store import STATE_FILE, RecordStore, StoreUnreadable
from shoal_server.registry.whole import WholeTasks
from shoal_server.residency.announcing import ObserverGroup, PoolEvents
from shoal_server.residency.churn import ChurnObserver
from shoal_server.residency.eviction import Budget
from shoal_server.residency.memory_probe import MemoryProbe
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.pressure_monitor import PressureMonitor
from shoal_server.residency.probes import Gpus, available_cpus, cpu_memory, return_free_memory
from shoal_server.residency.resident import PoolSettings
from shoal_server.returning import ResidentRecords, Return
from shoal_server.runtime_settings import RuntimeSettings
from shoal_server.settings import Settings
from shoal_server.statistics.statistics import Statistics
from shoal_server.switching import Switcher
from shoal_server.telemetry import (
    BatchTelemetry,
    EventTelemetry,
    MemoryTelemetry,
    Metrics,
    PoolTelemetry,
)
from shoal_server.tuning import (
    admission_limits,
    idle_rules,
    let_settings_change,
    load_options,
    pressure_limits,
    rate_limit,
    rpc_options,
)

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
        self.events = EventLog(
            settings.event_history,
            wall_clock=time.time,
            observer=EventTelemetry(self.metrics),
        )
        self.grpc_port = 0
        self.http_port = 0
        self.pool: SessionPool[LoadedModel]
        self.admission: Admission
        self.runtime = RuntimeSettings(
            settings, lambda changes: self.events.publish(SettingsChanged(changes))
        )
        self.statistics = Statistics(
            window_s=settings.statistics_window_s,
            max_callers=settings.max_callers,
            clock=time.monotonic,
        )
        self._started_at_s = time.time()
        self._ready = False
        self._health: HealthServicer | None = None
        self._kept_settings: KeptSettings
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
        store = await self._open_store(repository)
        registry = Registry(
            repository,
            settings.default_model,
            settings.precision,
            gpu=devices.resolve(settings.device) != CPU,
            names=remembered_names(store),
        )
        placement = Placement(devices, gpus, settings.device)
        slots = _make_slots(settings, devices)
        self.admission = self._make_admission()
        loader = self._make_loader(registry, slots, gpus)
        memory_telemetry = MemoryTelemetry(
            self.metrics, lambda *change: self.events.publish(PressureChanged(*change))
        )
        residents = ResidentRecords(store)
        self.pool = SessionPool(
            loader,
            budgets=_budgets(settings, devices, gpus),
            settings=PoolSettings(
                eviction_wait_s=settings.eviction_wait_s,
                load_backoff_s=settings.load_backoff_s,
                load_backoff_max_s=settings.load_backoff_max_s,
            ),
            observer=ObserverGroup(
                [
                    PoolTelemetry(self.metrics, self._model_changed),
                    PoolEvents(self.events),
                    residents,
                    ChurnObserver(memory_telemetry, time.monotonic),
                ]
            ),
            clock=time.monotonic,
            idle=idle_rules(settings, devices.names),
        )
        self._exits.push_async_callback(self.pool.close)
        self._exits.push_async_callback(residents.close)
        residents.begin(self.pool)
        switcher = Switcher(registry, self.pool, placement, store, self.events)
        self._exits.push_async_callback(switcher.close)
        pressure = self._make_pressure_monitor(devices, gpus, memory_telemetry)
        catalog = Catalog(registry, self.pool, placement)
        names = (
            VersionsServicer(registry, switcher, catalog),
            LabelsServicer(Labeller(registry, store)),
        )
        rate_limits = self._make_rate_limits()
        embedder = self._make_embedder(registry, placement, rate_limits)
        rpcs = Rpcs(
            self.metrics,
            rpc_options(settings),
            Callers(by_key=settings.callers_by == "key", names=read_names(settings.caller_names)),
        )
        let_settings_change(
            self.runtime,
            rpcs=rpcs,
            admission=self.admission,
            rate_limits=rate_limits,
            loader=loader,
            pool=self.pool,
            pressure=pressure,
            devices=devices.names,
            cpu_slots=slots[CPU].count,
        )
        self._kept_settings = KeptSettings(self.runtime, store)
        self._kept_settings.restore()
        server_info = ServerInfo(
            settings=self.runtime,
            admission=self.admission,
            pool=self.pool,
            slots=slots,
            gpus=gpus,
            pressure=pressure,
            state_problem=store.problem,
            draining=self._draining,
            started_at_s=self._started_at_s,
        )
        self.metrics.build_info.labels(
            metadata.version("shoal-server"), onnxruntime.__version__
        ).set(1)

        await self._start_http()
        self._health = health = HealthServicer(self._draining, catalog.can_serve)
        statistics = StatisticsReader(self.statistics, registry, gpus, devices.names)
        server = await self._start_grpc(
            rpcs, embedder, catalog, names, server_info, statistics, health
        )
        await self._preload(catalog)
        self._watch_memory(pressure)
        await server.start()
        await self._announce_health(health, repository)
        self._ready = True
        if settings.restore_models:
            back = Return(registry, self.pool, placement, loader.predict_bytes)
            self._begin(back.bring_back(residents))
        else:
            self._begin(residents.forget_former())

    async def _open_store(self, repository: ModelRepository) -> RecordStore:
        try:
            store = await RecordStore.open(self.settings.state_file or repository.root / STATE_FILE)
        except StoreUnreadable as error:
            raise StartError(str(error)) from error
        self._exits.push_async_callback(store.close)
        return store

    def _make_pressure_monitor(
        self, devices: AvailableDevices, gpus: Gpus, telemetry: MemoryTelemetry
    ) -> PressureMonitor:
        settings = self.settings
        return PressureMonitor(
            self.pool,
            limits=pressure_limits(settings),
            probe=MemoryProbe(devices.names, gpus).look,
            shrink=return_free_memory,
            observer=telemetry,
            clock=time.monotonic,
        )

    def _watch_memory(self, pressure: PressureMonitor) -> None:
        if self.settings.pressure_interval_s > 0:
            self.pool.guard_loads(pressure.may_load)
            watching = asyncio.create_task(pressure.run(self.settings.pressure_interval_s))
            self._exits.callback(watching.cancel)

    def _executor(self, threads: int, name: str) -> ThreadPoolExecutor:
        executor = ThreadPoolExecutor(
            threads, thread_name_prefix=f"shoal-{name}", initializer=flush_denormals
        )
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
            admission_limits(settings),
            clock=time.monotonic,
            changed=changed,
            rejected=lambda limit: metrics.rejected.labels(limit).inc(),
        )

    def _make_loader(self, registry: Registry, slots: dict[str, Slots], gpus: Gpus) -> ModelLoader:
        settings = self.settings
        return ModelLoader(
            registry,
            options=load_options(settings, slots[CPU].count),
            slots=slots,
            run_executor=self._executor(sum(each.count for each in slots.values()), "run"),
            load_executor=self._executor(settings.load_threads, "load"),
            background_executor=self._executor(1, "pack"),
            gpus=gpus,
            cache=_packed_cache(settings, registry.repository),
            observer=lambda key: BatchTelemetry(
                self.metrics, key.name, partial(self.statistics.batch_ended, key)
            ),
        )

    def _make_embedder(
        self, registry: Registry, placement: Placement, rate_limits: RateLimits
    ) -> Embedder:
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
            rate_limits=rate_limits,
            statistics=self.statistics,
            deprecations=DeprecationWarnings(),
        )

    def _make_rate_limits(self) -> RateLimits:
        settings, rejected = self.settings, self.metrics.rejected
        return RateLimits(
            rate_limit(settings),
            by_caller=read_limits(settings.rate_limit_overrides),
            clock=time.monotonic,
            rejected=lambda limit: rejected.labels(limit).inc(),
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
        rpcs: Rpcs,
        embedder: Embedder,
        catalog: Catalog,
        names: Sequence[VersionsServicer | LabelsServicer],
        server_info: ServerInfo,
        statistics: StatisticsReader,
        health: HealthServicer,
    ) -> grpc.aio.Server:
        """Bind the port, so that a port in use is told before models are loaded."""
        settings = self.settings
        embed = EmbedServicer(
            embedder,
            max_stream_requests=settings.max_stream_requests,
            max_request_bytes=settings.max_request_bytes,
            draining=self._draining,
            default_model=settings.default_model,
            stream_requests=self.metrics.stream_requests,
        )
        control = ModelControlServicer(
            catalog,
            EventStreams(self.events, self._draining),
            server_info.read,
            statistics,
            self._kept_settings,
        )
        handlers = [each.handler(rpcs) for each in (embed, control, *names)]
        server = make_grpc_server(settings, handlers, health)
        try:
            self.grpc_port = listen(server, settings)
        except ListenError as error:
            raise StartError(str(error)) from error

        async def drain() -> None:
            await health.enter_graceful_shutdown()
            await server.stop(self.runtime.values.drain_s)

        self._exits.push_async_callback(drain)
        return server

    async def _preload(self, catalog: Catalog) -> None:
        for name in self.settings.preload:
            try:
                await catalog.load(name, why=LoadReason.START)
            except ShoalError as error:
                shown = name or f"{self.settings.default_model} (the default model)"
                hint = self._how_to_get_one() if isinstance(error, ModelNotFound) else ""
                raise StartError(f"can not load {shown}: {error.message}{hint}") from error

    async def _announce_health(self, health: HealthServicer, repository: ModelRepository) -> None:
        for service in ("", *SERVICE_NAMES):
            await health.set_serving(service, True)
        for name in await asyncio.to_thread(repository.names):
            await health.refresh(name)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        """Do `work` beside serving, until it is done or the server stops."""
        tasks = WholeTasks()
        self._exits.push_async_callback(tasks.close)
        tasks.start(work)

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
