"""ModelControlService: between its messages and the catalog."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import grpc
from google.protobuf import duration_pb2, timestamp_pb2

from shoal.v1 import model_control_pb2 as pb
from shoal_server.api.rpc import Call, Rpcs
from shoal_server.catalog import Catalog, ModelDescription, ModelState
from shoal_server.core import ModelKind, Pooling, valid_device
from shoal_server.errors import DeadlineExceeded, InvalidInput, ModelNotFound
from shoal_server.loading import LoadedModel
from shoal_server.residency.resident import Resident

SERVICE = "shoal.v1.ModelControlService"

# Of google.protobuf.Duration, by its definition: about 10,000 years.
_DURATION_MAX_S = 315_576_000_000

_STATES = {
    ModelState.NOT_PREPARED: pb.MODEL_STATE_NOT_PREPARED,
    ModelState.UNLOADED: pb.MODEL_STATE_UNLOADED,
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.READY: pb.MODEL_STATE_READY,
    ModelState.UNLOADING: pb.MODEL_STATE_UNLOADING,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
}
_KINDS = {ModelKind.TEXT_EMBEDDING: pb.MODEL_KIND_TEXT_EMBEDDING}
_POOLINGS = {
    Pooling.MEAN: pb.POOLING_MEAN,
    Pooling.CLS: pb.POOLING_CLS,
    Pooling.LAST_TOKEN: pb.POOLING_LAST_TOKEN,
}


class ModelControlServicer:
    """Answers `shoal.v1.ModelControlService`."""

    def __init__(
        self, catalog: Catalog, server_info: Callable[[], pb.GetServerInfoResponse]
    ) -> None:
        """Wire it.

        Args:
            catalog: Describes, loads and unloads.
            server_info: What the composition root knows of the server, now.
        """
        self._catalog = catalog
        self._server_info = server_info

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler:
        """The service's methods for a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ListModels": rpcs.unary("ListModels", pb.ListModelsRequest, self.list_models),
                "GetModel": rpcs.unary("GetModel", pb.GetModelRequest, self.get_model),
                "LoadModel": rpcs.unary("LoadModel", pb.LoadModelRequest, self.load_model),
                "UnloadModel": rpcs.unary("UnloadModel", pb.UnloadModelRequest, self.unload_model),
                "GetServerInfo": rpcs.unary(
                    "GetServerInfo", pb.GetServerInfoRequest, self.get_server_info
                ),
            },
        )

    async def list_models(self, _: pb.ListModelsRequest, __: Call) -> pb.ListModelsResponse:
        """Every model of the repository."""
        return pb.ListModelsResponse(
            models=[_write_model(model) for model in await self._catalog.all()]
        )

    async def get_model(self, message: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        """One model."""
        call.model = message.model
        return pb.GetModelResponse(model=await self._describe(message.model))

    async def load_model(self, message: pb.LoadModelRequest, call: Call) -> pb.LoadModelResponse:
        """Bring a model into memory."""
        call.model = message.model
        device = valid_device(message.device, "device") if message.device else ""
        pin = message.pin if message.HasField("pin") else None
        async with _within_deadline(call, "the model was still loading"):
            await self._catalog.load(message.model, device=device, pin=pin)
        return pb.LoadModelResponse(model=await self._describe(message.model))

    async def unload_model(
        self, message: pb.UnloadModelRequest, call: Call
    ) -> pb.UnloadModelResponse:
        """Take a model out of memory."""
        call.model = message.model
        force_after_s = None
        if message.HasField("force_after"):
            force_after_s = _read_duration(message.force_after, "force_after")
        async with _within_deadline(call, "requests still used the model"):
            await self._catalog.unload(message.model, force_after_s=force_after_s)
        try:
            return pb.UnloadModelResponse(model=await self._describe(message.model))
        except ModelNotFound:
            # Its files were removed while it was in memory; now it is nowhere.
            name = message.model.partition("@")[0]
            return pb.UnloadModelResponse(model=pb.ModelInfo(name=name))

    async def get_server_info(
        self, _: pb.GetServerInfoRequest, __: Call
    ) -> pb.GetServerInfoResponse:
        """Version, limits, devices and memory."""
        return self._server_info()

    async def _describe(self, name: str) -> pb.ModelInfo:
        return _write_model(await self._catalog.get(name))


def _read_duration(duration: duration_pb2.Duration, field: str) -> float:
    seconds, nanos = duration.seconds, duration.nanos
    if not (0 <= seconds <= _DURATION_MAX_S and 0 <= nanos < 1_000_000_000):
        raise InvalidInput(field, f"{seconds} s and {nanos} ns are no duration of at least 0")
    return seconds + nanos / 1e9


def _write_model(model: ModelDescription) -> pb.ModelInfo:
    info = pb.ModelInfo(
        name=model.name,
        version=model.version,
        versions=model.versions,
        state=_STATES[model.state],
        state_reason=model.state_reason,
        is_default=model.is_default,
        description=model.model.description,
        license=model.model.license,
        source=model.model.source,
        file_bytes=model.chosen.file_bytes if model.chosen else 0,
    )
    if model.manifest is not None:
        manifest = model.manifest
        info.kind = _KINDS[manifest.kind]
        info.dimensions = manifest.dimensions
        info.matryoshka_dimensions.extend(manifest.matryoshka_dimensions)
        info.max_tokens = manifest.max_tokens
        info.pooling = _POOLINGS[manifest.pooling]
        info.normalized = manifest.normalized
        info.prompts.update(manifest.prompts)
        info.default_prompt_name = manifest.default_prompt_name or ""
        info.precision = model.chosen.precision if model.chosen else manifest.precision
        info.license = manifest.license or info.license
        if model.chosen and model.chosen.cosine:
            info.reference_cosine = model.chosen.cosine.least
        elif manifest.reference is not None:
            info.reference_cosine = manifest.reference.min_cosine
    if model.resident is not None and model.resident.session is not None:
        info.residency.CopyFrom(_write_residency(model.resident, model.resident.session))
    return info


def _write_residency(resident: Resident[LoadedModel], session: LoadedModel) -> pb.Residency:
    load = duration_pb2.Duration()
    load.FromNanoseconds(int(resident.load_s * 1e9))
    return pb.Residency(
        device=resident.device,
        memory_bytes=resident.size_bytes,
        pinned=resident.pinned,
        leases=resident.leases,
        waiting_items=session.batcher.waiting_items,
        loaded_at=_wall_clock(resident.loaded_at_s),
        last_used_at=_wall_clock(resident.last_used_s),
        load_duration=load,
    )


def _wall_clock(monotonic_s: float) -> timestamp_pb2.Timestamp:
    """The time of day at a moment of the monotonic clock."""
    ago_s = time.monotonic() - monotonic_s
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromNanoseconds(time.time_ns() - int(ago_s * 1e9))
    return timestamp


class _within_deadline:  # noqa: N801  (used like asyncio.timeout)
    """Answer with what was still going on when the caller's deadline passes."""

    def __init__(self, call: Call, what: str) -> None:
        self._timeout = asyncio.timeout_at(call.deadline_s)
        self._what = what

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._timeout.__aexit__(*error)  # type: ignore[arg-type]
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed while {self._what}") from None
