"""A gRPC client that costs little: just enough HTTP/2 for a load generator.

The generator shares the server's cores, and what it burns the server lacks. grpc.aio,
grpc's threads and its futures all take about 250 µs of CPU a call (docs/performance.md
has the figures); this takes about 75. It is no general client: no TLS, no compression,
no retries, and of the answer's headers it reads grpc-status only.

Frames: RFC 9113. Header blocks: RFC 7541; a header table of size 0 is announced, so
that every header comes as a literal and none needs to be remembered.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import cast

OK = 0
CANCELLED = 1
UNKNOWN = 2
RESOURCE_EXHAUSTED = 8
UNAVAILABLE = 14

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    *(0, 1, 3, 4, 6, 7, 8, 9),
)
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8
_ACK = 0x1
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 1, 4, 5
_WINDOW = 2**31 - 1
_FIRST_WINDOW = 65_535
_REOPEN_WINDOW = 2**30
_STATUS = re.compile(rb"grpc-status(?:\x01|\x02)([0-9]{1,2})")

OnMessage = Callable[[bytes], None]
OnEnd = Callable[[int], None]


class Stream:
    """One RPC. Callbacks run on the loop: a message's bytes, then the status once."""

    __slots__ = (
        *("_connection", "_ending", "_incoming", "number", "on_end", "on_message"),
        *("outgoing", "status", "window"),
    )

    def __init__(
        self,
        connection: Connection,
        number: int,
        window: int,
        on_message: OnMessage,
        on_end: OnEnd,
    ) -> None:
        self._connection = connection
        self._incoming = bytearray()
        self._ending = False
        self.number = number
        self.window = window
        self.outgoing = bytearray()
        self.on_message = on_message
        self.on_end = on_end
        self.status = UNKNOWN

    def send(self, message: bytes, *, end: bool = False) -> None:
        """Send one message, as far as the server's flow control lets it go now."""
        self.outgoing += b"\0" + len(message).to_bytes(4, "big") + message
        self._ending = end
        self._connection.flush(self)

    def end(self) -> None:
        """Say that no more messages come."""
        self._ending = True
        self._connection.flush(self)

    def cancel(self) -> None:
        """Give up the RPC; `on_end` is not called."""
        self._connection.cancel(self)

    def take(self, chunk: memoryview) -> None:
        """Data arrived: hand on the messages that are whole."""
        incoming = self._incoming
        incoming += chunk
        while len(incoming) >= 5:
            end = 5 + int.from_bytes(incoming[1:5], "big")
            if len(incoming) < end:
                return
            message = bytes(incoming[5:end])
            del incoming[:end]
            self.on_message(message)

    def frames(self, room: int, max_frame: int) -> list[bytes]:
        """Frames of what may be sent now; takes it out of `outgoing` and the window."""
        frames = []
        while self.outgoing or self._ending:
            size = min(len(self.outgoing), room, self.window, max_frame)
            if not size and self.outgoing:
                break
            last = self._ending and size == len(self.outgoing)
            frames.append(_frame(_DATA, _END_STREAM if last else 0, self.number))
            frames[-1] = size.to_bytes(3, "big") + frames[-1][3:] + bytes(self.outgoing[:size])
            del self.outgoing[:size]
            self.window -= size
            room -= size
            if last:
                self._ending = False
        return frames


class Connection(asyncio.Protocol):
    """One HTTP/2 connection with any number of RPCs. Belongs to the event loop."""

    def __init__(self, authority: str) -> None:
        self._authority = authority.encode()
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._streams: dict[int, Stream] = {}
        self._blocked: dict[int, Stream] = {}
        self._next_number = 1
        self._send_window = _FIRST_WINDOW
        self._stream_window = _FIRST_WINDOW
        self._max_frame = 16_384
        self._received = 0
        self._headers: dict[str, bytes] = {}

    @classmethod
    async def open(cls, address: str) -> Connection:
        """Connect to `HOST:PORT`."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(address), host, int(port))
        return connection

    def start(self, path: str, on_message: OnMessage, on_end: OnEnd, timeout_ms: int = 0) -> Stream:
        """Begin an RPC.

        Args:
            path: `/package.Service/Method`.
            on_message: Called with each message.
            on_end: Called with the status, once.
            timeout_ms: The deadline that the server is told; 0: none.
        """
        stream = Stream(self, self._next_number, self._stream_window, on_message, on_end)
        self._next_number += 2
        self._streams[stream.number] = stream
        block = self._header_block(path)
        if timeout_ms:
            block += _literal(b"grpc-timeout", b"%dm" % timeout_ms)
        self._transport.write(_frame(_HEADERS, _END_HEADERS, stream.number, block))
        return stream

    def flush(self, stream: Stream) -> None:
        """Send what flow control allows of what waits on `stream`."""
        frames = stream.frames(self._send_window, self._max_frame)
        self._send_window -= sum(len(each) - 9 for each in frames)
        if frames:
            self._transport.write(b"".join(frames))
        if stream.outgoing:
            self._blocked[stream.number] = stream

    def cancel(self, stream: Stream) -> None:
        """Reset the RPC."""
        if self._streams.pop(stream.number, None) is not None:
            self._blocked.pop(stream.number, None)
            self._transport.write(_frame(_RST_STREAM, 0, stream.number, b"\0\0\0\x08"))

    def close(self) -> None:
        """Close the connection; RPCs in flight end with UNAVAILABLE."""
        self._transport.close()

    # -- called by the event loop ----------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send preface and settings."""
        self._transport = cast(asyncio.Transport, transport)
        settings = b"".join(
            key.to_bytes(2, "big") + value.to_bytes(4, "big")
            for key, value in (
                (_HEADER_TABLE_SIZE, 0),
                (_INITIAL_WINDOW_SIZE, _WINDOW),
                (_MAX_FRAME_SIZE, 2**20),
            )
        )
        self._transport.write(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW_UPDATE, 0, 0, (_WINDOW - _FIRST_WINDOW).to_bytes(4, "big"))
        )

    def data_received(self, data: bytes) -> None:
        """Take the frames that are whole."""
        buffer = self._buffer
        buffer += data
        at, size = 0, len(buffer)
        view = memoryview(bytes(buffer))
        while size - at >= 9:
            end = at + 9 + (view[at] << 16 | view[at + 1] << 8 | view[at + 2])
            if end > size:
                break
            number = int.from_bytes(view[at + 5 : at + 9], "big") & 0x7FFFFFFF
            self._take(view[at + 3], view[at + 4], number, view[at + 9 : end])
            at = end
        del buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        """End every RPC."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.on_end(UNAVAILABLE)

    # -- frames ----------------------------------------------------------------

    def _take(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        if kind == _DATA:
            self._take_data(flags, number, payload)
        elif kind in (_HEADERS, _CONTINUATION):
            self._take_headers(flags, number, payload)
        elif kind == _SETTINGS and not flags & _ACK:
            self._take_settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, bytes(payload)))
        elif kind == _WINDOW_UPDATE:
            self._take_window(number, int.from_bytes(payload, "big"))
        elif kind == _RST_STREAM:
            self._end(number, CANCELLED)

    def _take_data(self, flags: int, number: int, payload: memoryview) -> None:
        self._received += len(payload)
        if self._received >= _REOPEN_WINDOW:
            self._transport.write(_frame(_WINDOW_UPDATE, 0, 0, self._received.to_bytes(4, "big")))
            self._received = 0
        stream = self._streams.get(number)
        if stream is None:
            return
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        stream.take(payload)
        if flags & _END_STREAM:
            self._end(number, stream.status)

    def _take_headers(self, flags: int, number: int, payload: memoryview) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        match = _STATUS.search(payload)
        if match is not None:
            stream.status = int(match[1])
        if flags & _END_STREAM:
            self._end(number, stream.status)

    def _take_settings(self, payload: memoryview) -> None:
        for at in range(0, len(payload), 6):
            key = int.from_bytes(payload[at : at + 2], "big")
            value = int.from_bytes(payload[at + 2 : at + 6], "big")
            if key == _INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.window += value - self._stream_window
                self._stream_window = value
            elif key == _MAX_FRAME_SIZE:
                self._max_frame = value
        self._transport.write(_frame(_SETTINGS, _ACK, 0))
        self._flush_blocked()

    def _take_window(self, number: int, increment: int) -> None:
        if number == 0:
            self._send_window += increment
        elif number in self._streams:
            self._streams[number].window += increment
        self._flush_blocked()

    def _flush_blocked(self) -> None:
        blocked, self._blocked = self._blocked, {}
        for stream in blocked.values():
            self.flush(stream)

    def _end(self, number: int, status: int) -> None:
        stream = self._streams.pop(number, None)
        self._blocked.pop(number, None)
        if stream is not None:
            stream.on_end(status)

    def _header_block(self, path: str) -> bytes:
        block = self._headers.get(path)
        if block is None:
            # Indices of RFC 7541, appendix A: POST, http, then literals.
            block = self._headers[path] = (
                b"\x83\x86"
                + _named(b"\x04", path.encode())
                + _named(b"\x01", self._authority)
                + _named(b"\x0f\x10", b"application/grpc")
                + _named(b"\x0f\x2b", b"shoal-loadtest")
                + _literal(b"te", b"trailers")
            )
        return block


def _frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big")
    return head + payload


def _named(index: bytes, value: bytes) -> bytes:
    return index + bytes((len(value),)) + value


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
