"""Who goes when, and with whom: the rules of a lane, without I/O."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_client import Coalescing, Embeddings, EmbedOptions
from shoal_client.coalescing import Lane, lane_key
from shoal_client.requests import new_embed_request
from shoal_client.retry import NO_DEADLINE, Attempts, Deadline, RetryPolicy
from shoal_client.shared_request import Call, SharedRequest
from shoal_client.splitting import PartLimits

LIMITS = PartLimits(items=100, bytes=10_000)
# For each option a value that is not its default.
OPTIONS: EmbedOptions = {
    "model": "other",
    "normalize": False,
    "dimensions": 4,
    "encoding": "int8",
    "truncate": False,
    "prompt_name": "query",
    "priority": "high",
    "keep_alive_s": 0.0,
    "routing_key": "someone",
}


class NotedCall(Call):
    """A call that notes what its caller was told."""

    __slots__ = ("name", "told")

    def __init__(self, name: str, inputs: int = 1, deadline: Deadline = NO_DEADLINE) -> None:
        request = new_embed_request()
        request.texts.extend([name] * inputs)
        super().__init__(request, deadline)
        self.name = name
        self.told: list[Embeddings | Exception] = []

    def _deliver(self, outcome: Embeddings | Exception) -> None:
        self.told.append(outcome)


def lane_of(
    coalescing: Coalescing | None = None, *, limits: PartLimits = LIMITS, servers: int = 1
) -> Lane[NotedCall]:
    return Lane(
        (False, b""),
        coalescing or Coalescing(),
        limits,
        servers=servers,
        new_attempts=lambda deadline: Attempts(RetryPolicy(), deadline=deadline),
    )


def add(lane: Lane[NotedCall], *names: str, inputs: int = 1) -> list[NotedCall]:
    calls = [NotedCall(name, inputs) for name in names]
    for call in calls:
        lane.add(call)
    return calls


def names_of(due: list[SharedRequest[NotedCall]]) -> list[str]:
    """The calls of each request, one word a request."""
    return ["".join(call.name for call in shared.calls) for shared in due]


def test_idle_lane_lets_a_call_go_at_once() -> None:
    """With nothing on its way nothing is waited for."""
    lane = lane_of()
    add(lane, "a")
    assert names_of(lane.take_due()) == ["a"]


def test_calls_wait_while_requests_are_out_and_go_together() -> None:
    """What came while all requests were on their way shares the next one."""
    lane = lane_of(Coalescing(requests_in_flight=1))
    add(lane, "a")
    (first,) = lane.take_due()
    add(lane, "b", "c", "d")
    assert lane.take_due() == []
    lane.end(first)
    assert names_of(lane.take_due()) == ["bcd"]


def test_calls_that_come_together_are_spread_over_the_requests() -> None:
    """Each request takes a fair share, so that the server works on one while one returns."""
    lane = lane_of(Coalescing(requests_in_flight=2))
    add(lane, *"abcdef")
    assert names_of(lane.take_due()) == ["abc", "def"]


def test_request_waits_for_its_fair_share() -> None:
    """Of callers that come back one by one, the first does not go alone."""
    lane = lane_of(Coalescing(requests_in_flight=2))
    add(lane, *"abcdef")
    first, _ = lane.take_due()
    lane.end(first)
    add(lane, "a", "b")
    assert lane.take_due() == []
    add(lane, "c")
    assert names_of(lane.take_due()) == ["abc"]


def test_few_calls_do_not_wait_for_a_fair_share_that_never_comes() -> None:
    """When what is on its way has come back, what waits is all there is."""
    lane = lane_of(Coalescing(requests_in_flight=2))
    add(lane, *"abcdef")
    first, second = lane.take_due()
    lane.end(first)
    add(lane, "a")
    lane.end(second)
    assert names_of(lane.take_due()) == ["a"]


def test_overdue_calls_go_whatever_is_on_its_way() -> None:
    """All that wait, in as few requests as the limits allow."""
    lane = lane_of(Coalescing(requests_in_flight=1, max_texts=2))
    add(lane, "a")
    lane.take_due()
    add(lane, "b", "c", "d")
    assert names_of(lane.take_due(overdue=True)) == ["bc", "d"]


def test_several_servers_have_requests_in_flight_each() -> None:
    """The bound is for each server."""
    lane = lane_of(Coalescing(requests_in_flight=1), servers=3)
    add(lane, *"abc")
    assert names_of(lane.take_due()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("limits", "max_texts", "expected"),
    [
        (LIMITS, 2, ["ab", "cd", "e"]),
        (PartLimits(items=3, bytes=10_000), 100, ["abc", "de"]),
        (PartLimits(items=100, bytes=2 * NotedCall("a").size_bytes), 100, ["ab", "cd", "e"]),
    ],
    ids=["own", "items", "bytes"],
)
def test_limits_are_kept(limits: PartLimits, max_texts: int, expected: list[str]) -> None:
    """No request has more inputs or bytes than the options and the server allow."""
    lane = lane_of(Coalescing(max_texts=max_texts), limits=limits)
    add(lane, *"abcde")
    assert names_of(lane.take_due(overdue=True)) == expected


def test_call_above_its_fair_share_goes_whole() -> None:
    """A call is not taken apart, however large."""
    lane = lane_of(Coalescing(requests_in_flight=2))
    add(lane, "a", inputs=50)
    add(lane, "b")
    assert names_of(lane.take_due()) == ["a", "b"]


def test_caller_who_left_takes_up_no_room() -> None:
    """Neither in line nor in the fair share."""
    lane = lane_of(Coalescing(requests_in_flight=1))
    add(lane, "a")
    (first,) = lane.take_due()
    gone, _ = add(lane, "b", "c")
    lane.leave(gone)
    lane.end(first)
    assert names_of(lane.take_due()) == ["c"]
    assert not lane.has_waiting


def test_those_who_go_again_have_had_their_turn() -> None:
    """They go at once, whatever is on its way, and take along who waits behind them."""
    lane = lane_of(Coalescing(requests_in_flight=1))
    calls = add(lane, "a", "b", "c")
    (shared,) = lane.take_due()
    add(lane, "x")
    lane.take_due(overdue=True)
    add(lane, "d")
    lane.leave(calls[1])
    lane.end(shared, calls[1:])
    assert names_of(lane.take_due()) == ["cd"]


def test_those_who_have_to_go_alone_do() -> None:
    """Neither with each other nor with anybody else, all at once."""
    lane = lane_of(Coalescing(requests_in_flight=1))
    calls = add(lane, "a", "b")
    (shared,) = lane.take_due()
    for call in calls:
        call.alone = True
    add(lane, "c")
    lane.end(shared, calls)
    assert names_of(lane.take_due()) == ["a", "b"]


def test_ending_twice_counts_once() -> None:
    """An interrupted leader's request can be ended by more than one way."""
    lane = lane_of()
    (call,) = add(lane, "a")
    (shared,) = lane.take_due()
    lane.end(shared)
    lane.end(shared, [call])
    assert lane.is_idle


def test_requests_deadline_is_the_latest_of_its_calls() -> None:
    """Nobody is cut off by a mate who has less time."""
    lane = lane_of(Coalescing(requests_in_flight=1))
    for name, at in (("a", 3.0), ("b", 9.0), ("c", 5.0)):
        lane.add(NotedCall(name, deadline=Deadline(at, at)))
    (shared,) = lane.take_due()
    assert (shared.latest.name, shared.attempts.deadline) == ("b", 9.0)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_a_lane_of_its_own(option: str) -> None:
    """Calls that differ in one option are never put together."""
    assert set(OPTIONS) == set(EmbedOptions.__annotations__)
    changed = new_embed_request(**{option: OPTIONS[option]})  # type: ignore[literal-required]
    assert lane_key(new_embed_request()) != lane_key(changed)


def test_inputs_do_not_matter_for_the_lane_but_their_kind_does() -> None:
    """Texts go with other texts, and not with tokens."""
    one, other, tokens = (new_embed_request(model="m") for _ in range(3))
    one.texts.append("a")
    other.texts.append("b")
    tokens.tokens.add(ids=[1])
    assert lane_key(one) == lane_key(other) != lane_key(tokens)


@pytest.mark.parametrize(
    "options", [{"requests_in_flight": 0}, {"max_texts": 0}, {"max_wait_s": 0}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    """Zeros would never let a call go, or never let one wait."""
    with pytest.raises(ValueError, match="must be above 0"):
        Coalescing(**options)


@given(st.integers(0, 2**32))
def test_nobody_is_lost(seed: int) -> None:
    """Whatever happens in whatever order, each caller who stays is told, once."""
    rng = random.Random(seed)
    lane = lane_of(Coalescing(requests_in_flight=rng.randint(1, 3), max_texts=4))
    calls: list[NotedCall] = []
    gone: set[NotedCall] = set()
    on_way: list[SharedRequest[NotedCall]] = []
    for number in range(60):
        calls.append(NotedCall(str(number), inputs=rng.randint(1, 3)))
        lane.add(calls[-1])
        on_way += lane.take_due(overdue=rng.random() < 0.1)
        waiting = [call for call in calls if call.waits]
        if waiting and rng.random() < 0.2:
            leaver = rng.choice(waiting)
            gone.add(leaver)
            lane.leave(leaver)
        while on_way and rng.random() < 0.5:
            end_somehow(lane, on_way.pop(rng.randrange(len(on_way))), rng)
            on_way += lane.take_due()
    while on_way:
        shared = on_way.pop()
        shared.fail(RuntimeError("the last"))
        lane.end(shared)
        on_way += lane.take_due()
    assert lane.is_idle, lane
    assert [len(call.told) for call in calls] == [int(call not in gone) for call in calls]


def end_somehow(
    lane: Lane[NotedCall], shared: SharedRequest[NotedCall], rng: random.Random
) -> None:
    """As an answer, or with some who go again."""
    if rng.random() < 0.3:
        lane.end(shared, shared.calls)
    else:
        shared.fail(RuntimeError("on demand"))
        lane.end(shared)
