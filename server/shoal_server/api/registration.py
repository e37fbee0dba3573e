"""The calls of ModelControlService that let the server know models, or know them no longer."""

from __future__ import annotations

import grpc

from shoal.v1 import model_control_pb2 as pb
from shoal_server.api.deadline import within_deadline
from shoal_server.api.model_control import SERVICE, read_duration, write_model
from shoal_server.api.rpc import Call, Rpcs
from shoal_server.catalog import Catalog
from shoal_server.registering import Registrar

_STILL_USED = "requests still used the model; it is deregistered, and unloaded after the last one"


class RegistrationServicer:
    """Answers the calls of `shoal.v1.ModelControlService` about what there is."""

    def __init__(self, registrar: Registrar, catalog: Catalog) -> None:
        """Wire it.

        Args:
            registrar: Registers and deregisters.
            catalog: Describes models.
        """
        self._registrar = registrar
        self._catalog = catalog

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler:
        """These methods for a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "RegisterModel": rpcs.unary(
                    "RegisterModel", pb.RegisterModelRequest, self.register
                ),
                "DeregisterModel": rpcs.unary(
                    "DeregisterModel", pb.DeregisterModelRequest, self.deregister
                ),
            },
        )

    async def register(
        self, message: pb.RegisterModelRequest, call: Call
    ) -> pb.RegisterModelResponse:
        """Know one folder of the repository as it is now."""
        call.model = message.model
        done = await self._registrar.register(message.model)
        return pb.RegisterModelResponse(
            model=write_model(await self._catalog.get(message.model)),
            added=done.added,
            changed=done.changed,
            outdated=done.outdated,
        )

    async def deregister(
        self, message: pb.DeregisterModelRequest, call: Call
    ) -> pb.DeregisterModelResponse:
        """Neither serve nor list a model any longer."""
        call.model = message.model
        force_after_s = None
        if message.HasField("force_after"):
            force_after_s = read_duration(message.force_after, "force_after")
        async with within_deadline(call, _STILL_USED):
            await self._registrar.deregister(message.model, force_after_s=force_after_s)
        return pb.DeregisterModelResponse()
