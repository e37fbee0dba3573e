"""The generator's own gRPC client against a real gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from loadtests.http2 import OK, UNAVAILABLE, Connection, Stream

ECHO, FAIL, NEVER, STREAM = (f"/test.Test/{name}" for name in ("Echo", "Fail", "Never", "Stream"))


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async def echo(request: bytes, _: object) -> bytes:
        return request

    async def fail(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        raise AssertionError

    async def never(_: bytes, __: object) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    async def stream(requests: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Never": grpc.unary_unary_rpc_method_handler(never),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


class Call:
    """One RPC whose answers are collected."""

    def __init__(self, connection: Connection, path: str, timeout_ms: int = 0) -> None:
        self.messages: list[bytes] = []
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.stream: Stream = connection.start(
            path, self.messages.append, self._ended.set_result, timeout_ms
        )

    async def status(self) -> int:
        return await asyncio.wait_for(self._ended, 20)


async def ask(connection: Connection, path: str, message: bytes, timeout_ms: int = 0) -> Call:
    call = Call(connection, path, timeout_ms)
    call.stream.send(message, end=True)
    return call


@pytest.mark.parametrize("size_bytes", [0, 1, 16_384, 5_000_000])
async def test_a_message_comes_back_whole(address: str, size_bytes: int) -> None:
    """Also one that flow control lets go only piece by piece."""
    connection = await Connection.open(address)
    message = bytes(range(256)) * (size_bytes // 256) + b"x" * (size_bytes % 256)
    call = await ask(connection, ECHO, message)
    assert await call.status() == OK
    assert call.messages == [message]
    connection.close()


async def test_many_calls_at_once_keep_their_answers(address: str) -> None:
    """Calls share the connection and its window, not their messages."""
    connection = await Connection.open(address)
    messages = [b"%d " % number * 5000 for number in range(100)]
    calls = [await ask(connection, ECHO, message) for message in messages]
    assert [await call.status() for call in calls] == [OK] * len(calls)
    assert [call.messages for call in calls] == [[message] for message in messages]
    connection.close()


async def test_the_status_is_read(address: str) -> None:
    """Of an aborted call, and of one whose deadline passed."""
    connection = await Connection.open(address)
    refused = await ask(connection, FAIL, b"")
    late = await ask(connection, NEVER, b"", timeout_ms=50)
    assert await refused.status() == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert await late.status() == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    connection.close()


async def test_a_stream_goes_both_ways(address: str) -> None:
    """Messages are answered while the stream is open, and it ends well."""
    connection = await Connection.open(address)
    call = Call(connection, STREAM)
    for number in range(50):
        call.stream.send(b"%d" % number)
    call.stream.end()
    assert await call.status() == OK
    assert call.messages == [b"%d" % number for number in range(50)]
    connection.close()


async def test_a_cancelled_call_leaves_the_others(address: str) -> None:
    """The connection goes on."""
    connection = await Connection.open(address)
    cancelled = await ask(connection, NEVER, b"")
    cancelled.stream.cancel()
    call = await ask(connection, ECHO, b"after")
    assert await call.status() == OK
    connection.close()


async def test_a_lost_connection_ends_every_call(address: str) -> None:
    """Nobody waits for ever."""
    connection = await Connection.open(address)
    call = await ask(connection, NEVER, b"")
    connection.close()
    assert await call.status() == UNAVAILABLE
