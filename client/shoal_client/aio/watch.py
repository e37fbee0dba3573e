"""Watching events from a task, from one connection to the next. The twin of `sync.watch`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Protocol

import grpc

from shoal.v1.model_control_pb2 import Event, WatchEventsRequest, WatchEventsResponse
from shoal_client.errors import ShoalError, from_rpc_error, stream_ended

if TYPE_CHECKING:
    from shoal_client.events import EventPosition
    from shoal_client.retry import Attempts, Clock


class EventCall(Protocol):
    """The answers of a call, which can be ended."""

    def __aiter__(self) -> AsyncIterator[WatchEventsResponse]: ...

    def cancel(self) -> object:
        """End the call."""


OpenCall = Callable[[int, WatchEventsRequest], EventCall]


async def watch(
    open_call: OpenCall,
    position: EventPosition,
    *,
    attempts: Attempts,
    clock: Clock,
    request_id: str,
) -> AsyncGenerator[Event, None]:
    """As `sync.watch.watch`."""
    while True:
        call = open_call(attempts.server, position.request)
        error: ShoalError = stream_ended()
        try:
            async for answer in call:
                attempts.renew()
                if (event := position.take(answer)) is not None:
                    yield event
        except grpc.RpcError as failed:
            error = from_rpc_error(failed, request_id)
        finally:
            call.cancel()
        await clock.sleep(attempts.delay_s(error, clock.now()))
