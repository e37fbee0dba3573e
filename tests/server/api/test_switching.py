"""Names get other versions while requests go on; what was acknowledged outlasts the server."""

from __future__ import annotations

import random
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from shoal.v1 import embed_pb2 as pb
from shoal.v1 import model_control_pb2 as control_pb
from shoal.v1 import versions_pb2 as versions_pb
from tests.running import RunningServer
from tests.tiny_model import TinyModel, make_tiny_model

from .calls import (
    SLOW,
    TIMEOUT_S,
    Connection,
    assert_idle,
    assert_no_surprise,
    eventually,
    refusal,
    rows,
)

TEXT = "red orange"
CALLERS = 16
CHANGES = 60


class Switchboard(Connection):
    """A connection that also steers names."""

    def switch(self, alias: str, *targets: str, **fields: bool) -> versions_pb.SwitchModelResponse:
        """Let `alias` stand for targets: `name@version` or `name@version=weight`."""
        parts = [target.partition("=") for target in targets]
        request = versions_pb.SwitchModelRequest(
            alias=alias,
            targets=[
                versions_pb.AliasTarget(model=model, weight=int(weight) if weight else None)
                for model, _, weight in parts
            ],
            **fields,
        )
        return self.control.SwitchModel(request, timeout=TIMEOUT_S)

    def roll_back(self, alias: str, revision: int | None = None) -> versions_pb.Alias:
        request = versions_pb.RollbackModelRequest(alias=alias, revision=revision)
        return self.control.RollbackModel(request, timeout=TIMEOUT_S).alias

    def pin(self, model: str, version: str = "") -> str:
        request = versions_pb.SetVersionPolicyRequest(model=model, version=version)
        return self.control.SetVersionPolicy(request, timeout=TIMEOUT_S).version

    def aliases(self) -> dict[str, list[str]]:
        answer = self.control.ListAliases(versions_pb.ListAliasesRequest(), timeout=TIMEOUT_S)
        return {alias.name: [each.model for each in alias.targets] for alias in answer.aliases}

    def delete_alias(self, alias: str) -> None:
        self.control.DeleteAlias(versions_pb.DeleteAliasRequest(alias=alias), timeout=TIMEOUT_S)

    def served_by(self, model: str, **fields: str) -> str:
        """The version that answered."""
        answer = self.embed(TEXT, model=model, **fields)
        return f"{answer.model}@{answer.version}"

    def get(self, model: str) -> control_pb.ModelInfo:
        request = control_pb.GetModelRequest(model=model)
        return self.control.GetModel(request, timeout=TIMEOUT_S).model


@pytest.fixture
def models(tmp_path: Path) -> dict[str, TinyModel]:
    """Versions of one model that give different vectors, by `name@version`."""
    root = tmp_path / "models"
    return {
        f"tiny@{version}": make_tiny_model(root, version=version, seed=seed)
        for seed, version in enumerate(("1", "2", "3"))
    }


@pytest.fixture
def server(models: dict[str, TinyModel], tmp_path: Path) -> Iterator[RunningServer]:
    make_tiny_model(
        tmp_path / "models", "broken", replaced={"model.onnx": b"no graph", "tokenizer.json": b"{}"}
    )
    with RunningServer(model_dir=tmp_path / "models", preload="none", default_model="prod") as it:
        yield it


@pytest.fixture
def board(server: RunningServer) -> Iterator[Switchboard]:
    with Switchboard(server.address) as connection:
        yield connection
    assert_no_surprise(server)


def is_loaded(board: Switchboard, model: str) -> bool:
    return board.get(model).HasField("residency")


def test_an_alias_serves_what_it_was_switched_to(
    board: Switchboard, models: dict[str, TinyModel]
) -> None:
    """Also where it is the default model's name; the answer names the version that ran."""
    for version in ("tiny@1", "tiny@3"):
        board.switch("prod", version)
        for name in ("prod", ""):
            answer = board.embed(TEXT, model=name)
            assert f"{answer.model}@{answer.version}" == version
            np.testing.assert_allclose(rows(answer)[0], models[version].vector(TEXT), atol=1e-6)
            assert answer.timings.load_us == 0


def test_a_target_without_a_version_is_the_one_that_it_means_then(board: Switchboard) -> None:
    """The alias does not follow the name: what it stands for changes by a switch only."""
    board.pin("tiny", "2")
    board.switch("prod", "tiny")
    board.pin("tiny", "1")
    assert board.served_by("prod") == "tiny@2"


def test_a_version_that_can_not_be_loaded_leaves_the_old_one_serving(board: Switchboard) -> None:
    """The refusal says why; alias and history are as before."""
    board.switch("prod", "tiny@1")
    before = board.aliases()
    assert refusal(lambda: board.switch("prod", "broken@1")).code is (
        grpc.StatusCode.FAILED_PRECONDITION
    )
    assert refusal(lambda: board.switch("prod", "tiny@9")).code is grpc.StatusCode.NOT_FOUND
    assert board.aliases() == before
    assert board.served_by("prod") == "tiny@1"


def test_the_old_version_is_not_evicted_for_the_new_one(
    models: dict[str, TinyModel], tmp_path: Path
) -> None:
    """Where there is no memory for both, the switch is refused and nobody waits for a load."""
    root = tmp_path / "models"
    with (
        RunningServer(
            model_dir=root, preload="none", max_resident_models=1, eviction_wait_s=0.05
        ) as small,
        Switchboard(small.address) as board,
    ):
        board.switch("prod", "tiny@1")
        refused = refusal(lambda: board.switch("prod", "tiny@2"))
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = board.embed(TEXT, model="prod")
        assert (answer.version, answer.timings.load_us) == ("1", 0)
        assert_no_surprise(small)


def test_changes_of_one_alias_take_turns(board: Switchboard) -> None:
    """Of switches that come together each is a revision, and the last of them serves."""
    requests = [
        versions_pb.SwitchModelRequest(
            alias="prod", targets=[versions_pb.AliasTarget(model=f"tiny@{1 + number % 3}")]
        )
        for number in range(12)
    ]
    under_way = [board.control.SwitchModel.future(each, TIMEOUT_S) for each in requests]
    for each in under_way:
        each.result()
    (alias,) = board.control.ListAliases(
        versions_pb.ListAliasesRequest(), timeout=TIMEOUT_S
    ).aliases
    numbers = [each.number for each in alias.history]
    assert numbers == list(range(1, len(numbers) + 1))
    assert board.served_by("prod") == alias.history[-1].targets[0].model


def test_rolling_back(board: Switchboard) -> None:
    """To what served before, further back, or to a revision; the history tells all of it."""
    for version in ("tiny@1", "tiny@2", "tiny@3"):
        board.switch("prod", version)
    board.roll_back("prod")
    assert board.served_by("prod") == "tiny@2"
    board.roll_back("prod")
    assert board.served_by("prod") == "tiny@1"
    history = board.roll_back("prod", revision=3).history
    assert board.served_by("prod") == "tiny@3"
    assert [(each.number, each.restores) for each in history] == [
        *((1, 0), (2, 0), (3, 0)),
        *((4, 2), (5, 1), (6, 3)),
    ]
    assert refusal(lambda: board.roll_back("nobody")).code is grpc.StatusCode.NOT_FOUND


def test_what_no_name_means_any_longer_is_unloaded(board: Switchboard) -> None:
    """Unless it is pinned, another alias means it, or the caller wants it kept."""
    board.switch("prod", "tiny@1")
    board.switch("prod", "tiny@2")
    eventually(lambda: not is_loaded(board, "tiny@1"), "the old version unloaded")
    board.switch("other", "tiny@2")
    board.switch("prod", "tiny@3", keep_previous=True)
    board.switch("prod", "tiny@1")
    eventually(lambda: not is_loaded(board, "tiny@3"), "the old version unloaded")
    assert is_loaded(board, "tiny@2")


def test_requests_in_flight_finish_on_the_version_that_they_began_with(
    board: Switchboard, models: dict[str, TinyModel]
) -> None:
    """It is released after the last of them."""
    board.switch("prod", "tiny@1")
    under_way = [board.start(SLOW, model="prod") for _ in range(4)]
    board.wait_in_flight(len(under_way))
    board.switch("prod", "tiny@2")
    assert board.served_by("prod") == "tiny@2"
    for future in under_way:
        answer = future.result()
        assert answer.version == "1"
        np.testing.assert_allclose(rows(answer)[0], models["tiny@1"].vector(SLOW), atol=1e-6)
    eventually(lambda: not is_loaded(board, "tiny@1"), "the old version unloaded")


def test_names_that_an_alias_can_not_have(board: Switchboard) -> None:
    """A model's name would hide the model; an alias of an alias would change with it."""
    assert refusal(lambda: board.switch("tiny", "tiny@1")).code is (
        grpc.StatusCode.FAILED_PRECONDITION
    )
    assert refusal(lambda: board.switch("../x", "tiny@1")).fields == ("alias",)
    board.switch("prod", "tiny@1")
    assert refusal(lambda: board.switch("other", "prod")).fields == ("targets",)
    assert refusal(lambda: board.switch("other", "tiny@1=0")).fields == ("targets[0].weight",)
    assert refusal(lambda: board.switch("other")).fields == ("targets",)


def test_too_many_targets_are_refused_with_how_many(board: Switchboard) -> None:
    """Before any of them is looked up."""
    bad = refusal(lambda: board.switch("prod", *["nobody"] * 40))
    assert bad.fields == ("targets",)
    assert "40 targets; an alias has 1 to 16" in bad.message


def test_an_alias_that_is_deleted_means_nothing(board: Switchboard) -> None:
    """Its callers hear that there is no such model."""
    board.switch("other", "tiny@1")
    board.delete_alias("other")
    assert refusal(lambda: board.embed(TEXT, model="other")).code is grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: board.delete_alias("other")).code is grpc.StatusCode.NOT_FOUND


def test_a_bare_name_means_the_latest_unless_it_is_pinned(board: Switchboard) -> None:
    """`name@version` means that version all the time; the model says what it is pinned to."""
    assert board.served_by("tiny") == "tiny@3"
    assert board.pin("tiny", "1") == "1"
    answer = board.embed(TEXT, model="tiny")
    assert (answer.version, answer.timings.load_us) == ("1", 0)
    assert board.served_by("tiny@2") == "tiny@2"
    assert (board.get("tiny").version, board.get("tiny").pinned_version) == ("1", "1")
    assert refusal(lambda: board.pin("tiny", "9")).code is grpc.StatusCode.NOT_FOUND
    assert board.pin("tiny") == "3"
    assert board.served_by("tiny") == "tiny@3"


def test_a_rescan_tells_what_is_new(
    board: Switchboard, server: RunningServer, tmp_path: Path
) -> None:
    """Names not in memory mean it at once; those in memory serve on until they are loaded."""
    root = tmp_path / "models"
    eventually(
        lambda: any("models_read" in line for line in server.output), "the server's own first look"
    )
    make_tiny_model(root, "cold")
    board.load("tiny")
    assert board.served_by("cold") == "cold@1"
    board.unload("cold")

    def discover() -> versions_pb.DiscoverModelsResponse:
        request = versions_pb.DiscoverModelsRequest()
        return board.control.DiscoverModels(request, timeout=TIMEOUT_S)

    assert list(discover().added) == ["cold"]
    assert discover() == versions_pb.DiscoverModelsResponse()
    for name, version in (("new", "1"), ("tiny-next", "4"), ("cold-next", "2")):
        make_tiny_model(root, name, version=version, seed=9)
    (root / "tiny-next" / "4").rename(root / "tiny" / "4")
    (root / "cold-next" / "2").rename(root / "cold" / "2")
    shutil.rmtree(root / "tiny-next")
    shutil.rmtree(root / "cold-next")
    shutil.rmtree(root / "broken")
    assert discover() == versions_pb.DiscoverModelsResponse(
        added=["new"], removed=["broken"], changed=["cold", "tiny"], outdated=["tiny"]
    )
    assert (board.served_by("tiny"), board.served_by("cold")) == ("tiny@3", "cold@2")
    board.load("tiny")
    assert board.served_by("tiny") == "tiny@4"


def test_a_version_that_was_prepared_anew_is_served_after_a_rescan(
    board: Switchboard, tmp_path: Path
) -> None:
    """Its files are other ones under the same name; asked for by whatever name."""
    root = tmp_path / "models"
    for name in ("tiny@1", "tiny@3", "tiny"):
        board.embed(TEXT, model=name)
    for version in ("1", "3"):
        board.unload(f"tiny@{version}")
        shutil.rmtree(root / "tiny" / version)
        make_tiny_model(root, version=version, seed=7)
    board.control.DiscoverModels(versions_pb.DiscoverModelsRequest(), timeout=TIMEOUT_S)
    for name in ("tiny@1", "tiny@3", "tiny"):
        board.embed(TEXT, model=name)


def test_what_an_alias_means_is_unloaded_though_its_files_are_gone(
    board: Switchboard, tmp_path: Path
) -> None:
    """It serves until then, so it can also be taken out."""
    board.switch("prod", "tiny@1")
    shutil.rmtree(tmp_path / "models" / "tiny")
    assert board.served_by("prod") == "tiny@1"
    board.unload("prod")
    assert not board.info().residents


def test_versions_share_an_aliases_traffic(board: Switchboard) -> None:
    """Both serve; a caller with a key stays with one, and both have callers."""
    board.switch("prod", "tiny@1=1", "tiny@2=1")
    drawn = {board.served_by("prod") for _ in range(64)}
    assert drawn == {"tiny@1", "tiny@2"}
    by_key = {key: board.served_by("prod", routing_key=key) for key in map(str, range(64))}
    assert set(by_key.values()) == drawn
    assert all(board.served_by("prod", routing_key=key) == by_key[key] for key in by_key)


def test_what_names_mean_outlasts_a_killed_server(
    board: Switchboard, server: RunningServer, tmp_path: Path
) -> None:
    """Aliases, their history, weights and pins, acknowledged a moment before kill -9."""
    board.switch("prod", "tiny@1")
    board.switch("canary", "tiny@1=3", "tiny@2=1")
    board.pin("tiny", "2")
    board.switch("prod", "tiny@3")
    before = board.control.ListAliases(versions_pb.ListAliasesRequest(), timeout=TIMEOUT_S)
    server.signal(signal.SIGKILL)
    server.wait()
    with (
        RunningServer(model_dir=tmp_path / "models", preload="none") as again,
        Switchboard(again.address) as later,
    ):
        after = later.control.ListAliases(versions_pb.ListAliasesRequest(), timeout=TIMEOUT_S)
        assert after == before
        assert later.served_by("prod") == "tiny@3"
        assert later.served_by("tiny") == "tiny@2"
        later.roll_back("prod")
        assert later.served_by("prod") == "tiny@1"


def test_a_second_server_on_the_repository_says_that_it_keeps_nothing(
    board: Switchboard, server: RunningServer, tmp_path: Path
) -> None:
    """It begins with what the first one wrote; its own changes are its own."""
    board.switch("prod", "tiny@1")
    with (
        RunningServer(model_dir=tmp_path / "models", preload="none") as second,
        Switchboard(second.address) as other,
    ):
        assert "another server" in other.info().state_problem
        assert other.served_by("prod") == "tiny@1"
        other.switch("prod", "tiny@2")
        assert other.served_by("prod") == "tiny@2"
    assert board.info().state_problem == ""
    assert board.served_by("prod") == "tiny@1"


def test_watchers_hear_of_every_change(board: Switchboard) -> None:
    """Who did what to which name, in order, also to those who watch one model only."""
    request = control_pb.WatchEventsRequest(
        models=["tiny"], kinds=[control_pb.EVENT_KIND_NAME_SWITCHED]
    )
    watch = board.control.WatchEvents(request, timeout=TIMEOUT_S)
    assert next(watch).HasField("mark")
    board.switch("prod", "tiny@1")
    board.switch("prod", "tiny@2=9", "tiny@3=1")
    board.roll_back("prod")
    board.pin("tiny", "3")
    board.delete_alias("prod")
    events = [each.event.name_switched for each in (next(watch) for _ in range(5))]
    watch.cancel()
    assert [(each.name, each.cause, [*each.before], [*each.after]) for each in events] == [
        ("prod", versions_pb.SWITCH_CAUSE_SWITCH, [], ["tiny@1"]),
        ("prod", versions_pb.SWITCH_CAUSE_SWITCH, ["tiny@1"], ["tiny@2", "tiny@3"]),
        ("prod", versions_pb.SWITCH_CAUSE_ROLLBACK, ["tiny@2", "tiny@3"], ["tiny@1"]),
        ("tiny", versions_pb.SWITCH_CAUSE_POLICY, [], ["tiny@3"]),
        ("prod", versions_pb.SWITCH_CAUSE_DELETED, ["tiny@1"], []),
    ]
    weights = [([*each.before_weights], [*each.after_weights]) for each in events]
    assert weights == [([], []), ([], [9, 1]), ([9, 1], []), ([], []), ([], [])]


@dataclass
class Seen:
    """What the callers of a soak met."""

    answers: int = 0
    versions: set[str] = field(default_factory=set)


def test_a_soak_of_switches_under_load(
    board: Switchboard, server: RunningServer, models: dict[str, TinyModel]
) -> None:
    """No request fails or waits for a load, and each vector is the named version's.

    Switches, rollbacks and pins at random, while callers ask for an alias, a weighted
    alias and a bare name.
    """
    rng = random.Random(4)
    board.switch("prod", "tiny@1")
    board.switch("shared", "tiny@1=1", "tiny@2=1")
    board.pin("tiny", "1")
    board.load("tiny")
    ended = threading.Event()

    def call(number: int) -> Seen:
        seen = Seen()
        with Connection(server.address) as connection:
            while not ended.is_set():
                name = ("prod", "shared", "tiny")[(number + seen.answers) % 3]
                answer: pb.EmbedResponse = connection.embed(TEXT, model=name)
                version = f"{answer.model}@{answer.version}"
                np.testing.assert_allclose(rows(answer)[0], models[version].vector(TEXT), atol=1e-6)
                assert answer.timings.load_us == 0, (name, version)
                seen.answers += 1
                seen.versions.add(version)
        return seen

    with ThreadPoolExecutor(CALLERS) as pool:
        calls = [pool.submit(call, number) for number in range(CALLERS)]
        try:
            for _ in range(CHANGES):
                change(board, rng)
        finally:
            ended.set()
        seen = [each.result() for each in calls]
    assert all(each.answers for each in seen)
    assert set().union(*(each.versions for each in seen)) == set(models)
    assert_idle(board)


def change(board: Switchboard, rng: random.Random) -> None:
    """One change of what a name means; going back may find nothing to go back to."""
    one, other = rng.sample(["1", "2", "3"], 2)
    match rng.choice(["switch", "share", "back", "pin"]):
        case "switch":
            board.switch("prod", f"tiny@{one}")
        case "share":
            board.switch("shared", f"tiny@{one}={rng.randint(1, 9)}", f"tiny@{other}=5")
        case "pin":
            board.pin("tiny", one)
        case _:
            try:
                board.roll_back(rng.choice(["prod", "shared"]))
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)
                assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
