"""Which models are in memory, seen from outside: evictions, leases, pins, budgets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2

from shoal.v1 import model_control_pb2 as control_pb
from tests.running import RunningServer, without_gpu
from tests.server.api.calls import (
    SLOW,
    TIMEOUT_S,
    Connection,
    eventually,
    kept_busy,
    refusal,
    rows,
    unharmed,
)
from tests.tiny_model import TinyModel, make_tiny_model

READY = control_pb.MODEL_STATE_READY
REGISTERED = control_pb.MODEL_STATE_REGISTERED
UNLOADING = control_pb.MODEL_STATE_UNLOADING

UnloadFuture: TypeAlias = "grpc.Future[control_pb.UnloadModelResponse]"

MIB = 1024 * 1024
NAMES = ("a", "b", "c")
BALLAST_BYTES = 8 * MIB


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    """Three models of one repository that give different vectors, by name."""
    root = tmp_path_factory.mktemp("models")
    return {
        name: make_tiny_model(
            root, name, seed=seed, serving={"max_batch_items": 1}, ballast_bytes=BALLAST_BYTES
        )
        for seed, name in enumerate(NAMES)
    }


@contextmanager
def serving(
    models: dict[str, TinyModel], **settings: object
) -> Iterator[tuple[RunningServer, Connection]]:
    """A server of `models` that has none of them in memory, and a connection to it."""
    root = models["a"].root
    with (
        RunningServer(model_dir=root, default_model="a", preload="none", **settings) as running,
        Connection(running.address) as connection,
    ):
        yield running, connection


@pytest.fixture(scope="module")
def roomy(tiny_models: dict[str, TinyModel]) -> Iterator[tuple[RunningServer, Connection]]:
    """Room for two models; who finds none is told so at once."""
    with (
        serving(tiny_models, max_resident_models=2, eviction_wait_s=0, cpu_slots=2) as (running, _),
        unharmed(running) as connection,
    ):
        yield running, connection


@pytest.fixture
def running(roomy: tuple[RunningServer, Connection]) -> RunningServer:
    return roomy[0]


@pytest.fixture
def two(roomy: tuple[RunningServer, Connection]) -> Connection:
    """A connection to a server with room for two models and none in memory."""
    connection = roomy[1]
    for name in ready(connection):
        connection.unload(name)
    return connection


def states(connection: Connection) -> dict[str, int]:
    return {name: model.state for name, model in connection.models().items()}


def ready(connection: Connection) -> set[str]:
    """Names of the models in memory."""
    return {name for name, state in states(connection).items() if state == READY}


def evictions(running: RunningServer) -> dict[str, float]:
    return {name: running.metric("shoal_model_evictions_total", model=name) for name in NAMES}


def loads(running: RunningServer, name: str) -> float:
    return running.metric("shoal_model_loads_total", model=name, result="ok")


def test_nothing_is_evicted_while_there_is_room(two: Connection, running: RunningServer) -> None:
    """A model that fits drives nobody out."""
    before = evictions(running)

    two.embed("red", model="a")
    two.embed("red", model="b")

    assert ready(two) == {"a", "b"}
    assert evictions(running) == before


def test_least_recently_used_is_evicted(two: Connection, running: RunningServer) -> None:
    """The one that was used longest ago goes, not the one that was loaded first."""
    before = evictions(running)
    for name in ("a", "b", "a", "c"):
        two.embed("red", model=name)

    assert ready(two) == {"a", "c"}
    assert evictions(running) == before | {"b": before["b"] + 1}


def test_leased_model_is_never_evicted(two: Connection) -> None:
    """A model in use stays, even where it is the least recently used."""
    two.load("a")
    two.load("b")
    with kept_busy(two, "a") as busy:
        two.embed("red", model="b")

        two.embed("red", model="c")

        assert not busy[-1].done()
        assert ready(two) == {"a", "c"}
        assert busy[0].result().model == "a"


def test_no_room_is_resource_exhausted(two: Connection) -> None:
    """When every model is in use the newcomer is refused, and told to come back."""
    two.load("a")
    two.load("b")
    with kept_busy(two, "a", "b") as busy:
        found = refusal(lambda: two.embed("red", model="c"))

        assert not busy[-1].done()
        assert ready(two) == {"a", "b"}
    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (found.reason, found.domain) == ("OVERLOADED", "shoal")
    assert "c@1" in found.message
    assert found.retry_s is not None
    assert found.retry_s > 0
    two.wait_in_flight(0)
    assert two.embed("red", model="c").model == "c"


def test_pinned_model_is_not_evicted(two: Connection) -> None:
    """A pin holds a model in memory, used or not, until it is taken off."""
    assert two.load("a", pin=True).residency.pinned
    two.load("b", pin=True)

    refused = refusal(lambda: two.embed("red", model="c"))
    two.load("b", pin=False)
    two.embed("red", model="c")

    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ready(two) == {"a", "c"}


def test_pin_is_kept_by_a_load_that_does_not_speak_of_it(two: Connection) -> None:
    """LoadModel without `pin` leaves it as it is."""
    two.load("a", pin=True)

    assert two.load("a").residency.pinned
    assert not two.load("b").residency.pinned


def test_cold_model_is_loaded_once(two: Connection, running: RunningServer) -> None:
    """However many wait for it, and whatever they ask of it."""
    before = loads(running, "c")

    pending = [two.start("red", model="c") for _ in range(64)]
    answers = {future.result().vectors for future in pending}

    assert len(answers) == 1
    assert loads(running, "c") == before + 1


def test_load_and_unload_are_idempotent(two: Connection, running: RunningServer) -> None:
    """What is done already is done again without harm, and answered the same."""
    before = loads(running, "a")

    states = [two.load("a").state, two.load("a").state, two.unload("a").state,
              two.unload("a").state]  # fmt: skip

    assert states == [READY, READY, REGISTERED, REGISTERED]
    assert loads(running, "a") == before + 1


def test_loaded_model_is_described(two: Connection) -> None:
    """Device, bytes and times of a model in memory; nothing of the kind for others."""
    residency = two.load("a").residency

    assert residency.device == "cpu"
    assert residency.memory_bytes >= BALLAST_BYTES
    assert residency.leases == 0
    assert residency.load_duration.ToMicroseconds() > 0
    assert residency.loaded_at.ToNanoseconds() <= residency.last_used_at.ToNanoseconds()
    assert not two.models()["b"].HasField("residency")


def test_unload_waits_for_leases(two: Connection, tiny_models: dict[str, TinyModel]) -> None:
    """Who uses the model gets its answer; then the memory is free, then the answer comes."""
    two.load("a")
    slow = two.start(SLOW, model="a")
    two.wait_in_flight(1)

    unloaded = two.unload("a")

    assert slow.done()
    assert unloaded.state == REGISTERED
    np.testing.assert_allclose(rows(slow.result()), [tiny_models["a"].vector(SLOW)], atol=1e-6)


def unloading(connection: Connection, timeout: float = TIMEOUT_S) -> UnloadFuture:
    """A patient unload of "a", under way."""
    request = control_pb.UnloadModelRequest(model="a")
    future: UnloadFuture = connection.control.UnloadModel.future(request, timeout)
    eventually(lambda: states(connection)["a"] == UNLOADING, "a is unloading")
    return future


def test_request_for_a_model_that_leaves_brings_it_back(two: Connection) -> None:
    """Unloading refuses nobody: who comes meanwhile waits, and it is loaded anew."""
    two.load("a")
    with kept_busy(two, "a"):
        future = unloading(two)
        late = two.start("red", model="a")
    assert late.result().timings.load_us > 0
    assert future.done()
    assert ready(two) == {"a"}


def test_unload_that_takes_too_long_leaves_the_model(
    two: Connection, running: RunningServer
) -> None:
    """A caller whose deadline passes undoes its wish: the model serves on."""
    two.load("a")
    before = loads(running, "a")
    with kept_busy(two, "a") as busy:
        found = refusal(unloading(two, timeout=0.5).result)

        assert found.code is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: states(two)["a"] == READY, "a is ready again")
        assert not busy[-1].done()
    assert two.embed("red", model="a").timings.load_us == 0
    assert loads(running, "a") == before


def test_force_ends_what_waits(two: Connection) -> None:
    """After `force_after` the requests that are left fail with UNAVAILABLE."""
    two.load("a")
    with kept_busy(two, "a") as busy:
        two.unload("a", force_after=duration_pb2.Duration(nanos=1_000_000))

        failed = [future for future in busy if future.exception() is not None]
        assert len(failed) > len(busy) / 2
        for future in failed:
            found = refusal(future.result)
            assert found.code is grpc.StatusCode.UNAVAILABLE
            assert (found.reason, found.domain) == ("UNAVAILABLE", "shoal")
            assert "by force" in found.message
    assert states(two)["a"] == REGISTERED


def test_force_overrules_an_unload_that_waits(two: Connection) -> None:
    """A patient unload does not stand in the way of an impatient one."""
    two.load("a")
    with kept_busy(two, "a") as busy:
        patient = unloading(two)

        two.unload("a", force_after=duration_pb2.Duration())

        assert busy[-1].exception() is not None
        assert patient.result().model.state == REGISTERED


def test_unload_goes_on_when_another_gives_up(two: Connection) -> None:
    """One caller's deadline undoes its own wish, not that of another."""
    two.load("a")
    with kept_busy(two, "a"):
        hasty = unloading(two, timeout=0.5)
        patient = unloading(two)

        assert refusal(hasty.result).code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert states(two)["a"] == UNLOADING

    assert patient.result().model.state == REGISTERED


def test_longest_duration_is_a_duration(two: Connection) -> None:
    """The largest google.protobuf.Duration waits for the leases, as none does."""
    two.load("a")

    two.unload("a", force_after=duration_pb2.Duration(seconds=315_576_000_000, nanos=999_999_999))

    assert states(two)["a"] == REGISTERED


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_device_that_is_not_there(two: Connection, device: str) -> None:
    """FAILED_PRECONDITION that says why, and nothing changes."""
    found = refusal(lambda: two.load("a", device=device))

    assert found.code is grpc.StatusCode.FAILED_PRECONDITION
    assert device in found.message
    assert "onnx" in found.message.lower() or "nvidia" in found.message.lower()
    assert states(two)["a"] == REGISTERED
    assert two.load("a", device="cpu").residency.device == "cpu"
    assert two.load("a", device="auto").residency.device == "cpu"


@without_gpu
def test_manifest_that_wants_what_is_not_there(
    two: Connection, tiny_models: dict[str, TinyModel]
) -> None:
    """A model that asks for a GPU is not served from the CPU in silence."""
    make_tiny_model(tiny_models["a"].root, "wants-cuda", serving={"device": "cuda"})

    found = refusal(lambda: two.embed("red", model="wants-cuda"))

    assert found.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "cuda" in found.message


def test_manifest_pins_a_model_however_it_is_loaded(
    two: Connection, tiny_models: dict[str, TinyModel]
) -> None:
    """`pinned = true` holds for a model that a request brought in, too."""
    make_tiny_model(tiny_models["a"].root, "pinned", serving={"pinned": True})

    two.embed("red", model="pinned")

    residency = two.models()["pinned"].residency
    two.unload("pinned")
    assert residency.pinned


def test_new_version_is_served_after_an_explicit_load(
    two: Connection, tiny_models: dict[str, TinyModel]
) -> None:
    """A version that appears changes nothing until somebody says so."""
    root = tiny_models["a"].root
    old = make_tiny_model(root, "versioned", version="1", seed=11)
    assert two.embed("red", model="versioned").version == "1"
    new = make_tiny_model(root, "versioned", version="10", seed=12)

    still = two.embed("red", model="versioned")
    two.load("versioned")
    after = two.embed("red", model="versioned")
    by_version = two.embed("red", model="versioned@1")

    assert (still.version, after.version, by_version.version) == ("1", "10", "1")
    np.testing.assert_allclose(rows(after), [new.vector("red")], atol=1e-6)
    np.testing.assert_allclose(rows(by_version), [old.vector("red")], atol=1e-6)
    two.unload("versioned")
    two.unload("versioned@1")


def test_model_larger_than_the_budget_evicts_nobody(tiny_models: dict[str, TinyModel]) -> None:
    """FAILED_PRECONDITION that names size and budget, before anyone is driven out for it."""
    big = make_tiny_model(tiny_models["a"].root, "big", ballast_bytes=64 * MIB)
    with serving(tiny_models, memory_budget_bytes=48 * MIB) as (running, connection):
        connection.embed("red", model="a")

        found = refusal(lambda: connection.embed("red", model=big.name))

        assert found.code is grpc.StatusCode.FAILED_PRECONDITION
        assert found.domain == "shoal"
        assert f"{48 * MIB}" in found.message
        assert found.metadata["limit"] == f"{48 * MIB}"
        assert int(found.metadata["value"]) >= 64 * MIB
        assert ready(connection) == {"a"}
        assert sum(evictions(running).values()) == 0


def test_200_alternating_requests_stay_within_the_budget(tiny_models: dict[str, TinyModel]) -> None:
    """Three models, room for two: right vectors, and never more in memory than allowed."""
    budget = 40 * MIB
    choose = random.Random(20)
    expected = {name: tiny_models[name].vector("red blue") for name in NAMES}
    with (
        serving(
            tiny_models, max_resident_models=2, memory_budget_bytes=budget, eviction_wait_s=30
        ) as (running, _),
        unharmed(running) as connection,
    ):
        for _ in range(25):
            wanted = [choose.choice(NAMES) for _ in range(8)]
            pending = [connection.start("red blue", model=name) for name in wanted]
            seen = [connection.info().devices[0]]
            for name, future in zip(wanted, pending, strict=True):
                np.testing.assert_allclose(rows(future.result()), [expected[name]], atol=1e-6)
                seen.append(connection.info().devices[0])
            assert max(device.resident_models for device in seen) <= 2
            assert max(device.resident_bytes for device in seen) <= budget
        assert sum(evictions(running).values()) > 10


def test_room_for_one_serves_all(tiny_models: dict[str, TinyModel]) -> None:
    """Models that drive each other out still get their turn to answer."""
    with (
        serving(tiny_models, max_resident_models=1, eviction_wait_s=30) as (running, _),
        unharmed(running) as connection,
    ):
        pending = [connection.start("red", model=NAMES[turn % 3]) for turn in range(60)]

        assert [future.result().model for future in pending] == [*NAMES] * 20


def test_waits_for_room_until_a_lease_comes_back(tiny_models: dict[str, TinyModel]) -> None:
    """With patience, a model in use makes room when it is done."""
    with serving(tiny_models, max_resident_models=1, eviction_wait_s=30) as (_, connection):
        connection.load("a")
        with kept_busy(connection, "a"):
            waiting = connection.start("red", model="b")

        assert waiting.result().model == "b"


@pytest.mark.parametrize(("preload", "expected"), [("b,c", {"b", "c"}), (",b", {"a", "b"})])
def test_preload(tiny_models: dict[str, TinyModel], preload: str, expected: set[str]) -> None:
    """What is named is in memory when the server is ready; an empty name is the default."""
    root = tiny_models["a"].root
    with (
        RunningServer(model_dir=root, default_model="a", preload=preload) as running,
        Connection(running.address) as connection,
    ):
        assert ready(connection) == expected
