"""Every kind of event has a message, and nothing is lost on the way there."""

from __future__ import annotations

import pytest

from shoal.v1 import model_control_pb2 as pb
from shoal_server.api.event_messages import kind_name, write_event
from shoal_server.core import ModelKey
from shoal_server.lifecycle import LoadReason, ModelState, PressureLevel, Unloading, UnloadReason
from shoal_server.registry import events
from shoal_server.registry.accuracy import Accuracy
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
from shoal_server.runtime_settings import SettingChange

KEY = ModelKey("m", "2")
ACCURACY = Accuracy(4, 0.98, 0.9, None, 0.99, 0.001, "worse", "runtime 1", "fp32", 1234.5, 0.5)

EVICTED = Unloading(UnloadReason.EVICTED, ModelKey("n", "1"), stays_warm=True)
EXAMPLES: list[Event] = [
    ModelStateChanged(KEY, ModelState.REGISTERED, ModelState.LOADING, "request"),
    ModelLoaded(KEY, "cpu", 1000, 0.25, LoadReason.START, from_warm=True),
    ModelUnloaded(KEY, EVICTED),
    WarmModelReleased(KEY, 1000, EVICTED, "why it could not be kept"),
    ModelLoadFailed(KEY, "cpu", 0.5, "MODEL_FILE_CORRUPT", "bad", LoadReason.ASKED),
    PressureChanged("cpu", PressureLevel.NORMAL, PressureLevel.CRITICAL, 0.75),
    SettingsChanged((SettingChange("log_level", "info", "debug"),)),
    ModelRegistered("m", KEY, added=True),
    ModelDeregistered("m"),
    PreloadDecided(KEY, "prod", "cpu", 0.75, 12.5, 900.0),
    ModelProfiled(KEY, "cpu", "int8", 30, 12.5, 16, 4096),
    ModelVerified(KEY, ACCURACY),
    ModelReloaded(KEY, "cpu", 0.5),
    ModelReloadFailed(KEY, "MODEL_FILE_CORRUPT", "bad"),
    ModelUpdated(ModelKey("m", "1"), KEY, ACCURACY),
    ModelUpdateFailed(ModelKey("m", "1"), "2", "worse than when it was prepared"),
    NameSwitched(
        "prod", SwitchCause.ROLLBACK, (KEY,), (ModelKey("n", "1"),), 0.5, 0.001, (2, 1), (1, 3)
    ),
]


def write(event: Event) -> pb.Event:
    return write_event(Entry(7, 1234.5, event), "instance")


def kinds() -> set[str]:
    """Of the classes in `registry.events`."""
    classes = [each for each in vars(events).values() if isinstance(each, type)]
    return {each.kind for each in classes if issubclass(each, Event) and "kind" in vars(each)}


def test_kinds_are_the_same_everywhere() -> None:
    """Classes, fields of Event and values of EventKind; a new one needs all three."""
    fields = {field.name for field in pb.Event.DESCRIPTOR.oneofs_by_name["kind"].fields}
    assert kinds() == fields
    assert {kind_name(number) for number in pb.EventKind.values() if number} == fields
    assert kind_name(pb.EVENT_KIND_UNSPECIFIED) is None


def test_the_examples_are_of_every_kind() -> None:
    """The tests below look at all of them."""
    assert {event.kind for event in EXAMPLES} == kinds()


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.kind)
def test_an_event_is_written_under_its_kind(event: Event) -> None:
    """With number, time and instance, and no field of it left at nothing."""
    message = write(event)
    assert (message.instance_id, message.sequence) == ("instance", 7)
    assert message.time.ToNanoseconds() == 1_234_500_000_000
    assert message.WhichOneof("kind") == event.kind
    payload = getattr(message, event.kind)
    assert {field.name for field, _ in payload.ListFields()} == set(
        payload.DESCRIPTOR.fields_by_name
    )


def test_facts_arrive_as_they_were() -> None:
    """Sizes, durations, reasons and states."""
    loaded = write(EXAMPLES[1]).model_loaded
    assert (loaded.model, loaded.version, loaded.device) == ("m", "2", "cpu")
    assert (loaded.memory_bytes, loaded.duration.ToMilliseconds()) == (1000, 250)
    assert loaded.reason == pb.LOAD_REASON_START
    assert loaded.from_warm
    unloaded = write(EXAMPLES[2]).model_unloaded
    assert unloaded.stays_warm
    assert (unloaded.reason, unloaded.made_room_for) == (pb.UNLOAD_REASON_EVICTED, "n@1")
    changed = write(EXAMPLES[0]).model_state_changed
    assert (changed.before, changed.after) == (pb.MODEL_STATE_REGISTERED, pb.MODEL_STATE_LOADING)


@pytest.mark.parametrize("reason", UnloadReason)
def test_every_reason_to_unload_is_told(reason: UnloadReason) -> None:
    """None arrives as unspecified."""
    assert write(ModelUnloaded(KEY, Unloading(reason))).model_unloaded.reason != 0


@pytest.mark.parametrize("why", LoadReason)
def test_every_reason_to_load_is_told(why: LoadReason) -> None:
    """None arrives as unspecified."""
    assert write(ModelLoaded(KEY, "cpu", 1, 1.0, why)).model_loaded.reason != 0


@pytest.mark.parametrize("level", PressureLevel)
def test_every_level_is_told(level: PressureLevel) -> None:
    """None arrives as unspecified."""
    changed = write(PressureChanged("cpu", level, level, 0.5)).pressure_changed
    assert changed.before == changed.after != 0


@pytest.mark.parametrize("state", ModelState)
def test_every_state_is_told(state: ModelState) -> None:
    """None arrives as unspecified."""
    changed = write(ModelStateChanged(KEY, state, state, "")).model_state_changed
    assert changed.before == changed.after != 0
