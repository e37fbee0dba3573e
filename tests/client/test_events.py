"""Watching events with both clients, over a real channel."""

from __future__ import annotations

from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing

import grpc
import pytest

from shoal.v1 import model_control_pb2 as pb
from shoal_client import Client, InvalidArgumentError, OutOfRangeError, RetryPolicy
from shoal_client.errors import UnavailableError
from shoal_client.events import EVENT_KINDS
from tests.client import fake as fakes
from tests.client.conftest import Connect
from tests.client.fake import FakeServer
from tests.server.api.calls import eventually


def event(sequence: int, instance_id: str = "first") -> pb.WatchEventsResponse:
    loaded = pb.ModelLoaded(model="m", version="1")
    return pb.WatchEventsResponse(
        event=pb.Event(instance_id=instance_id, sequence=sequence, model_loaded=loaded)
    )


def mark(sequence: int, instance_id: str = "first") -> pb.WatchEventsResponse:
    return pb.WatchEventsResponse(mark=pb.EventMark(instance_id=instance_id, sequence=sequence))


def asked(fake: FakeServer) -> list[tuple[int | None, str]]:
    """After which number of which instance each call asked for events."""
    requests = [call.request for call in fake.calls if call.method == "WatchEvents"]
    return [
        (each.after_sequence if each.HasField("after_sequence") else None, each.instance_id)
        for each in requests
    ]


def test_what_is_wanted_reaches_the_server(client: Client, fake: FakeServer) -> None:
    """Models, kinds by name, the number and whose it is; events come without envelopes."""
    fake.watches.append([mark(6, "x"), event(7, "x")])
    with closing(client.watch_events(["m", "n@2"], ["model_loaded"], after_sequence=6,
                                     instance_id="x")) as events:  # fmt: skip
        assert next(events) == event(7, "x").event
    assert fake.calls[-1].request == pb.WatchEventsRequest(
        models=["m", "n@2"],
        kinds=[pb.EVENT_KIND_MODEL_LOADED],
        after_sequence=6,
        instance_id="x",
    )


def test_a_watch_begins_with_what_is_to_come(client: Client, fake: FakeServer) -> None:
    """Without a number none is sent, and 0 is one."""
    fake.watches += [[mark(3), event(4)], [mark(3), event(4)]]
    for after_sequence in (None, 0):
        with closing(client.watch_events(after_sequence=after_sequence)) as events:
            next(events)
    assert asked(fake) == [(None, ""), (0, "")]


def test_a_watch_goes_on_where_it_was(client: Client, fake: FakeServer) -> None:
    """After UNAVAILABLE it asks for what follows the last answer, event or mark."""
    fake.watches += [[mark(4), event(5)], [mark(5), mark(90)], [mark(90), event(91)]]
    with closing(client.watch_events()) as events:
        assert [next(events).sequence, next(events).sequence] == [5, 91]
    assert asked(fake) == [(None, ""), (5, "first"), (90, "first")]


def test_a_server_that_started_again_counts_anew(client: Client, fake: FakeServer) -> None:
    """Its numbers are taken from its first answer on, though they are lower."""
    fake.watches += [
        [mark(40), event(41)],
        [mark(0, "second"), event(1, "second")],
        [mark(1, "second"), event(2, "second")],
    ]
    with closing(client.watch_events()) as events:
        seen = [(each.instance_id, each.sequence) for each in (next(events) for _ in range(3))]
    assert seen == [("first", 41), ("second", 1), ("second", 2)]
    assert asked(fake) == [(None, ""), (41, "first"), (1, "second")]


def test_being_cut_off_is_told_with_where_to_go_on(client: Client, fake: FakeServer) -> None:
    """OUT_OF_RANGE is not retried: the gap is the caller's to judge."""
    fake.fail(
        "WatchEvents",
        fakes.status(
            grpc.StatusCode.OUT_OF_RANGE,
            reason="EVENTS_OUT_OF_RANGE",
            metadata={"resume_after": "17"},
        ),
    )
    with pytest.raises(OutOfRangeError) as raised:
        next(client.watch_events(after_sequence=5))
    assert (raised.value.reason, raised.value.resume_after) == ("EVENTS_OUT_OF_RANGE", 17)


def test_attempts_are_bounded(connect: Connect, fake: FakeServer) -> None:
    """As for other calls; any answer renews them."""
    client = connect(retry=RetryPolicy(max_attempts=3))
    fake.watches += [[], [mark(1)], [], [event(2)]]
    events = client.watch_events()
    assert next(events).sequence == 2
    fake.fail("WatchEvents", *[fakes.UNAVAILABLE] * 2)
    with pytest.raises(UnavailableError):
        next(events)
    assert len(asked(fake)) == 6


def test_an_unknown_kind_is_refused_before_any_call(client: Client, fake: FakeServer) -> None:
    """The message names those that there are."""
    with pytest.raises(InvalidArgumentError, match="model_loaded") as raised:
        client.watch_events(kinds=["model_loaded", "model_lost"])
    assert raised.value.field == "kinds[1]"
    with pytest.raises(TypeError):
        client.watch_events("all-minilm-l6-v2")
    assert fake.calls == []


def test_leaving_ends_the_call(client: Client, fake: FakeServer) -> None:
    """A generator that is closed leaves no call open at the server."""
    # More than gRPC takes in beforehand: the server can not have told all of them.
    fake.watches.append([event(number) for number in range(1, 20_000)])
    events = client.watch_events()
    next(events)
    events.close()
    assert fake.stream_ends.get(timeout=30) is False


def test_closing_the_client_ends_a_watch(client: Client, fake: FakeServer) -> None:
    """Whoever waits for the next event is told, and does not wait for ever."""
    events = client.watch_events()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, events)
        eventually(lambda: fake.calls, "the call at the server")
        client.close()
        with pytest.raises((UnavailableError, CancelledError)):
            waiting.result(timeout=30)


def test_the_kinds_are_those_of_the_event() -> None:
    """What one asks for is what one finds set."""
    assert list(EVENT_KINDS) == [
        field.name for field in pb.Event.DESCRIPTOR.oneofs_by_name["kind"].fields
    ]
