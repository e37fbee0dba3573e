"""What answers RPCs. A new servicer is one more line here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import grpc

from shoal_server.api.embed import EmbedServicer
from shoal_server.api.labels import LabelsServicer
from shoal_server.api.model_control import ModelControlServicer
from shoal_server.api.profile import ProfileServicer
from shoal_server.api.registration import RegistrationServicer
from shoal_server.api.rpc import Rpcs
from shoal_server.api.server_info import ServerInfo
from shoal_server.api.statistics import StatisticsReader
from shoal_server.api.upkeep import UpkeepServicer
from shoal_server.api.usage import UsageServicer
from shoal_server.api.versions import VersionsServicer
from shoal_server.api.watch_events import EventStreams
from shoal_server.composition.hardware import Hardware
from shoal_server.composition.instruments import Instruments
from shoal_server.composition.models import Models
from shoal_server.composition.requests import Requests
from shoal_server.composition.upkeep import default_source
from shoal_server.labelling import Labeller
from shoal_server.profiling.kept import KeptProfiles
from shoal_server.profiling.profiler import Profiler
from shoal_server.tuning import profile_limits


class Servicer(Protocol):
    """Answers some RPCs."""

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler:
        """Its methods for a gRPC server."""


def make_servicers(
    instruments: Instruments,
    hardware: Hardware,
    models: Models,
    requests: Requests,
    draining: asyncio.Event,
) -> Sequence[Servicer]:
    """All of them."""
    return (
        _embed(instruments, requests, draining),
        _control(instruments, hardware, models, requests, draining),
        VersionsServicer(models.registry, models.switcher, models.catalog),
        _upkeep(instruments, models),
        LabelsServicer(Labeller(models.registry, models.store, models.states)),
        UsageServicer(instruments.history, models.preloader, models.registry),
        RegistrationServicer(models.registrar, models.catalog),
        ProfileServicer(_profiler(instruments, hardware, models), draining),
    )


def _upkeep(instruments: Instruments, models: Models) -> UpkeepServicer:
    upkeep = models.upkeep
    return UpkeepServicer(
        upkeep.verifier,
        upkeep.reloader,
        upkeep.updater,
        lambda: default_source(instruments.runtime.values),
    )


def _embed(instruments: Instruments, requests: Requests, draining: asyncio.Event) -> EmbedServicer:
    settings = instruments.settings
    return EmbedServicer(
        requests.embedder,
        max_stream_requests=settings.max_stream_requests,
        max_request_bytes=settings.max_request_bytes,
        draining=draining,
        default_model=settings.default_model,
        stream_requests=instruments.metrics.stream_requests,
    )


def _profiler(instruments: Instruments, hardware: Hardware, models: Models) -> Profiler:
    return Profiler(
        registry=models.registry,
        pool=models.pool,
        placement=models.placement,
        loader=models.loader,
        slots=hardware.slots,
        gpus=hardware.gpus,
        kept=KeptProfiles(models.store),
        events=instruments.events,
        limits=lambda: profile_limits(instruments.runtime.values),
    )


def _control(
    instruments: Instruments,
    hardware: Hardware,
    models: Models,
    requests: Requests,
    draining: asyncio.Event,
) -> ModelControlServicer:
    server_info = ServerInfo(
        settings=instruments.runtime,
        admission=requests.admission,
        pool=models.pool,
        slots=hardware.slots,
        gpus=hardware.gpus,
        pressure=models.pressure,
        state_problem=models.store.problem,
        draining=draining,
        started_at_s=instruments.started_at_s,
    )
    statistics = StatisticsReader(
        models.kept_statistics.all_time, models.registry, hardware.gpus, hardware.devices.names
    )
    return ModelControlServicer(
        models.catalog,
        EventStreams(instruments.events, draining),
        server_info.read,
        statistics,
        requests.kept_settings,
    )
