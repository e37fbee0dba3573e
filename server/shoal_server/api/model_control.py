"""ModelControlService: between its messages and the catalog."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from google.protobuf import duration_pb2

from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import settings_pb2, statistics_pb2
from shoal_server.api.accuracy import write_accuracy
from shoal_server.api.capabilities import write_capabilities
from shoal_server.api.deadline import within_deadline
from shoal_server.api.labels import write_deprecation
from shoal_server.api.listing import read_query
from shoal_server.api.reasons import UNLOAD_REASONS
from shoal_server.api.residency import wall_clock, write_residency
from shoal_server.api.rpc import Call, Rpcs
from shoal_server.api.settings import update_settings
from shoal_server.api.statistics import StatisticsReader
from shoal_server.api.watch_events import EventStreams
from shoal_server.catalog import Catalog, ModelDescription
from shoal_server.core import ModelKind, Pooling, valid_device
from shoal_server.errors import InvalidInput, ModelNotFound
from shoal_server.kept_settings import KeptSettings
from shoal_server.lifecycle import ModelState
from shoal_server.listing import select
from shoal_server.registry.scopes import Scope

SERVICE = "shoal.v1.ModelControlService"

# Of google.protobuf.Duration, by its definition: about 10,000 years.
_DURATION_MAX_S = 315_576_000_000
# Two milliseconds or so on the event loop.
_DESCRIBED_AT_ONCE = 100

_STATES = {each: pb.ModelState.Value(f"MODEL_STATE_{each.name}") for each in ModelState}
_KINDS = {ModelKind.TEXT_EMBEDDING: pb.MODEL_KIND_TEXT_EMBEDDING}
_POOLINGS = {
    Pooling.MEAN: pb.POOLING_MEAN,
    Pooling.CLS: pb.POOLING_CLS,
    Pooling.LAST_TOKEN: pb.POOLING_LAST_TOKEN,
}


class ModelControlServicer:
    """Answers `shoal.v1.ModelControlService`."""

    def __init__(
        self,
        catalog: Catalog,
        events: EventStreams,
        server_info: Callable[[], pb.GetServerInfoResponse],
        statistics: StatisticsReader,
        settings: KeptSettings,
    ) -> None:
        """Wire it.

        Args:
            catalog: Describes, loads and unloads.
            events: Tells what happens.
            server_info: What the composition root knows of the server, now.
            statistics: Of models and callers.
            settings: Of the server.
        """
        self._catalog = catalog
        self._events = events
        self._server_info = server_info
        self._statistics = statistics
        self._settings = settings

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler:
        """The service's methods for a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ListModels": rpcs.unary("ListModels", pb.ListModelsRequest, self.list_models),
                "GetModel": rpcs.unary("GetModel", pb.GetModelRequest, self.get_model),
                "LoadModel": rpcs.unary("LoadModel", pb.LoadModelRequest, self.load_model),
                "UnloadModel": rpcs.unary("UnloadModel", pb.UnloadModelRequest, self.unload_model),
                "PinModel": rpcs.unary("PinModel", pb.PinModelRequest, self.pin_model),
                "WatchEvents": self._events.handler(rpcs),
                "GetStatistics": rpcs.unary(
                    "GetStatistics", statistics_pb2.GetStatisticsRequest, self.get_statistics
                ),
                "UpdateSettings": rpcs.unary(
                    "UpdateSettings", settings_pb2.UpdateSettingsRequest, self.update_settings
                ),
                "GetServerInfo": rpcs.unary(
                    "GetServerInfo", pb.GetServerInfoRequest, self.get_server_info
                ),
            },
        )

    async def list_models(self, message: pb.ListModelsRequest, _: Call) -> pb.ListModelsResponse:
        """The models of the repository that are asked for."""
        query = read_query(message)
        page = select(await self._catalog.listed(query.scope), query)
        models: list[pb.ModelInfo] = []
        # In parts, between which requests have their turn.
        for first in range(0, len(page.models), _DESCRIBED_AT_ONCE):
            part = page.models[first : first + _DESCRIBED_AT_ONCE]
            models += map(write_model, await self._catalog.describe(part))
        if query.scope is Scope.DEREGISTERED:
            for info in models:
                info.state = pb.MODEL_STATE_UNSPECIFIED
                why = dict.fromkeys(("deregistered", info.state_reason))
                info.state_reason = "; ".join(filter(None, why))
        return pb.ListModelsResponse(
            models=models,
            next_page_token=page.next_token,
            total=page.total,
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
        async with within_deadline(call, "the model was still loading"):
            await self._catalog.load(message.model, device=device, pin=pin)
        return pb.LoadModelResponse(model=await self._describe(message.model))

    async def unload_model(
        self, message: pb.UnloadModelRequest, call: Call
    ) -> pb.UnloadModelResponse:
        """Take a model out of memory."""
        call.model = message.model
        force_after_s = None
        if message.HasField("force_after"):
            force_after_s = read_duration(message.force_after, "force_after")
        async with within_deadline(call, "requests still used the model"):
            await self._catalog.unload(message.model, force_after_s=force_after_s)
        try:
            return pb.UnloadModelResponse(model=await self._describe(message.model))
        except ModelNotFound:
            # Its files were removed while it was in memory; now it is nowhere.
            name = message.model.partition("@")[0]
            return pb.UnloadModelResponse(model=pb.ModelInfo(name=name))

    async def pin_model(self, message: pb.PinModelRequest, call: Call) -> pb.PinModelResponse:
        """Keep a model that is in memory there, or let it go again."""
        call.model = message.model
        await self._catalog.pin(message.model, message.pin if message.HasField("pin") else True)
        return pb.PinModelResponse(model=await self._describe(message.model))

    async def get_statistics(
        self, message: statistics_pb2.GetStatisticsRequest, call: Call
    ) -> statistics_pb2.GetStatisticsResponse:
        """What models and callers did."""
        call.model = message.model
        return await self._statistics.read(message.model)

    async def update_settings(
        self, message: settings_pb2.UpdateSettingsRequest, _: Call
    ) -> settings_pb2.UpdateSettingsResponse:
        """Change settings, and tell all of them."""
        return await update_settings(message, self._settings)

    async def get_server_info(
        self, _: pb.GetServerInfoRequest, __: Call
    ) -> pb.GetServerInfoResponse:
        """Version, limits, devices and memory."""
        return self._server_info()

    async def _describe(self, name: str) -> pb.ModelInfo:
        return write_model(await self._catalog.get(name))


def read_duration(duration: duration_pb2.Duration, field: str) -> float:
    """Seconds of a duration that a caller sent.

    Raises:
        InvalidInput: It is none.
    """
    seconds, nanos = duration.seconds, duration.nanos
    if not (0 <= seconds <= _DURATION_MAX_S and 0 <= nanos < 1_000_000_000):
        raise InvalidInput(field, f"{seconds} s and {nanos} ns are no duration of at least 0")
    return seconds + nanos / 1e9


def write_model(model: ModelDescription) -> pb.ModelInfo:
    """A model as it travels."""
    info = pb.ModelInfo(
        name=model.name,
        version=model.version,
        versions=model.versions,
        state=_STATES[model.state],
        state_reason=model.state_reason,
        is_default=model.is_default,
        meant_by_name=model.is_meant,
        description=model.model.description,
        license=model.model.license,
        source=model.model.source,
        file_bytes=model.chosen.file_bytes if model.chosen else 0,
        served_as=model.served_as,
        pinned_version=model.pinned_version,
        tags=model.tags,
    )
    if model.deprecation is not None:
        info.deprecation.CopyFrom(write_deprecation(model.deprecation))
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
    write_capabilities(info, model)
    if model.accuracy is not None:
        info.accuracy.CopyFrom(write_accuracy(model.accuracy))
    if model.resident is not None and model.resident.session is not None:
        info.residency.CopyFrom(write_residency(model.resident, model.idle_left_s))
    if model.departure is not None:
        info.last_unload_reason = UNLOAD_REASONS[model.departure.why.reason]
        info.last_unloaded_at.CopyFrom(wall_clock(model.departure.at_s))
    return info
