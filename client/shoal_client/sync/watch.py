"""Watching events from a thread, from one connection to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Protocol

import grpc

from shoal.v1.model_control_pb2 import Event, WatchEventsRequest, WatchEventsResponse
from shoal_client.errors import ShoalError, client_closed, from_rpc_error, stream_ended

if TYPE_CHECKING:
    from shoal_client.events import EventPosition
    from shoal_client.retry import Attempts, Clock


class EventCall(Protocol):
    """The answers of a call, which can be ended."""

    def __iter__(self) -> Iterator[WatchEventsResponse]: ...

    def cancel(self) -> object:
        """End the call."""


OpenCall = Callable[[int, WatchEventsRequest], EventCall]


def watch(
    open_call: OpenCall,
    position: EventPosition,
    *,
    attempts: Attempts,
    clock: Clock,
    closed: threading.Event,
    request_id: str,
) -> Generator[Event, None, None]:
    """Yield events, opening a call again when its server goes away.

    Args:
        open_call: Starts the RPC on the server of that index.
        position: What is wanted, and how far it was seen.
        attempts: The tries at a call, renewed by each answer.
        clock: For the waits.
        closed: Set when the client is closed.
        request_id: Sent with each call; for errors.

    Raises:
        ShoalError: A call failed for good.
    """
    while not closed.is_set():
        call = open_call(attempts.server, position.request)
        error: ShoalError = stream_ended()
        try:
            for answer in call:
                attempts.renew()
                if (event := position.take(answer)) is not None:
                    yield event
        except grpc.RpcError as failed:
            error = from_rpc_error(failed, request_id)
        finally:
            call.cancel()
        if not closed.is_set():
            clock.wait(closed, attempts.delay_s(error, clock.now()))
    raise client_closed()
