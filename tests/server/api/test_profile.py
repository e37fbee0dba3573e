"""ProfileModel and GetProfile: on the real session, beside requests, kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal.v1 import model_control_pb2 as control_pb
from shoal.v1 import profile_pb2 as pb
from shoal.v1 import settings_pb2 as settings_pb
from tests.running import RunningServer
from tests.tiny_model import MAX_TOKENS, add_tiny_variant, make_tiny_model

from .calls import TIMEOUT_S, Connection, eventually, refusal, unharmed

QUICK = {"batch_sizes": [1, 4], "lengths": [2, 8], "runs": 3}
# Runs of tiny models take some tens of microseconds; with the rests this takes minutes.
ENDLESS: dict[str, Any] = {"runs": 100, "max_share": 0.0005}


class ProfileConnection(Connection):
    """A connection that profiles models, too."""

    def profiling(self, model: str = "tiny", **fields: Any) -> Any:
        request = pb.ProfileModelRequest(model=model, **fields)
        return self.control.ProfileModel(request, timeout=TIMEOUT_S)

    def profile(self, model: str = "tiny", **fields: Any) -> pb.ModelProfile:
        *_, last = self.profiling(model, **{**QUICK, **fields})
        return last.profile  # type: ignore[no-any-return]

    def set(self, **settings: str) -> dict[str, str]:
        """Change settings; returns their values before."""
        ask = settings_pb.UpdateSettingsRequest()
        now = self.control.UpdateSettings(ask, timeout=TIMEOUT_S).settings
        change = settings_pb.UpdateSettingsRequest(settings=settings)
        self.control.UpdateSettings(change, timeout=TIMEOUT_S)
        return {each.name: each.value for each in now if each.name in settings}

    def kept(self, model: str = "tiny") -> pb.ModelProfile:
        request = pb.GetProfileRequest(model=model)
        return self.control.GetProfile(request, timeout=TIMEOUT_S).profile


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = make_tiny_model(tmp_path_factory.mktemp("models")).root
    with RunningServer(model_dir=root, default_model="tiny", preload="none") as running:
        yield running


@pytest.fixture
def profiler(server: RunningServer) -> Iterator[ProfileConnection]:
    with unharmed(server), ProfileConnection(server.address) as connection:
        yield connection


def shapes(cells: Any) -> list[tuple[int, int]]:
    return [(each.tokens_per_item, each.items) for each in cells]


def test_a_sweep_is_told_as_it_goes_and_then_whole(profiler: ProfileConnection) -> None:
    """A plan, each batch once, and a profile of all of them, in the order of the table."""
    plan, *batches, last = profiler.profiling(
        batch_sizes=[4, 1], lengths=[8, 2], max_batch_tokens=16, runs=3
    )
    kinds = [each.WhichOneof("answer") for each in (plan, *batches, last)]
    assert kinds == ["plan", "skipped", "cell", "cell", "cell", "profile"]
    assert plan.plan.cells == len(batches)
    profile = last.profile
    assert shapes(profile.cells) == [(2, 1), (2, 4), (8, 1)]
    assert shapes(profile.skipped) == [(8, 4)]
    told = [each.cell for each in batches if each.HasField("cell")]
    assert sorted(told, key=lambda cell: (cell.tokens_per_item, cell.items)) == list(profile.cells)
    assert (profile.model, profile.version, profile.device) == ("tiny", "1", "cpu")


def test_what_is_told_of_a_batch_goes_together(profiler: ProfileConnection) -> None:
    """Throughput is that of the median; the share of the time was kept to."""
    profile = profiler.profile(max_share=0.1)
    for cell in profile.cells:
        assert cell.runs == 3
        assert 0 < cell.least_us <= cell.p50_us <= cell.p95_us
        # The median travels in whole microseconds, and is some tens of them.
        assert cell.items_per_s == pytest.approx(cell.items / cell.p50_us * 1e6, rel=0.1)
        assert cell.tokens_per_s == pytest.approx(cell.items_per_s * cell.tokens_per_item)
        assert cell.HasField("memory_bytes")
    held_s, took_s = (each.ToNanoseconds() / 1e9 for each in (profile.running, profile.duration))
    assert 0 < held_s <= 0.1 * took_s
    # Runs of microseconds may be nothing but noise; then it says so.
    assert profile.HasField("suggestion") is not bool(profile.no_suggestion)
    assert profile.suggestion.max_batch_items in (0, 1, 4)
    assert profile.suggestion.max_batch_tokens in (0, 2, 8, 32)


def test_the_usual_sweep_is_made_of_the_limits(profiler: ProfileConnection) -> None:
    """Of the model's, where it has some, and up to its longest text."""
    profile = profiler.profile(batch_sizes=[], lengths=[], max_batch_tokens=0)
    assert {cell.tokens_per_item for cell in profile.cells} == {8, MAX_TOKENS}
    assert max(cell.items for cell in profile.cells) == 2 * profile.batch_items_limit


def test_it_is_kept_with_the_model(tmp_path: Path) -> None:
    """Over a kill; not for another precision, which gets its own."""
    tiny = make_tiny_model(tmp_path / "models")
    add_tiny_variant(tiny)
    settings: dict[str, Any] = {"model_dir": tiny.root, "default_model": "tiny", "preload": "none"}
    with RunningServer(**settings) as first, ProfileConnection(first.address) as profiler:
        assert refusal(profiler.kept).code is grpc.StatusCode.FAILED_PRECONDITION
        profile = profiler.profile()
        assert profiler.kept() == profile
        first.process.kill()
        first.wait()
    with RunningServer(**settings) as again, ProfileConnection(again.address) as later:
        assert later.kept("tiny@1") == profile
    with (
        RunningServer(precision="int8", **settings) as int8,
        unharmed(int8),
        ProfileConnection(int8.address) as other,
    ):
        refused = refusal(other.kept)
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
        assert "there is one of fp32 on cpu" in refused.message
        assert other.profile().precision == "int8"
        assert other.kept().precision == "int8"


def test_an_event_tells_of_it(profiler: ProfileConnection) -> None:
    """With what is suggested."""
    request = control_pb.WatchEventsRequest(
        models=["tiny"], kinds=[control_pb.EVENT_KIND_MODEL_PROFILED]
    )
    watch = profiler.control.WatchEvents(request, timeout=TIMEOUT_S)
    assert next(watch).HasField("mark")
    profile = profiler.profile()
    event = next(each.event for each in watch if each.HasField("event"))
    watch.cancel()
    told = event.model_profiled
    assert (told.model, told.cells, told.precision) == ("tiny", 4, "fp32")
    assert told.max_batch_items == profile.suggestion.max_batch_items
    assert told.max_batch_tokens == profile.suggestion.max_batch_tokens


def test_it_counts_as_nobodys_use(profiler: ProfileConnection, server: RunningServer) -> None:
    """Neither in a metric of batches nor among the uses of the session."""

    def counted() -> tuple[float, int]:
        batches = server.metric("shoal_batch_items_count", model="tiny")
        return batches, profiler.models()["tiny"].residency.uses

    batches, uses = counted()
    profiler.profile()
    assert counted() == (batches, uses)


def test_one_at_a_time_and_a_caller_that_leaves_ends_it(profiler: ProfileConnection) -> None:
    """Another is refused meanwhile and can begin then; nothing of the first one is kept."""
    going_on = profiler.profiling(**ENDLESS)
    assert next(going_on).HasField("plan")
    refused = refusal(lambda: profiler.profile())
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.retry_s is not None
    going_on.cancel()
    eventually(lambda: _can_begin(profiler), "the next one can begin")
    assert len(profiler.kept().cells) == 4


def _can_begin(profiler: ProfileConnection) -> bool:
    try:
        profiler.profile()
    except grpc.RpcError:
        return False
    return True


def test_requests_are_served_and_unloading_does_not_wait(profiler: ProfileConnection) -> None:
    """The sweep ends and says why."""
    going_on = profiler.profiling(**ENDLESS)
    assert next(going_on).HasField("plan")
    assert profiler.embed("red blue").vectors
    assert not profiler.unload("tiny").HasField("residency")
    refused = refusal(lambda: list(going_on))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "left memory" in refused.message


def test_a_server_that_stops_ends_it(tmp_path: Path) -> None:
    """At once, and not when it is done."""
    root = make_tiny_model(tmp_path / "models").root
    with (
        RunningServer(model_dir=root, preload="none") as stopping,
        ProfileConnection(stopping.address) as profiler,
    ):
        going_on = profiler.profiling(**ENDLESS)
        assert next(going_on).HasField("plan")
        assert stopping.stop() == 0
        assert refusal(lambda: list(going_on)).code is grpc.StatusCode.UNAVAILABLE


def test_the_largest_share_may_be_asked_for(profiler: ProfileConnection) -> None:
    """What the setting says, to the last bit: 0.2 is more in float32 than in float64."""
    assert profiler.profile(max_share=0.2).max_share == 0.2


def test_the_server_bounds_share_and_time(profiler: ProfileConnection) -> None:
    """By settings that can be changed while it runs."""
    before = profiler.set(profile_max_share="0.001", profile_max_s="1e-9")
    try:
        refused = refusal(lambda: profiler.profile(max_share=0.002))
        assert refused.fields == ("max_share",)
        assert refused.metadata["limit_value"] == "0.001"
        refused = refusal(lambda: profiler.profile())
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
        assert "profile_max_s" in refused.message
    finally:
        profiler.set(**before)


def test_what_is_wrong_is_refused_and_named(profiler: ProfileConnection) -> None:
    """Models, lengths, sizes."""
    assert refusal(lambda: profiler.profile("nobody")).code is grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: profiler.kept("nobody")).code is grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: profiler.profile(lengths=[MAX_TOKENS + 1])).fields == ("lengths[0]",)
    assert refusal(lambda: profiler.profile(batch_sizes=[0])).fields == ("batch_sizes[0]",)
    assert refusal(lambda: profiler.profile(runs=1)).fields == ("runs",)


def test_texts_that_run_alone_are_measured_alone(tmp_path: Path) -> None:
    """For a model whose vectors depend on the batch."""
    root = make_tiny_model(tmp_path / "models", batch_invariant=False).root
    with (
        RunningServer(model_dir=root, default_model="tiny", preload="none") as server,
        unharmed(server),
        ProfileConnection(server.address) as profiler,
    ):
        profile = profiler.profile(batch_sizes=[])
    assert {cell.items for cell in profile.cells} == {1}
    assert profile.suggestion.max_batch_items == 1


def test_a_model_on_a_gpu_is_measured_by_the_gpus_limits(tmp_path: Path) -> None:
    """With shapes that are padded to buckets there, and memory as its driver tells it."""
    root = make_tiny_model(tmp_path / "models").root
    with (
        RunningServer(
            "tests.fake_gpu", model_dir=root, preload="none", cuda_slots=3, cuda_max_batch_items=4
        ) as server,
        ProfileConnection(server.address) as profiler,
    ):
        profile = profiler.profile(batch_sizes=[], lengths=[3, 8])
        assert profiler.kept() == profile
    assert (profile.device, profile.threads, profile.slots) == ("cuda:0", 0, 3)
    assert {cell.items for cell in profile.cells} == {1, 2, 4, 8}
    assert {cell.memory_bytes for cell in profile.cells} == {0}
