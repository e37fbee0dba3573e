"""The models: what there is, what is in memory, and what keeps watch over that."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from shoal_server.catalog import Catalog
from shoal_server.composition.executors import open_executor
from shoal_server.composition.hardware import Hardware, memory_budgets
from shoal_server.composition.instruments import Instruments
from shoal_server.composition.storage import open_store, packed_cache
from shoal_server.composition.upkeep import Upkeep, open_upkeep
from shoal_server.core import ModelKey
from shoal_server.errors import ModelNotFound
from shoal_server.inference.devices import CPU
from shoal_server.kept_statistics import KeptStatistics
from shoal_server.loading import LoadedModel, ModelLoader
from shoal_server.placement import Placement
from shoal_server.preloading import Preloader
from shoal_server.registering import Registrar
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.events import PressureChanged, WarmModelReleased
from shoal_server.registry.findings import Findings
from shoal_server.registry.memory_pins import MemoryPins
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.registry.remembered import remembered_names
from shoal_server.registry.repository import ModelRepository, default_model_dir
from shoal_server.registry.store import RecordStore
from shoal_server.residency.announcing import ObserverGroup, PoolEvents
from shoal_server.residency.churn import ChurnObserver
from shoal_server.residency.free_memory import FreeMemory
from shoal_server.residency.load_findings import LoadFindings
from shoal_server.residency.memory_probe import MemoryProbe
from shoal_server.residency.mended import Mended
from shoal_server.residency.model_states import ModelStates
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.pressure_monitor import PressureMonitor
from shoal_server.residency.probes import return_free_memory
from shoal_server.residency.resident import PoolSettings, State
from shoal_server.returning import ResidentRecords
from shoal_server.settings import Settings
from shoal_server.statistics.statistics import PAIRS_PER_CALLER
from shoal_server.switching import Switcher
from shoal_server.telemetry.observers import (
    BatchTelemetry,
    MemoryTelemetry,
    PoolTelemetry,
    PreloadTelemetry,
    WarmTelemetry,
)
from shoal_server.tuning import idle_rules, load_options, preload_rules, pressure_limits
from shoal_server.verifying import remembered_outcomes


@dataclass(frozen=True, slots=True)
class Models:
    """The parts that know models; all belong to the event loop."""

    repository: ModelRepository
    store: RecordStore
    registry: Registry
    placement: Placement
    loader: ModelLoader
    pool: SessionPool[LoadedModel]
    residents: ResidentRecords
    kept_statistics: KeptStatistics
    preloader: Preloader
    pressure: PressureMonitor
    switcher: Switcher
    catalog: Catalog
    registrar: Registrar
    conditions: Conditions
    findings: Findings
    upkeep: Upkeep
    states: ModelStates


async def open_models(
    instruments: Instruments,
    hardware: Hardware,
    changed: Callable[[ModelKey], None],
    exits: AsyncExitStack,
) -> Models:
    """Build them; `exits` closes what was opened.

    Args:
        instruments: Of the server.
        hardware: Of the machine.
        changed: Told of a model when it came into memory, left it, or could not be loaded.
        exits: Of the server.

    Raises:
        StartError: The records can not be read.
    """
    settings = instruments.settings
    repository = ModelRepository(settings.model_dir or default_model_dir())
    store = await open_store(settings, repository, exits)
    conditions = Conditions()
    findings = Findings(repository, conditions, store)
    exits.push_async_callback(findings.close)
    await findings.drop_outdated()
    registry = Registry(
        repository,
        settings.default_model,
        settings.precision,
        gpu=hardware.devices.resolve(settings.device) != CPU,
        names=remembered_names(store),
        found=findings.by_model,
    )
    placement = Placement(hardware.devices, hardware.gpus, settings.device)
    loader = _make_loader(instruments, hardware, registry, exits)
    memory_telemetry = MemoryTelemetry(
        instruments.metrics, lambda *change: instruments.events.publish(PressureChanged(*change))
    )
    residents = ResidentRecords(store, registry.meanings, settings.statistics_write_s)
    kept_statistics = _keep_statistics(instruments, store)
    exits.push_async_callback(kept_statistics.close)
    preloader = _make_preloader(instruments)
    pins = MemoryPins(store)
    states = ModelStates(registry, conditions, instruments.events)
    load_findings = LoadFindings(findings, registry, conditions)
    exits.push_async_callback(load_findings.close)
    pool = SessionPool(
        loader,
        budgets=memory_budgets(settings, hardware),
        settings=_pool_settings(settings),
        # Whoever wants to know what the pool does is listed here.
        observer=ObserverGroup(
            [
                PoolTelemetry(instruments.metrics, changed),
                load_findings,  # before the states, which follow from what is found
                PoolEvents(instruments.events, states),
                residents,
                preloader,
                ChurnObserver(memory_telemetry, time.monotonic),
            ]
        ),
        clock=time.monotonic,
        warm_observer=WarmTelemetry(
            instruments.metrics,
            lambda it: instruments.events.publish(
                WarmModelReleased(it.key, it.size_bytes, it.why, it.problem)
            ),
        ),
        idle=idle_rules(settings, hardware.devices.names),
        pins=pins.by_version,
    )
    exits.push_async_callback(pool.close)
    exits.push_async_callback(residents.close)
    residents.begin(pool)
    states.begin(pool)
    registry.served = partial(_served, registry, pool)
    switcher = Switcher(registry, pool, placement, store, instruments.events)
    exits.push_async_callback(switcher.close)
    outcomes = remembered_outcomes(store)
    catalog = Catalog(
        registry, pool, placement, pins, states, outcomes, Mended(findings, pool)
    )  # fmt: skip
    upkeep = open_upkeep(
        instruments, registry=registry, pool=pool, placement=placement, loader=loader,
        switcher=switcher, conditions=conditions, findings=findings, store=store,
        outcomes=outcomes, exits=exits,
    )  # fmt: skip
    registrar = Registrar(
        registry, catalog.index, pool, store, instruments.events,
        states.came, lambda name: changed(ModelKey(name, "")),
    )  # fmt: skip
    exits.push_async_callback(registrar.close)
    return Models(
        repository=repository,
        store=store,
        registry=registry,
        placement=placement,
        loader=loader,
        pool=pool,
        residents=residents,
        kept_statistics=kept_statistics,
        preloader=preloader,
        pressure=PressureMonitor(
            pool,
            limits=pressure_limits(settings),
            probe=MemoryProbe(hardware.devices.names, hardware.gpus).look,
            shrink=return_free_memory,
            observer=memory_telemetry,
            clock=time.monotonic,
        ),
        switcher=switcher,
        catalog=catalog,
        conditions=conditions,
        findings=findings,
        upkeep=upkeep,
        states=states,
        registrar=registrar,
    )


def _served(
    registry: Registry, pool: SessionPool[LoadedModel], key: ModelKey
) -> ModelVersion | None:
    """What the session of a version was made of, or is being; see `Registry.served`."""
    resident = pool.get(key)
    if resident is None or resident.state is State.CLOSING:
        return None
    if resident.session:
        return resident.session.version
    try:
        return registry.version(key)
    except ModelNotFound:  # it was deregistered while it is loaded: it leaves then
        return None


def free_memory(settings: Settings, models: Models) -> FreeMemory:
    """For loads that nobody waits for."""
    watch = models.pressure if settings.pressure_interval_s > 0 else None
    return FreeMemory(models.pool, models.loader, watch)


def _pool_settings(settings: Settings) -> PoolSettings:
    return PoolSettings(
        eviction_wait_s=settings.eviction_wait_s,
        load_backoff_s=settings.load_backoff_s,
        load_backoff_max_s=settings.load_backoff_max_s,
    )


def _keep_statistics(instruments: Instruments, store: RecordStore) -> KeptStatistics:
    return KeptStatistics(
        instruments.statistics,
        instruments.history,
        store,
        max_pairs=PAIRS_PER_CALLER * instruments.settings.max_callers,
        wall_clock=time.time,
    )


def _make_preloader(instruments: Instruments) -> Preloader:
    return Preloader(
        instruments.history,
        rules=lambda: preload_rules(instruments.runtime.values),
        events=instruments.events,
        observer=PreloadTelemetry(instruments.metrics),
        wall_clock=time.time,
        clock=time.monotonic,
    )


def _make_loader(
    instruments: Instruments, hardware: Hardware, registry: Registry, exits: AsyncExitStack
) -> ModelLoader:
    settings, metrics, slots = instruments.settings, instruments.metrics, hardware.slots
    statistics = instruments.statistics
    return ModelLoader(
        registry,
        options=load_options(settings, slots[CPU].count),
        slots=slots,
        run_executor=open_executor(sum(each.count for each in slots.values()), "run", exits),
        load_executor=open_executor(settings.load_threads, "load", exits),
        background_executor=open_executor(1, "pack", exits),
        gpus=hardware.gpus,
        cache=packed_cache(settings, registry.repository),
        observer=lambda key: BatchTelemetry(
            metrics, key.name, partial(statistics.batch_ended, key)
        ),
    )
