"""The calls of ModelControlService about tags and deprecations."""

from __future__ import annotations

import grpc
from google.protobuf import timestamp_pb2

from shoal.v1 import model_control_pb2
from shoal.v1 import versions_pb2 as pb
from shoal_server.api.rpc import Call, Rpcs
from shoal_server.errors import InvalidInput
from shoal_server.labelling import Labeller
from shoal_server.registry.labels import Deprecation

SERVICE = model_control_pb2.DESCRIPTOR.services_by_name["ModelControlService"].full_name

# Of google.protobuf.Timestamp, by its definition: the years 1 to 9999.
_MIN_S, _MAX_S = -62_135_596_800, 253_402_300_799


class LabelsServicer:
    """Answers the calls of `shoal.v1.ModelControlService` that say something of a model."""

    def __init__(self, labeller: Labeller) -> None:
        """Wire it."""
        self._labeller = labeller

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler:
        """These methods for a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "UpdateTags": rpcs.unary("UpdateTags", pb.UpdateTagsRequest, self.update_tags),
                "DeprecateModel": rpcs.unary(
                    "DeprecateModel", pb.DeprecateModelRequest, self.deprecate
                ),
            },
        )

    async def update_tags(self, message: pb.UpdateTagsRequest, call: Call) -> pb.UpdateTagsResponse:
        """Give a model tags, and take others away."""
        call.model = message.model
        labels = await self._labeller.tag(message.model, message.add, message.remove)
        return pb.UpdateTagsResponse(tags=labels.tags)

    async def deprecate(
        self, message: pb.DeprecateModelRequest, call: Call
    ) -> pb.DeprecateModelResponse:
        """Say that a model is deprecated, or that it is not."""
        call.model = message.model
        if not message.HasField("deprecation"):
            await self._labeller.undeprecate(message.model)
            return pb.DeprecateModelResponse()
        wanted = message.deprecation
        refuse_after_s = None
        if wanted.HasField("refuse_after"):
            refuse_after_s = _read_time(wanted.refuse_after, "deprecation.refuse_after")
        labels = await self._labeller.deprecate(
            message.model,
            message=wanted.message,
            replacement=wanted.replacement,
            refuse_after_s=refuse_after_s,
        )
        answer = pb.DeprecateModelResponse()
        if labels.deprecation is not None:
            answer.deprecation.CopyFrom(write_deprecation(labels.deprecation))
        return answer


def write_deprecation(deprecation: Deprecation) -> pb.Deprecation:
    """A deprecation as it travels."""
    message = pb.Deprecation(message=deprecation.message, replacement=deprecation.replacement)
    message.since.FromMicroseconds(round(deprecation.since_s * 1e6))
    if deprecation.refuse_after_s is not None:
        message.refuse_after.FromMicroseconds(round(deprecation.refuse_after_s * 1e6))
    return message


def _read_time(timestamp: timestamp_pb2.Timestamp, field: str) -> float:
    seconds, nanos = timestamp.seconds, timestamp.nanos
    if not (_MIN_S <= seconds <= _MAX_S and 0 <= nanos < 1_000_000_000):
        raise InvalidInput(field, f"{seconds} s and {nanos} ns are no point in time")
    # A float can not tell the last moments of the year 9999 from the next year.
    return min(seconds + nanos / 1e9, float(_MAX_S))
