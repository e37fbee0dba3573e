"""An HTTP/1.1 client that costs little, for peers that do not speak gRPC.

A connection a caller, kept open, one request at a time on each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from loadtests.http2 import OK, UNAVAILABLE

OnAnswer = Callable[[int, bytes], None]
"""Takes a gRPC code and the answer's body."""


class Http1Wire:
    """Posts to one path; a `loadtests.load.Wire`."""

    def __init__(self, host: str, path: str, connections: list[_Connection]) -> None:
        self._head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: ".encode()
        self._free = deque(connections)

    @classmethod
    async def open(cls, address: str, path: str, count: int) -> Http1Wire:
        """Connect `count` times to host:port."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        opened = [await loop.create_connection(_Connection, host, int(port)) for _ in range(count)]
        return cls(address, path, [connection for _, connection in opened])

    def ask(self, request: bytes, on_answer: OnAnswer) -> None:
        """Send on a free connection; there are as many as callers."""
        connection = self._free.popleft()

        def ended(status: int, answer: bytes) -> None:
            self._free.append(connection)
            on_answer(status, answer)

        connection.ask(b"%b%d\r\n\r\n%b" % (self._head, len(request), request), ended)

    def close(self) -> None:
        """Close what is free."""
        for connection in self._free:
            connection.close()


class _Connection(asyncio.Protocol):
    """Answers with a Content-Length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._incoming = bytearray()
        self._on_answer: OnAnswer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def ask(self, raw: bytes, on_answer: OnAnswer) -> None:
        self._on_answer = on_answer
        self._transport.write(raw)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._incoming += data
        head_ends = self._incoming.find(b"\r\n\r\n")
        if head_ends < 0:
            return
        head = bytes(self._incoming[:head_ends]).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        begins = head_ends + 4
        if len(self._incoming) < begins + length:
            return
        body = bytes(self._incoming[begins : begins + length])
        self._incoming.clear()
        self._end(OK if head.split(b" ", 2)[1] == b"200" else UNAVAILABLE, body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(UNAVAILABLE, b"")

    def _end(self, status: int, body: bytes) -> None:
        on_answer, self._on_answer = self._on_answer, None
        if on_answer is not None:
            on_answer(status, body)
