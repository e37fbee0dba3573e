"""Readers that take nothing off the wire: WatchEvents on a server in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from shoal.v1 import model_control_pb2 as pb
from shoal.v1.model_control_pb2_grpc import ModelControlServiceStub
from shoal_server.api.callers import Callers
from shoal_server.api.rpc import RpcOptions, Rpcs
from shoal_server.api.watch_events import EventStreams
from shoal_server.core import ModelKey
from shoal_server.lifecycle import ModelState
from shoal_server.registry.event_log import EventLog
from shoal_server.registry.events import ModelStateChanged
from shoal_server.telemetry.metrics import Metrics
from shoal_server.telemetry.observers import EventTelemetry
from tests.server.api.calls import TIMEOUT_S

HISTORY = 4
# A few of them are more than gRPC takes for a reader that does not read.
LARGE = ModelStateChanged(
    ModelKey("m", "1"), ModelState.READY, ModelState.UNLOADING, "x" * 1_000_000
)
MANY = 64


class Streams:
    """The event streams of a server, and a channel to it."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.draining = asyncio.Event()
        self.log = EventLog(HISTORY, wall_clock=lambda: 0.0, observer=EventTelemetry(self.metrics))
        options = RpcOptions(max_request_bytes=10_000, log_requests=False, slow_request_s=60)
        rpcs = Rpcs(self.metrics, options, Callers(by_key=False, names={}))
        handler = EventStreams(self.log, self.draining).handler(rpcs)
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "shoal.v1.ModelControlService", {"WatchEvents": handler}
                ),
            )
        )
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    @property
    def watchers(self) -> float:
        return self.metrics.event_watchers.labels().value

    async def publish_until_cut_off(self) -> None:
        """Large events, each after those who read had their turn."""
        while self.watchers:
            assert self.log.newest < MANY, "nobody was cut off"
            self.log.publish(LARGE)
            for _ in range(1000):  # turns of the loop: no time need pass
                await asyncio.sleep(0)


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    streams = Streams()
    await streams.server.start()
    yield streams
    await streams.server.stop(0)


async def test_a_reader_that_takes_nothing_is_cut_off_with_a_reason(streams: Streams) -> None:
    """While its transport is full; what was sent before can be read, without a gap."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{streams.port}") as channel:
        stub = ModelControlServiceStub(channel)
        answers = aiter(stub.WatchEvents(pb.WatchEventsRequest(), timeout=TIMEOUT_S))
        assert (await anext(answers)).HasField("mark")
        await streams.publish_until_cut_off()

        sequences: list[int] = []
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while True:
                sequences.append((await anext(answers)).event.sequence)
        assert ended.value.code() is grpc.StatusCode.OUT_OF_RANGE
        assert f"the oldest is {streams.log.oldest}" in str(ended.value.details())
        assert sequences == list(range(1, len(sequences) + 1))
        assert 1 <= len(sequences) < streams.log.oldest


async def test_a_reader_that_takes_nothing_holds_up_no_other(streams: Streams) -> None:
    """The other one has every event while the first is stuck and when it is cut off."""
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{streams.port}") as channel,
        grpc.aio.insecure_channel(
            f"127.0.0.1:{streams.port}", [("grpc.use_local_subchannel_pool", 1)]
        ) as other,
    ):
        stuck = ModelControlServiceStub(channel).WatchEvents(pb.WatchEventsRequest())
        await stuck.read()
        reading = ModelControlServiceStub(other).WatchEvents(pb.WatchEventsRequest())
        await reading.read()
        while streams.watchers == 2:
            assert streams.log.newest < MANY, "nobody was cut off"
            streams.log.publish(LARGE)
            answer = await asyncio.wait_for(reading.read(), TIMEOUT_S)
            assert isinstance(answer, pb.WatchEventsResponse)
            assert answer.event.sequence == streams.log.newest
        assert streams.watchers == 1
        reading.cancel()
        stuck.cancel()


async def test_a_stream_that_ends_before_its_first_mark_is_out_has_its_reason(
    streams: Streams,
) -> None:
    """A write that is broken off leaves nothing behind that keeps the call from ending."""
    streams.draining.set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{streams.port}") as channel:
        call = ModelControlServiceStub(channel).WatchEvents(
            pb.WatchEventsRequest(), timeout=TIMEOUT_S
        )
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while await call.read() is not grpc.aio.EOF:
                pass
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
