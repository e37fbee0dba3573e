"""The load generator's HTTP/1.1 client, against a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from loadtests.http1 import Http1Wire
from loadtests.http2 import OK, UNAVAILABLE

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


async def _asked(answer: Answer, bodies: list[bytes]) -> list[tuple[int, bytes]]:
    """What a wire of one connection gets for each body, one after the other."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in bodies:
            head = await reader.readuntil(b"\r\n\r\n")
            size_bytes = int(head.lower().partition(b"content-length:")[2].split()[0])
            await answer(await reader.readexactly(size_bytes), writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    got = []
    async with server:
        wire = await Http1Wire.open(f"127.0.0.1:{port}", "/inference", 1)
        for body in bodies:
            answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
            wire.ask(body, lambda *answer, to=answered: to.set_result(answer))
            got.append(await asyncio.wait_for(answered, 10))
        wire.close()
    return got


def test_each_request_gets_the_body_of_its_answer() -> None:
    """Bodies go out whole and come back whole, one after the other on one connection."""

    async def echo(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    bodies = [b"one", b"x" * 100_000, b"three"]
    assert asyncio.run(_asked(echo, bodies)) == [(OK, body) for body in bodies]


def test_an_answer_may_come_in_pieces() -> None:
    """Where a packet ends, head and body may be cut."""

    async def drip(body: bytes, writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body):
            writer.write(bytes([byte]))
            await writer.drain()

    assert asyncio.run(_asked(drip, [b"abc"])) == [(OK, b"abc")]


def test_other_answers_are_failures() -> None:
    """Only 200 counts as answered."""

    async def refuse(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")

    assert asyncio.run(_asked(refuse, [b"abc"])) == [(UNAVAILABLE, b"")]


def test_a_broken_connection_is_a_failure() -> None:
    """Whoever waits is told, and not left to wait."""

    async def leave(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.close()

    assert asyncio.run(_asked(leave, [b"abc"])) == [(UNAVAILABLE, b"")]
