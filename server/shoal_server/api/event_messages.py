"""The one table from events to their messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import duration_pb2
from google.protobuf.message import Message

from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import profile_pb2 as profile_pb
from shoal.v1 import registration_pb2 as registration_pb
from shoal.v1 import settings_pb2 as settings_pb
from shoal.v1 import updates_pb2 as updates_pb
from shoal.v1 import usage_pb2 as usage_pb
from shoal.v1 import verification_pb2 as verification_pb
from shoal.v1 import versions_pb2 as versions_pb
from shoal_server.api.accuracy import write_accuracy
from shoal_server.api.reasons import LOAD_REASONS, PRESSURE_LEVELS, UNLOAD_REASONS
from shoal_server.lifecycle import ModelState
from shoal_server.registry.event_log import Entry
from shoal_server.registry.events import (
    Event,
    ModelDeregistered,
    ModelLoaded,
    ModelLoadFailed,
    ModelProfiled,
    ModelRegistered,
    ModelReloaded,
    ModelReloadFailed,
    ModelStateChanged,
    ModelUnloaded,
    ModelUpdated,
    ModelUpdateFailed,
    ModelVerified,
    NameSwitched,
    PreloadDecided,
    PressureChanged,
    SettingsChanged,
    SwitchCause,
    WarmModelReleased,
)


def write_event(entry: Entry, instance_id: str) -> pb.Event:
    """An event as it travels."""
    message = pb.Event(instance_id=instance_id, sequence=entry.sequence)
    message.time.FromNanoseconds(int(entry.at_s * 1e9))
    payload = _WRITERS[type(entry.event)](entry.event)
    getattr(message, entry.event.kind).CopyFrom(payload)
    return message


def kind_name(number: int) -> str | None:
    """The kind that a value of `EventKind` stands for; None when it is none of them."""
    return _KIND_NAMES.get(number)


def _state_changed(event: ModelStateChanged) -> pb.ModelStateChanged:
    return pb.ModelStateChanged(
        model=event.key.name,
        version=event.key.version,
        before=_STATES[event.before],
        after=_STATES[event.after],
        reason=event.reason,
    )


def _loaded(event: ModelLoaded) -> pb.ModelLoaded:
    return pb.ModelLoaded(
        model=event.key.name,
        version=event.key.version,
        device=event.device,
        memory_bytes=event.size_bytes,
        duration=_duration(event.seconds),
        reason=LOAD_REASONS[event.why],
        from_warm=event.from_warm,
    )


def _unloaded(event: ModelUnloaded) -> pb.ModelUnloaded:
    successor = event.why.made_room_for
    return pb.ModelUnloaded(
        model=event.key.name,
        version=event.key.version,
        reason=UNLOAD_REASONS[event.why.reason],
        made_room_for=str(successor) if successor else "",
        stays_warm=event.why.stays_warm,
    )


def _warm_released(event: WarmModelReleased) -> pb.WarmModelReleased:
    successor = event.why.made_room_for if event.why else None
    return pb.WarmModelReleased(
        model=event.key.name,
        version=event.key.version,
        memory_bytes=event.size_bytes,
        reason=UNLOAD_REASONS[event.why.reason] if event.why else pb.UNLOAD_REASON_UNSPECIFIED,
        made_room_for=str(successor) if successor else "",
        problem=event.problem,
    )


def _load_failed(event: ModelLoadFailed) -> pb.ModelLoadFailed:
    return pb.ModelLoadFailed(
        model=event.key.name,
        version=event.key.version,
        device=event.device,
        duration=_duration(event.seconds),
        reason=event.reason,
        message=event.message,
        load_reason=LOAD_REASONS[event.why],
    )


def _pressure_changed(event: PressureChanged) -> pb.PressureChanged:
    return pb.PressureChanged(
        device=event.device,
        before=PRESSURE_LEVELS[event.before],
        after=PRESSURE_LEVELS[event.after],
        memory_use=event.used,
    )


def _settings_changed(event: SettingsChanged) -> settings_pb.SettingsChanged:
    return settings_pb.SettingsChanged(
        changes=[
            settings_pb.SettingChange(name=each.name, before=each.before, after=each.after)
            for each in event.changes
        ]
    )


def _switched(event: NameSwitched) -> versions_pb.NameSwitched:
    return versions_pb.NameSwitched(
        name=event.name,
        cause=_SWITCH_CAUSES[event.cause],
        before=map(str, event.before),
        after=map(str, event.after),
        before_weights=event.before_weights,
        after_weights=event.after_weights,
        times=versions_pb.SwitchTimes(
            warm=_duration(event.warm_s), switch=_duration(event.switch_s)
        ),
    )


def _registered(event: ModelRegistered) -> registration_pb.ModelRegistered:
    return registration_pb.ModelRegistered(
        model=event.name,
        version=event.key.version if event.key else "",
        added=event.added,
    )


def _deregistered(event: ModelDeregistered) -> registration_pb.ModelDeregistered:
    return registration_pb.ModelDeregistered(model=event.name)


def _verified(event: ModelVerified) -> verification_pb.ModelVerified:
    return verification_pb.ModelVerified(
        model=event.key.name,
        version=event.key.version,
        accuracy=write_accuracy(event.accuracy),
    )


def _reloaded(event: ModelReloaded) -> updates_pb.ModelReloaded:
    return updates_pb.ModelReloaded(
        model=event.key.name,
        version=event.key.version,
        device=event.device,
        duration=_duration(event.seconds),
    )


def _reload_failed(event: ModelReloadFailed) -> updates_pb.ModelReloadFailed:
    return updates_pb.ModelReloadFailed(
        model=event.key.name,
        version=event.key.version,
        reason=event.reason,
        message=event.message,
    )


def _updated(event: ModelUpdated) -> updates_pb.ModelUpdated:
    return updates_pb.ModelUpdated(
        model=event.after.name,
        before=event.before.version,
        after=event.after.version,
        accuracy=write_accuracy(event.accuracy) if event.accuracy else None,
    )


def _update_failed(event: ModelUpdateFailed) -> updates_pb.ModelUpdateFailed:
    return updates_pb.ModelUpdateFailed(
        model=event.key.name,
        version=event.key.version,
        candidate=event.candidate,
        reason=event.reason,
    )


def _profiled(event: ModelProfiled) -> profile_pb.ModelProfiled:
    return profile_pb.ModelProfiled(
        model=event.key.name,
        version=event.key.version,
        device=event.device,
        precision=event.precision,
        cells=event.cells,
        duration=_duration(event.seconds),
        max_batch_items=event.max_batch_items,
        max_batch_tokens=event.max_batch_tokens,
    )


def _preload_decided(event: PreloadDecided) -> usage_pb.PreloadDecided:
    return usage_pb.PreloadDecided(
        model=event.key.name,
        version=event.key.version,
        asked_for_as=event.name,
        device=event.device,
        probability=event.probability,
        expected_requests=event.requests,
        horizon=_duration(event.horizon_s),
    )


_WRITERS: dict[type[Event], Callable[[Any], Message]] = {
    ModelStateChanged: _state_changed,
    ModelLoaded: _loaded,
    ModelUnloaded: _unloaded,
    WarmModelReleased: _warm_released,
    ModelLoadFailed: _load_failed,
    PressureChanged: _pressure_changed,
    SettingsChanged: _settings_changed,
    NameSwitched: _switched,
    PreloadDecided: _preload_decided,
    ModelRegistered: _registered,
    ModelDeregistered: _deregistered,
    ModelVerified: _verified,
    ModelReloaded: _reloaded,
    ModelReloadFailed: _reload_failed,
    ModelUpdated: _updated,
    ModelUpdateFailed: _update_failed,
    ModelProfiled: _profiled,
}

# The protos' names are ours with the enum's in front; a test says that none is missing.
_STATES = {each: pb.ModelState.Value(f"MODEL_STATE_{each.name}") for each in ModelState}
_SWITCH_CAUSES = {
    each: versions_pb.SwitchCause.Value(f"SWITCH_CAUSE_{each.name}") for each in SwitchCause
}
_KIND_NAMES = {int(pb.EventKind.Value(f"EVENT_KIND_{e.kind.upper()}")): e.kind for e in _WRITERS}


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
