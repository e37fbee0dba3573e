"""The calls of ModelControlService that keep models as they should be."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from google.protobuf import duration_pb2

from shoal.v1 import model_control_pb2, updates_pb2, verification_pb2
from shoal_server.api.accuracy import write_accuracy
from shoal_server.api.deadline import within_deadline
from shoal_server.api.rpc import Call, Rpcs
from shoal_server.api.versions import write_bad_version
from shoal_server.errors import InvalidInput
from shoal_server.reloading import Reloaded, Reloader
from shoal_server.updating import Updater, UpdateSource
from shoal_server.verifying import Verifier

SERVICE = model_control_pb2.DESCRIPTOR.services_by_name["ModelControlService"].full_name

_SOURCES: dict[int, UpdateSource] = {
    updates_pb2.UPDATE_SOURCE_REPOSITORY: "repository",
    updates_pb2.UPDATE_SOURCE_HUB: "hub",
}


class UpkeepServicer:
    """Answers VerifyModel, ReloadModel and UpdateModel."""

    def __init__(
        self,
        verifier: Verifier,
        reloader: Reloader,
        updater: Updater,
        default_source: Callable[[], UpdateSource],
    ) -> None:
        """Wire it.

        Args:
            verifier: Compares models with what is kept with them.
            reloader: Reads their files again.
            updater: Goes over to newer versions.
            default_source: Where to look for them when the caller does not say.
        """
        self._verifier = verifier
        self._reloader = reloader
        self._updater = updater
        self._default_source = default_source

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler:
        """These methods for a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "VerifyModel": rpcs.unary(
                    "VerifyModel", verification_pb2.VerifyModelRequest, self.verify
                ),
                "ReloadModel": rpcs.unary(
                    "ReloadModel", updates_pb2.ReloadModelRequest, self.reload
                ),
                "UpdateModel": rpcs.unary(
                    "UpdateModel", updates_pb2.UpdateModelRequest, self.update
                ),
            },
        )

    async def verify(
        self, message: verification_pb2.VerifyModelRequest, call: Call
    ) -> verification_pb2.VerifyModelResponse:
        """Compare a model with the vectors that are kept with it."""
        call.model = message.model
        async with within_deadline(call, "the model was still being verified"):
            outcomes = await self._verifier.verify(message.model)
        return verification_pb2.VerifyModelResponse(
            results=[
                verification_pb2.ModelVerified(
                    model=key.name, version=key.version, accuracy=write_accuracy(accuracy)
                )
                for key, accuracy in outcomes
            ]
        )

    async def reload(
        self, message: updates_pb2.ReloadModelRequest, call: Call
    ) -> updates_pb2.ReloadModelResponse:
        """Read a model's files again."""
        call.model = message.model
        async with within_deadline(call, "the files were still being read; that goes on"):
            done = await self._reloader.reload(message.model)
        return updates_pb2.ReloadModelResponse(results=map(_write_reloaded, done))

    async def update(
        self, message: updates_pb2.UpdateModelRequest, call: Call
    ) -> updates_pb2.UpdateModelResponse:
        """Go over to a newer version of a model."""
        call.model = message.model
        source = self._source(message.source)
        async with within_deadline(call, "the newer version was still being made ready"):
            done = await self._updater.update(message.model, source)
        return updates_pb2.UpdateModelResponse(
            updated=done.is_new,
            before=done.before.version,
            after=done.after.version,
            accuracy=write_accuracy(done.accuracy) if done.accuracy else None,
            bad_versions=[write_bad_version(*each) for each in done.passed_over.items()],
        )

    def _source(self, number: int) -> UpdateSource:
        if number == updates_pb2.UPDATE_SOURCE_UNSPECIFIED:
            return self._default_source()
        if number not in _SOURCES:
            raise InvalidInput("source", f"{number} is no UpdateSource that this server knows")
        return _SOURCES[number]


def _write_reloaded(done: Reloaded) -> updates_pb2.ModelReloaded:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(done.seconds * 1e9))
    return updates_pb2.ModelReloaded(
        model=done.key.name, version=done.key.version, device=done.device, duration=duration
    )
