"""WatchEvents: from the event log to streams, of which none waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc

from shoal.v1 import model_control_pb2 as pb
from shoal_server.api.event_messages import kind_name, write_event
from shoal_server.api.rpc import Call, Context, Rpcs
from shoal_server.core import ModelRef
from shoal_server.errors import InvalidInput, Unavailable
from shoal_server.registry.event_log import EventLog, Watcher

_MAX_MODELS = 1000
# Of the history, how much may go by unwanted before a mark tells the reader how far it is;
# and no more at a time than what takes about a millisecond of the event loop.
_MARKS_IN_HISTORY = 4
_MARK_AFTER_MOST = 1000


class EventStreams:
    """Answers WatchEvents."""

    def __init__(self, log: EventLog, draining: asyncio.Event) -> None:
        """Wire it.

        Args:
            log: What is watched.
            draining: Set when the server is going away.
        """
        self._log = log
        self._draining = draining

    def handler(self, rpcs: Rpcs) -> grpc.RpcMethodHandler[Any, Any]:
        """The method for a gRPC server."""
        return rpcs.answer_stream("WatchEvents", pb.WatchEventsRequest, self.watch)

    async def watch(self, message: pb.WatchEventsRequest, context: Context, call: Call) -> None:
        """Send events until the reader leaves, is too slow, or the server shuts down."""
        call.model = ",".join(message.models)
        with self._log.watch(
            after=self._start(message),
            subjects=_read_models(message.models),
            kinds=_read_kinds(message.kinds),
        ) as watcher:
            # By itself: gRPC can not end a call whose first write, which would carry this along,
            # was broken off.
            await context.send_initial_metadata(())
            writing = asyncio.create_task(self._write(watcher, context))
            ends = [
                asyncio.create_task(event.wait()) for event in (watcher.cut_off, self._draining)
            ]
            try:
                await asyncio.wait({writing, *ends}, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    writing.result()
            finally:
                await _end(writing, *ends)
            watcher.check()
            raise Unavailable("the server is shutting down")

    def _start(self, message: pb.WatchEventsRequest) -> int | None:
        if not message.HasField("after_sequence"):
            return None
        is_ours = message.instance_id in ("", self._log.instance_id)
        return message.after_sequence if is_ours else 0

    async def _write(self, watcher: Watcher, context: Context) -> None:
        """Write what the watcher reads; stands still while the transport takes nothing."""
        log = self._log
        mark_after = max(1, min(log.history // _MARKS_IN_HISTORY, _MARK_AFTER_MOST))
        mark = pb.EventMark(instance_id=log.instance_id, sequence=watcher.position)
        await context.write(pb.WatchEventsResponse(mark=mark).SerializeToString())
        while True:
            entry = await watcher.read(at_most=mark_after)
            if entry is None:
                mark.sequence = watcher.position
                answer = pb.WatchEventsResponse(mark=mark)
            else:
                answer = pb.WatchEventsResponse(event=write_event(entry, log.instance_id))
            await context.write(answer.SerializeToString())


def _read_models(names: Iterable[str]) -> frozenset[str]:
    listed = list(names)
    if len(listed) > _MAX_MODELS:
        raise InvalidInput("models", f"{len(listed)} names, at most {_MAX_MODELS}")
    return frozenset(
        str(ModelRef.parse(name, f"models[{index}]")) for index, name in enumerate(listed)
    )


def _read_kinds(numbers: Iterable[int]) -> frozenset[str]:
    kinds = set()
    for index, number in enumerate(numbers):
        kind = kind_name(number)
        if kind is None:
            raise InvalidInput(f"kinds[{index}]", f"{number} is not a kind of events")
        kinds.add(kind)
    return frozenset(kinds)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks; returns when they have ended, however they did."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
