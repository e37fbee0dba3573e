"""What stands between a request and its model: admission, rate limits, the embedder."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

from shoal_server.api.callers import Callers, read_names
from shoal_server.api.rpc import Rpcs
from shoal_server.batching.admission import Admission
from shoal_server.composition.executors import open_executor
from shoal_server.composition.hardware import Hardware
from shoal_server.composition.instruments import Instruments
from shoal_server.composition.models import Models, free_memory
from shoal_server.embed_request import RequestLimits
from shoal_server.embedder import Embedder
from shoal_server.inference.devices import CPU
from shoal_server.kept_settings import KeptSettings
from shoal_server.rate_limits import RateLimits, read_limits
from shoal_server.registry.deprecations import DeprecationWarnings
from shoal_server.residency.probes import available_cpus
from shoal_server.tuning import admission_limits, let_settings_change, rate_limit, rpc_options


@dataclass(frozen=True, slots=True)
class Requests:
    """The parts that requests go through before their model."""

    rpcs: Rpcs
    admission: Admission
    embedder: Embedder
    kept_settings: KeptSettings


def open_requests(
    instruments: Instruments, hardware: Hardware, models: Models, exits: AsyncExitStack
) -> Requests:
    """Build them, and let settings change from now on; `exits` closes what was opened."""
    settings = instruments.settings
    admission = _make_admission(instruments)
    rate_limits = _make_rate_limits(instruments)
    embedder = _make_embedder(instruments, models, admission, rate_limits, exits)
    rpcs = Rpcs(
        instruments.metrics,
        rpc_options(settings),
        Callers(by_key=settings.callers_by == "key", names=read_names(settings.caller_names)),
    )
    free = free_memory(settings, models)
    models.preloader.begin(
        models.registry, models.pool, models.placement, free, lambda: not admission.requests
    )
    let_settings_change(
        instruments.runtime,
        rpcs=rpcs,
        admission=admission,
        rate_limits=rate_limits,
        loader=models.loader,
        pool=models.pool,
        pressure=models.pressure,
        devices=hardware.devices.names,
        cpu_slots=hardware.slots[CPU].count,
    )
    kept_settings = KeptSettings(instruments.runtime, models.store)
    kept_settings.restore()
    return Requests(rpcs, admission, embedder, kept_settings)


def _make_admission(instruments: Instruments) -> Admission:
    metrics = instruments.metrics
    items_in_flight = metrics.items_in_flight.labels()
    bytes_in_flight = metrics.bytes_in_flight.labels()

    def changed(items: int, size_bytes: int) -> None:
        items_in_flight.set(items)
        bytes_in_flight.set(size_bytes)

    return Admission(
        admission_limits(instruments.settings),
        clock=time.monotonic,
        changed=changed,
        rejected=lambda limit: metrics.rejected.labels(limit).inc(),
    )


def _make_rate_limits(instruments: Instruments) -> RateLimits:
    settings, rejected = instruments.settings, instruments.metrics.rejected
    return RateLimits(
        rate_limit(settings),
        by_caller=read_limits(settings.rate_limit_overrides),
        clock=time.monotonic,
        rejected=lambda limit: rejected.labels(limit).inc(),
    )


def _make_embedder(
    instruments: Instruments,
    models: Models,
    admission: Admission,
    rate_limits: RateLimits,
    exits: AsyncExitStack,
) -> Embedder:
    settings = instruments.settings
    return Embedder(
        registry=models.registry,
        admission=admission,
        pool=models.pool,
        placement=models.placement,
        limits=RequestLimits(
            max_texts_per_request=settings.max_texts_per_request,
            max_text_bytes=settings.max_text_bytes,
            max_request_bytes=settings.max_request_bytes,
            inline_tokenize_bytes=settings.inline_tokenize_bytes,
        ),
        tokenize_executor=open_executor(
            settings.tokenize_threads or available_cpus(), "tokenize", exits
        ),
        metrics=instruments.metrics,
        rate_limits=rate_limits,
        statistics=instruments.statistics,
        history=instruments.history,
        deprecations=DeprecationWarnings(),
    )
