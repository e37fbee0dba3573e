"""What is in memory and what left it, as messages."""

from __future__ import annotations

import time

from google.protobuf import duration_pb2, timestamp_pb2

from shoal.v1 import model_control_pb2 as pb
from shoal_server.api.reasons import LOAD_REASONS, UNLOAD_REASONS
from shoal_server.core import ModelKey
from shoal_server.loading import LoadedModel
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import Departure, Resident, State

# Of google.protobuf.Duration, by its definition: about 10,000 years.
_DURATION_MAX_S = 315_576_000_000
_MAX_DEPARTURES = 100

_STATES = {
    State.LOADING: pb.MODEL_STATE_LOADING,
    State.READY: pb.MODEL_STATE_READY,
    State.LEAVING: pb.MODEL_STATE_UNLOADING,
    State.CLOSING: pb.MODEL_STATE_UNLOADING,
}


def write_residency(resident: Resident[LoadedModel], idle_left_s: float | None) -> pb.Residency:
    """A session in the pool.

    Args:
        resident: The session.
        idle_left_s: Until it is released for being idle; None: never.
    """
    residency = pb.Residency(
        device=resident.device,
        memory_bytes=resident.size_bytes,
        pinned=resident.pinned,
        leases=resident.leases,
        last_used_at=wall_clock(resident.last_used_s),
        load_reason=LOAD_REASONS[resident.why_loaded],
        uses=resident.uses,
        from_warm=resident.from_warm,
    )
    if resident.session is not None:
        residency.waiting_items = resident.session.batcher.waiting_items
        residency.loaded_at.CopyFrom(wall_clock(resident.loaded_at_s))
        residency.load_duration.CopyFrom(_duration(resident.load_s))
        if idle_left_s is not None:
            residency.idle_left.CopyFrom(_duration(idle_left_s))
    return residency


def write_residents(pool: SessionPool[LoadedModel]) -> list[pb.ResidentModel]:
    """All sessions in the pool, the least recently used first."""
    return [
        pb.ResidentModel(
            model=each.key.name,
            version=each.key.version,
            state=_STATES[each.state],
            residency=write_residency(each, pool.idle_left_s(each)),
        )
        for each in pool.residents()
    ]


def write_warm(pool: SessionPool[LoadedModel]) -> list[pb.WarmModel]:
    """What stays in RAM of models that left a GPU, the least recently used first."""
    messages = []
    for warm in pool.warm():
        message = pb.WarmModel(
            model=warm.key.name,
            version=warm.key.version,
            memory_bytes=warm.form.size_bytes,
            last_used_at=wall_clock(warm.last_used_s),
            reading=not warm.filled,
        )
        left_s = pool.warm_left_s(warm)
        if left_s is not None:
            message.idle_left.CopyFrom(_duration(left_s))
        messages.append(message)
    return messages


def write_departures(pool: SessionPool[LoadedModel]) -> list[pb.ModelDeparture]:
    """Those that left and are not back, the last one first."""
    left = [(key, departure) for key, departure in pool.departures().items() if not pool.get(key)]
    left.sort(key=lambda each: -each[1].at_s)
    return [_write_departure(key, departure) for key, departure in left[:_MAX_DEPARTURES]]


def wall_clock(monotonic_s: float) -> timestamp_pb2.Timestamp:
    """The time of day at a moment of the monotonic clock.

    To the millisecond: the two clocks are not read at once, and the same moment shall read the
    same in the next answer.
    """
    ago_s = time.monotonic() - monotonic_s
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromMilliseconds(round((time.time() - ago_s) * 1e3))
    return timestamp


def _write_departure(key: ModelKey, departure: Departure) -> pb.ModelDeparture:
    successor = departure.why.made_room_for
    return pb.ModelDeparture(
        model=key.name,
        version=key.version,
        reason=UNLOAD_REASONS[departure.why.reason],
        made_room_for=str(successor) if successor else "",
        at=wall_clock(departure.at_s),
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(min(seconds, _DURATION_MAX_S) * 1e9))
    return duration
