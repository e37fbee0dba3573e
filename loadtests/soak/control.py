"""Calls of ModelControlService, each counted as it ends."""

from __future__ import annotations

import time
from typing import Any

import grpc.aio
from google.protobuf.message import Message

from loadtests.soak.documented import is_documented_of
from loadtests.soak.faces import TIMEOUT_S, refused
from loadtests.soak.scene import Scene
from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import model_control_pb2_grpc


class Control:
    """Manages a server, as an operator does."""

    def __init__(self, channel: grpc.aio.Channel, scene: Scene) -> None:
        """Call over `channel`, count in the scene's ledger, judge by its timeline."""
        self.stub: Any = model_control_pb2_grpc.ModelControlServiceStub(channel)
        self._scene = scene

    async def call(self, method: str, request: Message) -> Any:
        """The answer; None when it was refused, which is a problem unless it is documented."""
        asked_s = time.monotonic()
        try:
            answer = await getattr(self.stub, method)(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._refused(method, error, asked_s)
            return None
        self._scene.ledger.rpcs[method, "OK"] += 1
        return answer

    async def stream(
        self, method: str, request: Message, *, most: int | None = None
    ) -> list[Any] | None:
        """The same of a call with a stream of answers, left after `most` of them."""
        asked_s, answers = time.monotonic(), []
        call = getattr(self.stub, method)(request, timeout=TIMEOUT_S)
        try:
            async for answer in call:
                answers.append(answer)
                if len(answers) == most:
                    call.cancel()
                    self._scene.ledger.rpcs[method, "CANCELLED"] += 1
                    return answers
        except grpc.aio.AioRpcError as error:
            self._refused(method, error, asked_s)
            return None
        self._scene.ledger.rpcs[method, "OK"] += 1
        return answers

    async def info(self) -> pb.GetServerInfoResponse:
        """What the server is and does now."""
        answer = await self.call("GetServerInfo", pb.GetServerInfoRequest())
        assert isinstance(answer, pb.GetServerInfoResponse), "GetServerInfo was refused"
        return answer

    def _refused(self, method: str, error: grpc.aio.AioRpcError, asked_s: float) -> None:
        found, scene = refused(error), self._scene
        scene.ledger.rpcs[method, found.failure.code] += 1
        now_s = time.monotonic()
        if not is_documented_of(method, found.failure, scene.timeline, asked_s, now_s):
            scene.ledger.problems[f"{method}: {found}"] += 1
