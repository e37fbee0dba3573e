"""The load generator: closed and open loops, run in a process of its own.

Closed loop: so many callers, each sends its next request when it has its answer. This
finds what a server can do, and hides queueing: a slow server is asked less often.

Open loop: arrivals are scheduled before the run, at a rate, and are sent whether or not
earlier ones were answered. Times are counted from when a request was *scheduled*, so
that a late generator or a full connection hides nothing (coordinated omission).

Requests are serialised beforehand and answers are not parsed; a few are kept, to be
compared with the bare run's vectors.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import uvloop

from loadtests.cpu import CpuClock, CpuReading, others_share
from loadtests.http1 import Http1Wire, OnAnswer
from loadtests.http2 import OK, UNAVAILABLE, UNKNOWN, Connection, Stream

Float64 = npt.NDArray[np.float64]

# Of one EmbedStream; the server reads no more at once (max_stream_requests).
REQUESTS_PER_STREAM = 32
UNANSWERED = -1
_UNARY = "/shoal.v1.EmbedService/Embed"
_STREAM = "/shoal.v1.EmbedService/EmbedStream"
_DRAIN_S = 60.0
# Field tags of EmbedStreamRequest and EmbedStreamResponse.
_ID, _REQUEST, _RESPONSE = b"\x0a", b"\x12", 0x12


@dataclass(frozen=True, slots=True)
class LoadJob:
    """What to send, and how."""

    address: str
    server_pid: int
    requests: Sequence[bytes]
    """Serialised EmbedRequests, or an HTTP server's bodies, sent in order, again and again."""
    warm_up_s: float
    window_s: float
    callers: int = 0
    """Closed loop with so many; 0: open loop."""
    arrivals_per_s: float = 0.0
    """Requests, Poisson; of an open loop."""
    stream: bool = False
    timeout_ms: int = 0
    """Deadline that the server is told; 0: none."""
    keep_answers: int = 0
    """Keep the last answer to each of the first so many requests."""
    http_path: str = ""
    """Post there, over HTTP/1.1 with a connection a caller; empty: gRPC."""


@dataclass(slots=True)
class LoadRun:
    """What happened. Times on one clock, in seconds."""

    asked_s: Float64
    """When each request was sent or, in an open loop, was to be sent."""
    ended_s: Float64
    """When it was answered, well or not."""
    statuses: npt.NDArray[np.int64]
    """gRPC codes; UNANSWERED."""
    lateness_s: Float64
    """Sent after it was scheduled, of an open loop."""
    window_s: tuple[float, float]
    server_cpu_s: float
    generator_cpu_s: float
    others_share: float
    """Of the machine's CPU time in the window, what processes that are neither took."""
    answers: dict[int, bytes]
    """Serialised EmbedResponses, by place in `requests`."""


def run_load(job: LoadJob) -> LoadRun:
    """Do the job; takes warm-up, window, and until what was asked in it is answered."""
    # Thousands of small objects live on purpose; looking for garbage costs much.
    gc.disable()
    try:
        return uvloop.run(_run(job))
    finally:
        gc.enable()
        gc.collect()


class Wire(Protocol):
    """Where requests go."""

    def ask(self, request: bytes, on_answer: OnAnswer) -> None:
        """Send; `on_answer` gets the status and the answer, once."""

    def close(self) -> None:
        """Close the connections."""


async def _run(job: LoadJob) -> LoadRun:
    wire = await _connect(job)
    recorder = _Recorder(job, wire)
    clock = CpuClock((job.server_pid, os.getpid()))
    arrivals = _Closed(job, recorder) if job.callers else _Open(job, recorder)
    arrivals.start()
    await asyncio.sleep(job.warm_up_s)
    at_start = clock.read()
    await asyncio.sleep(job.window_s)
    at_end = clock.read()
    # Callers go on until what began in the window has ended: without newer requests
    # beside it, it would end sooner than it does under load.
    with contextlib.suppress(TimeoutError):  # what is left counts as unanswered
        await asyncio.wait_for(recorder.all_so_far_ended(), _DRAIN_S)
    arrivals.stop()
    wire.close()
    await asyncio.sleep(0)
    return recorder.result(at_start, at_end)


async def _connect(job: LoadJob) -> Wire:
    if job.http_path:
        return await Http1Wire.open(job.address, job.http_path, job.callers)
    connection = await Connection.open(job.address)
    return _StreamWire(connection) if job.stream else _UnaryWire(connection, job.timeout_ms)


class _Recorder:
    """Sends the job's requests in turn and writes down what becomes of each."""

    def __init__(self, job: LoadJob, wire: Wire) -> None:
        self._requests = job.requests
        self._keep = job.keep_answers
        self._wire = wire
        self._asked_s: list[float] = []
        self._ended_s: list[float] = []
        self._statuses: list[int] = []
        self._lateness_s: list[float] = []
        self._answers: dict[int, bytes] = {}
        self._in_flight: set[int] = set()
        self._awaited: set[int] = set()
        self._all_ended = asyncio.Event()

    def ask(self, asked_s: float, on_end: Callable[[], None] | None) -> None:
        """Send the next request, which counts as asked at `asked_s`."""
        number = len(self._asked_s)
        place = number % len(self._requests)
        self._asked_s.append(asked_s)
        self._ended_s.append(math.nan)
        self._statuses.append(UNANSWERED)
        self._in_flight.add(number)

        def on_answer(status: int, answer: bytes) -> None:
            self._ended_s[number] = time.perf_counter()
            self._statuses[number] = status
            if place < self._keep and status == OK:
                self._answers[place] = answer
            self._in_flight.discard(number)
            if self._awaited:
                self._awaited.discard(number)
                if not self._awaited:
                    self._all_ended.set()
            if on_end is not None:
                on_end()

        self._wire.ask(self._requests[place], on_answer)

    def note_lateness(self, seconds: float) -> None:
        self._lateness_s.append(seconds)

    async def all_so_far_ended(self) -> None:
        """Return when what was asked until now has ended, whatever was asked since."""
        self._awaited = set(self._in_flight)
        if self._awaited:
            await self._all_ended.wait()

    def result(self, start: CpuReading, end: CpuReading) -> LoadRun:
        return LoadRun(
            asked_s=np.array(self._asked_s),
            ended_s=np.array(self._ended_s),
            statuses=np.array(self._statuses, dtype=np.int64),
            lateness_s=np.array(self._lateness_s),
            window_s=(start.at_s, end.at_s),
            server_cpu_s=end.of_each[0] - start.of_each[0],
            generator_cpu_s=end.of_each[1] - start.of_each[1],
            others_share=others_share(start, end),
            answers=self._answers,
        )


class _Closed:
    """Callers that wait for their answers."""

    def __init__(self, job: LoadJob, recorder: _Recorder) -> None:
        self._callers = job.callers
        self._recorder = recorder
        self._going = True

    def start(self) -> None:
        for _ in range(self._callers):
            self._ask()

    def stop(self) -> None:
        self._going = False

    def _ask(self) -> None:
        if self._going:
            self._recorder.ask(time.perf_counter(), self._ask)


class _Open:
    """Arrivals by the clock. Timers count milliseconds: sent up to one late."""

    def __init__(self, job: LoadJob, recorder: _Recorder) -> None:
        rng = random.Random(job.arrivals_per_s)
        self._recorder = recorder
        self._offsets_s: list[float] = []
        at_s, last_s = 0.0, job.warm_up_s + job.window_s
        while at_s < last_s:
            self._offsets_s.append(at_s)
            at_s += rng.expovariate(job.arrivals_per_s)
        self._next = 0
        self._began_s = 0.0
        self._going = True

    def start(self) -> None:
        self._began_s = time.perf_counter()
        self._tick()

    def stop(self) -> None:
        self._going = False

    def _tick(self) -> None:
        while self._going and self._next < len(self._offsets_s):
            scheduled_s = self._began_s + self._offsets_s[self._next]
            now_s = time.perf_counter()
            if scheduled_s > now_s:
                wait_ms = math.ceil((scheduled_s - now_s) * 1000)
                asyncio.get_running_loop().call_later(wait_ms / 1000, self._tick)
                return
            self._next += 1
            self._recorder.note_lateness(now_s - scheduled_s)
            self._recorder.ask(scheduled_s, None)


class _UnaryWire:
    """One Embed a request, all on one connection."""

    def __init__(self, connection: Connection, timeout_ms: int) -> None:
        self._connection = connection
        self._timeout_ms = timeout_ms

    def close(self) -> None:
        self._connection.close()

    def ask(self, request: bytes, on_answer: OnAnswer) -> None:
        answer = b""

        def on_message(message: bytes) -> None:
            nonlocal answer
            answer = message

        def on_end(status: int) -> None:
            on_answer(status, answer)

        stream = self._connection.start(_UNARY, on_message, on_end, self._timeout_ms)
        stream.send(request, end=True)


@dataclass(slots=True)
class _OpenStream:
    """One EmbedStream and who waits on it, by id."""

    stream: Stream
    waiting: dict[bytes, OnAnswer] = field(default_factory=dict)


class _StreamWire:
    """EmbedStreams that stay open, each with as many requests as the server reads at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._streams: list[_OpenStream] = []
        self._count = 0

    def close(self) -> None:
        self._connection.close()

    def ask(self, request: bytes, on_answer: OnAnswer) -> None:
        self._count += 1
        request_id = b"%x" % self._count
        target = self._with_room()
        target.waiting[request_id] = on_answer
        head = (_ID, _varint(len(request_id)), request_id, _REQUEST, _varint(len(request)))
        target.stream.send(b"".join((*head, request)))

    def _with_room(self) -> _OpenStream:
        for each in self._streams:
            if len(each.waiting) < REQUESTS_PER_STREAM:
                return each
        return self._open()

    def _open(self) -> _OpenStream:
        waiting: dict[bytes, OnAnswer] = {}

        def on_message(message: bytes) -> None:
            size = message[1]
            on_answer = waiting.pop(message[2 : 2 + size])
            if message[2 + size] != _RESPONSE:
                on_answer(UNKNOWN, b"")
                return
            at = 3 + size
            while message[at] & 0x80:  # the response's length, a varint
                at += 1
            on_answer(OK, message[at + 1 :])

        def on_end(status: int) -> None:
            for on_answer in list(waiting.values()):
                on_answer(status or UNAVAILABLE, b"")

        opened = _OpenStream(self._connection.start(_STREAM, on_message, on_end), waiting)
        self._streams.append(opened)
        return opened


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
