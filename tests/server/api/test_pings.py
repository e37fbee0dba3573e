"""Keep-alive pings of clients."""

from __future__ import annotations

import asyncio
import struct

import pytest

from shoal_server.api import server as api_server
from shoal_server.api.health import HealthServicer
from shoal_server.settings import Settings

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1


def frame(kind: int, flags: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags, 0, 0, 0, 0]) + payload


async def answered(reader: asyncio.StreamReader) -> int:
    """The kind of the next frame that is a ping's answer or the end of the connection."""
    while True:
        head = await reader.readexactly(9)
        await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == GOAWAY or (head[3] == PING and head[4] & ACK):
            return head[3]


async def no_model(_: str) -> None:
    """There are none."""


async def test_a_client_may_ping_between_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its own pace; gRPC closes such connections unless it is told otherwise."""
    monkeypatch.setattr(api_server, "_CLIENT_PING_MS", 0)
    settings = Settings(grpc_port=0)
    server = api_server.make_grpc_server(settings, [], HealthServicer(asyncio.Event(), no_model))
    port = api_server.listen(server, settings)
    await server.start()
    try:
        reader, writer = await asyncio.open_connection(settings.grpc_host, port)
        writer.write(PREFACE + frame(SETTINGS))
        for number in range(8):
            writer.write(frame(PING, payload=struct.pack(">Q", number)))
            assert await answered(reader) == PING
        writer.close()
    finally:
        await server.stop(None)
