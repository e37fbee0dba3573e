"""GetServerInfo: what the server is, may do, and does now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib import metadata

import onnxruntime
from google.protobuf import timestamp_pb2

from shoal.v1 import model_control_pb2 as pb
from shoal_server.api.reasons import PRESSURE_LEVELS
from shoal_server.api.residency import write_departures, write_residents, write_warm
from shoal_server.batching.admission import Admission
from shoal_server.batching.slots import Slots
from shoal_server.inference.devices import CPU
from shoal_server.loading import LoadedModel
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.pressure_monitor import PressureMonitor
from shoal_server.residency.probes import Gpus, cpu_memory
from shoal_server.runtime_settings import RuntimeSettings


class ServerInfo:
    """Puts the answer together from the parts that know. On the event loop."""

    def __init__(
        self,
        *,
        settings: RuntimeSettings,
        admission: Admission,
        pool: SessionPool[LoadedModel],
        slots: Mapping[str, Slots],
        gpus: Gpus,
        pressure: PressureMonitor,
        state_problem: str,
        draining: asyncio.Event,
        started_at_s: float,
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._pool = pool
        self._slots = slots
        self._gpus = gpus
        self._pressure = pressure
        self._state_problem = state_problem
        self._draining = draining
        self._version = metadata.version("shoal-server")  # read from the disk each time
        self._started_at = timestamp_pb2.Timestamp()
        self._started_at.FromNanoseconds(int(started_at_s * 1e9))

    def read(self) -> pb.GetServerInfoResponse:
        """The state now."""
        return pb.GetServerInfoResponse(
            version=self._version,
            runtime_version=onnxruntime.__version__,
            runtime_providers=onnxruntime.get_available_providers(),
            default_model=self._settings.values.default_model,
            started_at=self._started_at,
            draining=self._draining.is_set(),
            limits=self._limits(),
            devices=[self._device(name, slots) for name, slots in self._slots.items()],
            requests_in_flight=self._admission.requests,
            items_in_flight=self._admission.items,
            bytes_in_flight=self._admission.bytes,
            state_problem=self._state_problem,
            residents=write_residents(self._pool),
            departures=write_departures(self._pool),
            warm_models=write_warm(self._pool),
        )

    def _limits(self) -> pb.Limits:
        settings = self._settings.values
        return pb.Limits(
            texts_per_request=settings.max_texts_per_request,
            bytes_per_text=settings.max_text_bytes,
            bytes_per_request=settings.max_request_bytes,
            message_bytes=settings.max_message_bytes,
            stream_requests_in_flight=settings.max_stream_requests,
            items_in_flight=settings.max_waiting_items,
            bytes_in_flight=settings.max_inflight_bytes,
            batch_items=settings.max_batch_items,
            batch_tokens=settings.max_batch_tokens,
        )

    def _device(self, name: str, slots: Slots) -> pb.DeviceInfo:
        on_cpu = name == CPU
        memory = cpu_memory() if on_cpu else self._gpus.memory(int(name.removeprefix("cuda:")))
        models, size_bytes = self._pool.counted(name)
        budget = self._pool.budget(name)
        level, use = self._pressure.level(name), self._pressure.use(name)
        return pb.DeviceInfo(
            device=name,
            pressure=PRESSURE_LEVELS[level] if level is not None else pb.PRESSURE_LEVEL_UNSPECIFIED,
            memory_use=use.used if use else None,
            slots=slots.count,
            threads_per_slot=self._settings.values.intra_op_threads if on_cpu else 1,
            resident_models=models,
            max_resident_models=budget.max_models or 0,
            resident_bytes=size_bytes,
            memory_budget_bytes=budget.max_bytes or 0,
            memory_total_bytes=memory.total_bytes if memory else 0,
            memory_free_bytes=memory.free_bytes if memory else 0,
        )
