"""Calls of ModelControlService, each counted as it ends."""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.message import Message

from loadtests.soak.documented import MANAGING
from loadtests.soak.faces import TIMEOUT_S, refused
from loadtests.soak.ledger import Ledger
from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import model_control_pb2_grpc


class Control:
    """Manages a server, as an operator does."""

    def __init__(self, channel: grpc.aio.Channel, ledger: Ledger) -> None:
        """Call over `channel` and count in `ledger`."""
        self.stub: Any = model_control_pb2_grpc.ModelControlServiceStub(channel)
        self._ledger = ledger

    async def call(self, method: str, request: Message) -> Any:
        """The answer; None when it was refused, which is a problem unless it is documented."""
        try:
            answer = await getattr(self.stub, method)(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            found = refused(error)
            self._ledger.rpcs[method, found.failure.code] += 1
            if found.failure not in MANAGING.get(method, ()):
                self._ledger.problems[f"{method}: {found}"] += 1
            return None
        self._ledger.rpcs[method, "OK"] += 1
        return answer

    async def info(self) -> pb.GetServerInfoResponse:
        """What the server is and does now."""
        answer = await self.call("GetServerInfo", pb.GetServerInfoRequest())
        assert isinstance(answer, pb.GetServerInfoResponse), "GetServerInfo was refused"
        return answer
