"""The ways to ask a server for vectors, each call counted as it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from loadtests.soak.documented import Failure
from loadtests.soak.ledger import Ledger
from shoal.v1 import embed_pb2 as pb
from shoal.v1 import embed_pb2_grpc

TIMEOUT_S = 60.0
"""Of a call; none should take so long."""


class RefusedError(Exception):
    """A request that was not answered."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(f"{failure}: {message}")
        self.failure = failure


class Face(Protocol):
    """A way to ask for vectors."""

    async def ask(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """The answer.

        Raises:
            RefusedError: There is none.
        """
        ...


class UnaryFace:
    """A call for each request."""

    def __init__(self, stub: embed_pb2_grpc.EmbedServiceAsyncStub, ledger: Ledger) -> None:
        self._stub = stub
        self._ledger = ledger

    async def ask(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """See `Face`."""
        try:
            answer = await self._stub.Embed(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._ledger.rpcs["Embed", error.code().name] += 1
            raise refused(error) from error
        self._ledger.rpcs["Embed", "OK"] += 1
        return answer


class StreamFace:
    """A message on an open stream for each request."""

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[pb.EmbedStreamRequest, pb.EmbedStreamResponse],
        ledger: Ledger,
    ) -> None:
        self._call = call
        self._ledger = ledger

    async def ask(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """See `Face`."""
        await self._call.write(pb.EmbedStreamRequest(request=request))
        answer = await self._call.read()
        assert isinstance(answer, pb.EmbedStreamResponse), "the stream ended"
        if answer.HasField("error"):
            found = refused_by(answer.error)
            self._ledger.stream_requests[found.failure.code] += 1
            raise found
        self._ledger.stream_requests["OK"] += 1
        return answer.response


@asynccontextmanager
async def open_stream(
    stub: embed_pb2_grpc.EmbedServiceAsyncStub, ledger: Ledger
) -> AsyncIterator[StreamFace]:
    """An EmbedStream, ended and counted when it is left."""
    call = stub.EmbedStream()
    yield StreamFace(call, ledger)
    await call.done_writing()
    left = await call.read()
    if left is not grpc.aio.EOF:
        ledger.problems["a stream gave more answers than it had requests"] += 1
    ledger.rpcs["EmbedStream", (await call.code()).name] += 1


def refused(error: grpc.aio.AioRpcError) -> RefusedError:
    """How an RPC failed, with the reason that the API gives."""
    # A call that failed is one, in all that it says.
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    if status is not None:
        return refused_by(status)
    return RefusedError(Failure(error.code().name, ""), error.details() or "")


def refused_by(status: status_pb2.Status) -> RefusedError:
    """The same of a status."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            break
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    return RefusedError(Failure(code.name, info.reason), status.message)
