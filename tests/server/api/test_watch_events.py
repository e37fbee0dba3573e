"""WatchEvents over a real channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.v1 import model_control_pb2 as pb
from tests.running import RunningServer
from tests.server.api.calls import (
    TIMEOUT_S,
    Connection,
    assert_no_surprise,
    eventually,
    refusal,
)
from tests.tiny_model import make_tiny_model

HISTORY = 8


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that keeps one model in memory at a time, and few events."""
    models = tmp_path_factory.mktemp("models")
    for name in ("one", "two", "broken"):
        make_tiny_model(models, name)
    (models / "broken" / "1" / "tokenizer.json").write_text("{}")
    settings = {"max_resident_models": 1, "event_history": HISTORY}
    with RunningServer(model_dir=models, default_model="one", **settings) as server:
        yield server
        assert_no_surprise(server)


@pytest.fixture
def connection(running: RunningServer) -> Iterator[Connection]:
    with Connection(running.address) as connection:
        yield connection


Answers = Iterator[pb.WatchEventsResponse]


@contextmanager
def watching(connection: Connection, **fields: Any) -> Iterator[tuple[pb.EventMark, Answers]]:
    """A stream that has begun, with its first mark."""
    request = pb.WatchEventsRequest(**fields)
    answers = connection.control.WatchEvents(request, timeout=TIMEOUT_S)
    try:
        yield next(answers).mark, answers
    finally:
        answers.cancel()


def take(answers: Answers, count: int) -> list[pb.Event]:
    """The next events; marks in between are left out."""
    events: list[pb.Event] = []
    while len(events) < count:
        answer = next(answers)
        if answer.HasField("event"):
            events.append(answer.event)
    return events


def shown(events: Iterable[pb.Event]) -> list[str]:
    """Kind and model of each."""
    return [
        f"{kind} {getattr(event, kind).model}"
        for event in events
        if (kind := event.WhichOneof("kind"))
    ]


def test_what_happens_is_told_as_it_happens(connection: Connection) -> None:
    """An eviction from the first request to the free memory, with who caused it."""
    connection.load("one")
    with watching(connection) as (mark, answers):
        connection.embed("red", model="two")
        events = take(answers, 6)
    assert [event.sequence - mark.sequence for event in events] == [1, 2, 3, 4, 5, 6]
    assert {event.instance_id for event in events} == {mark.instance_id}
    assert shown(events) == [
        "model_state_changed two",
        "model_state_changed one",
        "model_state_changed one",
        "model_unloaded one",
        "model_state_changed two",
        "model_loaded two",
    ]
    states = [event.model_state_changed for event in events]
    assert (states[1].before, states[1].after, states[1].reason) == (
        pb.MODEL_STATE_READY,
        pb.MODEL_STATE_UNLOADING,
        "evicted to make room for two@1",
    )
    unloaded = events[3].model_unloaded
    assert (unloaded.reason, unloaded.made_room_for) == (pb.UNLOAD_REASON_EVICTED, "two@1")
    loaded = events[5].model_loaded
    assert (loaded.device, loaded.reason) == ("cpu", pb.LOAD_REASON_REQUEST)
    assert loaded.memory_bytes == connection.models()["two"].residency.memory_bytes


def test_states_have_the_same_reason_in_get_model(connection: Connection) -> None:
    """What watchers were told last is what is shown to who comes later."""
    connection.unload("one")
    with watching(connection, models=["one"]) as (_, answers):
        connection.load("one")
        connection.load("two")
        told = take(answers, 6)[4].model_state_changed
    shown = connection.models()["one"]
    assert (told.after, told.reason) == (shown.state, shown.state_reason)
    assert shown.state_reason == "evicted to make room for two@1"


def test_a_failed_load_is_told(connection: Connection) -> None:
    """With the reason that callers get, and the state that GetModel shows."""
    with watching(connection, models=["broken"]) as (_, answers):
        refused = refusal(lambda: connection.load("broken"))
        events = take(answers, 3)
    assert shown(events)[-1] == "model_load_failed broken"
    failed = events[-1].model_load_failed
    assert (failed.reason, failed.message) == (refused.reason, refused.message)
    assert failed.load_reason == pb.LOAD_REASON_ASKED
    assert events[1].model_state_changed.after == connection.models()["broken"].state


def test_a_stream_goes_on_behind_a_number(connection: Connection) -> None:
    """What follows it comes again, the same; 0 gives all that is kept."""
    with watching(connection) as (mark, answers):
        connection.unload("one")
        connection.load("one")
        first = take(answers, 3)
    with watching(connection, after_sequence=mark.sequence) as (again, answers):
        assert again == mark
        assert take(answers, 3) == first
    with watching(connection, after_sequence=0) as (oldest, answers):
        events = take(answers, HISTORY)
    assert [event.sequence for event in events] == list(
        range(oldest.sequence + 1, oldest.sequence + HISTORY + 1)
    )


def test_numbers_of_another_server_begin_at_the_oldest(connection: Connection) -> None:
    """A reader that was cut off by a restart misses nothing of what came after it."""
    with watching(connection, after_sequence=0) as (oldest, _):
        pass
    with watching(connection, after_sequence=10**9, instance_id="before") as (mark, _):
        assert mark == oldest


@pytest.mark.parametrize("after_sequence", [1, 10**9])
def test_a_number_that_is_not_kept_is_out_of_range(
    connection: Connection, after_sequence: int
) -> None:
    """Too old or never given: OUT_OF_RANGE, and where one can go on."""
    for _ in range(HISTORY):
        connection.load("two")
        connection.load("one")
    with watching(connection, after_sequence=0) as (oldest, _):
        pass

    def ask() -> None:
        with watching(connection, after_sequence=after_sequence):
            pass

    refused = refusal(ask)
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.OUT_OF_RANGE,
        "EVENTS_OUT_OF_RANGE",
    )
    assert refused.metadata == {
        "resume_after": str(oldest.sequence),
        "instance_id": oldest.instance_id,
    }


def test_filters_choose_models_and_kinds(connection: Connection) -> None:
    """Others are not sent, but marks say how far the stream is."""
    connection.unload("one")
    with watching(connection, models=["two"], kinds=[pb.EVENT_KIND_MODEL_LOADED]) as (
        _,
        answers,
    ):
        connection.load("one")
        connection.load("two")
        answer = next(answers)
        assert answer.HasField("mark")
        assert answer.mark.sequence > 0
        assert shown(take(answers, 1)) == ["model_loaded two"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"models": ["one", "../two"]}, "models[1]"),
        ({"models": ["m"] * 1001}, "models"),
        ({"kinds": [1, 0]}, "kinds[1]"),
        ({"kinds": [99]}, "kinds[0]"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    connection: Connection, fields: dict[str, Any], field: str
) -> None:
    """INVALID_ARGUMENT, with the field."""

    def ask() -> None:
        with watching(connection, **fields):
            pass

    refused = refusal(ask)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, (field,))


def test_watchers_and_events_are_counted(running: RunningServer, connection: Connection) -> None:
    """A gauge of open streams, which falls when readers leave, and a counter by kind."""
    connection.unload("one")
    before = running.metric("shoal_events_total", kind="model_loaded")
    with watching(connection), watching(connection):
        assert running.metric("shoal_event_watchers") == 2
        connection.load("one")
        assert running.metric("shoal_events_total", kind="model_loaded") == before + 1
    eventually(lambda: running.metric("shoal_event_watchers") == 0, "no stream open")


def test_the_shutdown_ends_streams_at_once(tmp_path: Path) -> None:
    """UNAVAILABLE, so that clients look for another server; the server does not wait for them."""
    make_tiny_model(tmp_path, "one")
    with (
        RunningServer(model_dir=tmp_path, default_model="one", drain_s=300) as server,
        Connection(server.address) as connection,
        watching(connection) as (_, answers),
    ):
        assert server.stop() == 0
        refused = refusal(lambda: next(answers))
    assert refused.code is grpc.StatusCode.UNAVAILABLE
