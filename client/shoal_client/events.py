"""How far a watcher of events is, whatever becomes of its connections. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.v1.model_control_pb2 import (
    Event,
    EventKind,
    WatchEventsRequest,
    WatchEventsResponse,
)
from shoal_client.ranges import UINT64_MAX, invalid, whole

if TYPE_CHECKING:
    from collections.abc import Iterable

_PREFIX = "EVENT_KIND_"
EVENT_KINDS = tuple(
    name.removeprefix(_PREFIX).lower()
    for name in EventKind.keys()[1:]  # 0 is no kind
)


class EventPosition:
    """What is wanted, and what of it was seen: the request that a watcher goes on with."""

    def __init__(
        self,
        models: Iterable[str],
        kinds: Iterable[str],
        after_sequence: int | None,
        instance_id: str,
    ) -> None:
        """See `Client.watch_events`.

        Raises:
            TypeError: A single str was given for several.
            InvalidArgumentError: A kind has no such name, or the number is none of an event.
        """
        if isinstance(models, str) or isinstance(kinds, str):
            raise TypeError("models and kinds are lists: [name]")
        self.request = WatchEventsRequest(
            models=models,
            kinds=[_kind(name, index) for index, name in enumerate(kinds)],
            after_sequence=whole(after_sequence, "after_sequence", UINT64_MAX),
            instance_id=instance_id,
        )

    def take(self, response: WatchEventsResponse) -> Event | None:
        """Move behind an answer; returns its event if it has one."""
        told = response.mark if response.HasField("mark") else response.event
        self.request.after_sequence = told.sequence
        self.request.instance_id = told.instance_id
        return response.event if response.HasField("event") else None


def _kind(name: str, index: int) -> EventKind.ValueType:
    if name not in EVENT_KINDS:
        field = f"kinds[{index}]"
        raise invalid(field, f"{name!r} is not one of {', '.join(EVENT_KINDS)}")
    return EventKind.Value(_PREFIX + name.upper())
