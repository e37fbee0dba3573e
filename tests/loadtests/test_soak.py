"""What a soak judges by, and twenty seconds of one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from loadtests.servers import read_samples
from loadtests.soak.callers import judge
from loadtests.soak.documented import (
    GOING_AWAY,
    NO_ROOM,
    NOT_NOW,
    NOT_THERE,
    Deregistering,
    Failure,
    Gone,
    Refusing,
    Unloading,
    is_documented,
    is_documented_of,
)
from loadtests.soak.ledger import Ledger
from loadtests.soak.names import Names
from loadtests.soak.scene import Means, Scene
from loadtests.soak.timeline import Timeline
from loadtests.soak.verdict import count_problems, event_problems, idle_problems, log_problems
from loadtests.soak.watching import Events, Memory
from shoal.v1 import embed_pb2, statistics_pb2
from shoal.v1 import model_control_pb2 as pb

ROOT = Path(__file__).parents[2]
INTERNAL = Failure("INTERNAL", "INFERENCE_FAILED")


@pytest.mark.timeout(240)
def test_twenty_seconds_of_it() -> None:
    """What CI runs: nothing undocumented, every vector right, books that balance."""
    command = [sys.executable, "-m", "loadtests.soak", "--seconds=20", "--idle-seconds=1"]
    # Figures are for long runs on quiet machines.
    bounds = ["--max-growth-mib=256", "--max-idle-percent=100", "--max-refused=0.2"]

    done = subprocess.run(
        [*command, *bounds], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ok"] and found["problems"] == []
    assert found["answered"] > 100
    assert sum(found["operations"].values()) > 10
    assert found["unloads"]


# -- what held when ------------------------------------------------------------


@pytest.mark.parametrize(
    ("from_s", "to_s", "held"),
    [(0.0, 0.9, False), (0.0, 1.0, True), (1.5, 1.6, True), (2.0, 9.0, True), (2.1, 9.0, False)],
)
def test_a_fact_holds_for_requests_that_meet_it(from_s: float, to_s: float, held: bool) -> None:
    """From when it began until it ended, both moments included."""
    timeline = Timeline()
    timeline.begin("fact", 1.0).ended_s = 2.0
    assert timeline.held("fact", from_s, to_s) is held
    assert not timeline.held("another", from_s, to_s)


@pytest.mark.parametrize(
    ("failure", "fact"),
    [(GOING_AWAY, Unloading()), (NOT_NOW, Refusing()), (NOT_THERE, Gone("prod"))],
)
def test_a_failure_is_documented_while_somebody_brings_it_about(
    failure: Failure, fact: object
) -> None:
    """And not before or afterwards, nor for another name."""
    timeline = Timeline()
    timeline.begin(fact, 1.0).ended_s = 2.0
    assert is_documented(failure, "prod", timeline, 0.5, 1.5)
    assert not is_documented(failure, "prod", timeline, 2.5, 3.0)
    timeline.begin(Gone("other"), 2.5)
    assert not is_documented(failure, "prod", timeline, 2.5, 3.0)


def test_want_of_room_is_always_documented_and_a_failed_run_never() -> None:
    """The one is counted against a bound, the other is a finding."""
    timeline = Timeline()
    timeline.begin(Unloading(), 0.0)
    assert is_documented(NO_ROOM, "prod", timeline, 0.0, 1.0)
    assert not is_documented(INTERNAL, "prod", timeline, 0.0, 1.0)


def test_an_operation_may_end_as_it_is_documented_for_it() -> None:
    """Always, or while a model is deregistered, unloaded by force or refused."""
    timeline = Timeline()
    assert is_documented_of("ProfileModel", NO_ROOM, timeline, 0, 1)
    assert not is_documented_of("VerifyModel", NOT_THERE, timeline, 0, 1)
    for fact in (Deregistering(), Unloading(), Refusing()):
        timeline.begin(fact, 2)
    for failure in (NOT_THERE, GOING_AWAY, NOT_NOW):
        assert is_documented_of("VerifyModel", failure, timeline, 2, 3)
    assert is_documented_of("SwitchModel", NOT_NOW, timeline, 2, 3)
    assert not is_documented_of("SwitchModel", NOT_NOW, timeline, 0, 1)
    assert is_documented_of("LoadModel", NOT_THERE, timeline, 2, 3)
    assert not is_documented_of("LoadModel", GOING_AWAY, timeline, 2, 3)
    assert not is_documented_of("VerifyModel", INTERNAL, timeline, 2, 3)


async def test_a_name_means_both_while_it_changes_and_one_then() -> None:
    """What it meant before is wrong for requests that are sent when the change is answered."""
    timeline = Timeline()
    names = Names(timeline)
    async with names.changing("prod", ["a@1"]) as change:
        change.meant = ["a@1"]
    async with names.changing("prod", ["a@2"], also="") as change:
        assert held_now(timeline, "prod") == {"a@1", "a@2"}
        change.meant = ["a@2"]
    assert held_later(timeline, "prod") == held_later(timeline, "") == {"a@2"}


async def test_a_change_that_fails_leaves_what_a_name_meant() -> None:
    """The new version is none that it may be answered by."""
    timeline = Timeline()
    names = Names(timeline)
    async with names.changing("prod", ["a@1"]) as change:
        change.meant = ["a@1"]
    async with names.changing("prod", ["a@2"]):
        pass
    assert held_later(timeline, "prod") == {"a@1"}


async def test_a_roll_back_may_mean_whatever_the_name_ever_meant() -> None:
    """Until its answer says what it is."""
    timeline = Timeline()
    names = Names(timeline)
    for version in ("a@1", "a@2", "a@3"):
        async with names.changing("prod", [version]) as change:
            change.meant = [version]
    async with names.changing("prod") as change:
        assert held_now(timeline, "prod") == {"a@1", "a@2", "a@3"}
        change.meant = ["a@2"]
    assert held_later(timeline, "prod") == {"a@2"}


def held_now(timeline: Timeline, name: str) -> set[str]:
    """What a name means for a request that has been sent long ago and is answered now."""
    everything = ("a@1", "a@2", "a@3")
    return {each for each in everything if timeline.held(Means(name, each), 0, float("inf"))}


def held_later(timeline: Timeline, name: str) -> set[str]:
    """What it means for one that is still to be sent."""
    soon_s = float("inf")
    everything = ("a@1", "a@2", "a@3")
    return {each for each in everything if timeline.held(Means(name, each), soon_s, soon_s)}


# -- answers -------------------------------------------------------------------


@pytest.fixture
def scene() -> Scene:
    """Two versions, whose vectors lie at right angles; `prod` means the first one."""
    one, other = np.eye(2, 4, dtype=np.float32), np.eye(2, 4, 2, dtype=np.float32)
    made = Scene(["red", "blue"], {"a@1": one, "a@2": other}, popular=["prod"])
    made.timeline.begin(Means("prod", "a@1"), 0.0)
    made.timeline.begin(Means("prod", "b@1"), 0.0)
    return made


def answered(version: str, *rows: object) -> embed_pb2.EmbedResponse:
    vectors = b"".join(np.asarray(row, dtype="<f4").tobytes() for row in rows)
    return embed_pb2.EmbedResponse(model="a", version=version, dimensions=4, vectors=vectors)


def test_the_named_versions_vectors_are_right(scene: Scene) -> None:
    """In the order of the texts, whatever their length."""
    answer = answered("1", [0, 3, 0, 0], [1, 0, 0, 0])
    assert judge(answer, "prod", [1, 0], scene, 1.0, 2.0) == ""


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (answered("1", [0, 0, 1, 0]), "a@1: cosine 0.000000"),
        (answered("1", [0, 1, 0, 0]), "a@1: cosine 0.000000"),
        (answered("1", [1, 0.01, 0, 0]), "a@1: cosine 0.99995"),
        (answered("1", [float("nan"), 0, 0, 0]), "a@1: cosine nan"),
        (answered("1", [1, 0, 0, 0], [1, 0, 0, 0]), "8 numbers for 1 texts"),
        (answered("2", [0, 0, 1, 0]), "which it did not mean"),
        (answered("9", [1, 0, 0, 0]), "none of ours"),
    ],
    ids=["another version", "another text", "not close", "nan", "too many", "not meant", "unknown"],
)
def test_wrong_answers_are_told(scene: Scene, answer: embed_pb2.EmbedResponse, says: str) -> None:
    """Also vectors that are right for a version that the name did not mean."""
    assert says in judge(answer, "prod", [0], scene, 1.0, 2.0)


# -- both sides of the wire ------------------------------------------------------


def test_events_with_a_gap_and_a_broken_chain_are_told() -> None:
    """Each number follows the one before, each state begins where the last one ended."""
    events = Events()
    for sequence, before, after in (
        (1, pb.MODEL_STATE_REGISTERED, pb.MODEL_STATE_LOADING),
        (2, pb.MODEL_STATE_LOADING, pb.MODEL_STATE_READY),
        (4, pb.MODEL_STATE_LOADING, pb.MODEL_STATE_REGISTERED),
    ):
        change = pb.ModelStateChanged(model="a", version="1", before=before, after=after)
        events.take(pb.Event(sequence=sequence, model_state_changed=change))
    assert [each.partition(":")[0] for each in events.problems] == ["event 4 follows 2", "event 4"]


def test_memory_above_the_budget_is_told() -> None:
    """More models at once; more bytes by how long."""
    memory = Memory()
    for now_s, models, size_bytes in ((0, 2, 200), (1, 3, 201), (4, 2, 300), (5, 2, 100)):
        device = pb.DeviceInfo(
            resident_models=models,
            max_resident_models=2,
            resident_bytes=size_bytes,
            memory_budget_bytes=200,
        )
        memory.take(pb.GetServerInfoResponse(devices=[device]), 1000, now_s)
    assert memory.problems == Counter({"3 models in memory, room for 2": 1})
    assert (memory.most_models, memory.over_s) == (3, 3.0)


def test_what_is_left_when_all_have_left_is_told() -> None:
    """A lease, a waiting item, a request in flight, bytes that nobody has."""
    device = pb.DeviceInfo(resident_models=1, resident_bytes=100)
    there = pb.ResidentModel(
        model="a",
        version="1",
        state=pb.MODEL_STATE_READY,
        residency=pb.Residency(memory_bytes=100),
    )
    assert not [*idle_problems(pb.GetServerInfoResponse(devices=[device], residents=[there]))]
    there.residency.leases = 1
    device.resident_bytes = 101
    info = pb.GetServerInfoResponse(devices=[device], residents=[there], items_in_flight=1)
    told = "\n".join(idle_problems(info))
    for what in ("0 requests, 1 items", "a@1: 1 leases", "1 models of 101 bytes"):
        assert what in told


METRICS = """
shoal_requests_total{code="OK",method="Embed"} 2
shoal_requests_total{code="UNAVAILABLE",method="Embed"} 1
shoal_stream_requests_total{code="OK"} 1
shoal_items_total{model="a"} 3
shoal_tokens_total{model="a"} 12
shoal_events_total{kind="model_loaded"} 1
shoal_model_loads_total{model="a",result="ok"} 1
"""


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger()
    made.rpcs.update({("Embed", "OK"): 2, ("Embed", "UNAVAILABLE"): 1})
    made.stream_requests["OK"] = 1
    made.answered["a@1"], made.items["a@1"], made.tokens["a@1"] = 3, 3, 12
    made.failed[GOING_AWAY] = 1
    return made


@pytest.fixture
def statistics() -> statistics_pb2.GetStatisticsResponse:
    traffic = statistics_pb2.ModelTraffic(requests=4, errors={"UNAVAILABLE": 1}, items=3, tokens=12)
    model = statistics_pb2.ModelStatistics(model="a", version="1", since_start=traffic)
    return statistics_pb2.GetStatisticsResponse(models=[model])


def test_counts_that_agree_are_no_problem(
    ledger: Ledger, statistics: statistics_pb2.GetStatisticsResponse
) -> None:
    """Statistics, metrics and callers say the same."""
    assert not [*count_problems(ledger, statistics, [*read_samples(METRICS)])]


def test_each_count_that_differs_is_told(
    ledger: Ledger, statistics: statistics_pb2.GetStatisticsResponse
) -> None:
    """An answer that the callers never had shows in all that counts answers."""
    ledger.answered["a@1"] -= 1
    ledger.rpcs["Embed", "OK"] -= 1
    told = [*count_problems(ledger, statistics, [*read_samples(METRICS)])]
    assert told == [
        "GetStatistics, answered, a@1: 2 here, 3 at the server",
        "shoal_requests_total, ('Embed', 'OK'): 1 here, 2 at the server",
    ]


def test_events_are_compared_with_metrics_and_with_what_is_there(ledger: Ledger) -> None:
    """A model that was told as loaded, and is nowhere."""
    events, samples = Events(), [*read_samples(METRICS)]
    events.take(pb.Event(sequence=1, model_loaded=pb.ModelLoaded(model="a", version="1")))
    there = pb.GetServerInfoResponse(residents=[pb.ResidentModel(model="a", version="1")])
    assert not [*event_problems(ledger, events, there, samples)]
    told = [*event_problems(ledger, events, pb.GetServerInfoResponse(), samples)]
    assert told == ["model_loaded less model_unloaded, a@1: 1 here, 0 at the server"]


def test_errors_and_traces_in_the_log_are_told() -> None:
    """Whoever wrote them; warnings are not errors."""
    log = "\n".join(
        (
            '{"event": "slow_request", "level": "warning"}',
            '{"event": "unexpected_error", "level": "error"}',
            "shoal: ready grpc=127.0.0.1:1 http=127.0.0.1:2",
            "Traceback (most recent call last):",
        )
    )
    assert [each.split(":")[0] for each in log_problems(log)] == ["the log says"] * 2
