"""Aliases and versions through both clients, on a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shoal_client import (
    AsyncClient,
    Client,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelNotFoundError,
    UnavailableError,
)
from shoal_server.registry.manifest import VERSION_FILE
from tests.client.conftest import BlockingClient
from tests.client.fake import UNAVAILABLE, FakeServer
from tests.running import RunningServer
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, version in enumerate(("1", "2")):
        make_tiny_model(root, version=version, seed=seed)
    return root


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with RunningServer(model_dir=root, preload="none", max_texts_per_request=2) as server:
        yield server.address


@pytest.fixture(params=["sync", "async"])
def steering(request: pytest.FixtureRequest, address: str) -> Iterator[Client | BlockingClient]:
    """A client of the real server."""
    if request.param == "sync":
        with Client(address) as client:
            yield client
        return
    blocking = BlockingClient(AsyncClient(address))
    yield blocking
    blocking.end()


def test_switch_roll_back_and_delete(steering: Client) -> None:
    """Aliases come as the protos' own messages; the answer tells which version served."""
    assert [each.model for each in steering.switch_model("prod", "tiny@1").targets] == ["tiny@1"]
    steering.switch_model("prod", "tiny@2")
    assert steering.embed(["red"], model="prod").version == "2"
    steering.rollback_model("prod")
    assert steering.embed(["red"], model="prod").version == "1"
    assert [alias.name for alias in steering.list_aliases()] == ["prod"]
    with pytest.raises(FailedPreconditionError):
        steering.rollback_model("prod", revision=99)
    steering.delete_alias("prod")
    with pytest.raises(ModelNotFoundError):
        steering.rollback_model("prod")


def test_pinning_a_version(steering: Client) -> None:
    """The bare name means it until it is let go."""
    assert steering.set_version_policy("tiny", "1").version == "1"
    assert steering.embed(["red"], model="tiny").version == "1"
    assert steering.set_version_policy("tiny").version == "2"


def test_a_policy_tells_what_is_bad(steering: Client, root: Path) -> None:
    """The newest can not be understood, so an unpinned name passes over it, and says so."""
    made = make_tiny_model(root, "broken", version="1").folder
    (made.parent / "2").mkdir(exist_ok=True)
    (made.parent / "2" / VERSION_FILE).write_text("no manifest")
    answer = steering.set_version_policy("broken")
    assert answer.version == "1"
    (bad,) = answer.bad_versions
    assert bad.model == "broken@2"
    assert VERSION_FILE in bad.reason
    shutil.rmtree(made.parent)


def test_a_call_that_is_split_gets_one_version(steering: Client) -> None:
    """Its rows are of one model, however many requests it takes; a caller's key decides which."""
    steering.switch_model("shared", {"tiny@1": 1, "tiny@2": 1})
    versions = set()
    for number in range(12):
        key = f"caller {number}"
        result = steering.embed(["red"] * 9, model="shared", routing_key=key)
        assert (result.vectors == result.vectors[0]).all()
        assert steering.embed(["red"], model="shared", routing_key=key).version == result.version
        drawn = steering.embed(["red"] * 9, model="shared")
        assert (drawn.vectors == drawn.vectors[0]).all()
        versions |= {result.version, drawn.version}
    assert versions == {"1", "2"}
    steering.delete_alias("shared")


def test_tags_and_deprecations(steering: Client) -> None:
    """Results say that their model is deprecated, and models what is said of them."""
    assert steering.update_tags("tiny@1", add=["a", "b"], remove=["c"]) == ["a", "b"]
    until = datetime.now(UTC) + timedelta(days=1)
    steering.deprecate_model("tiny@1", replacement="tiny@2", refuse_after=until)
    result = steering.embed(["red"] * 5, model="tiny@1")  # split into parts
    assert "use tiny@2" in result.deprecation
    found = steering.get_model("tiny@1")
    assert list(found.tags) == ["a", "b"]
    assert found.deprecation.refuse_after.ToDatetime(UTC) == until
    steering.deprecate_model("tiny@1", deprecated=False)
    assert steering.embed(["red"], model="tiny@1").deprecation == ""
    steering.update_tags("tiny@1", remove=["a", "b"])


def test_a_time_without_a_zone_is_refused(steering: Client) -> None:
    """It would mean another moment on the server's clock than on the caller's."""
    with pytest.raises(ValueError, match="time zone"):
        steering.deprecate_model("tiny@1", refuse_after=datetime(2030, 1, 1))


def test_finding_models(steering: Client) -> None:
    """By what they are; a state that does not exist is refused before anything is sent."""
    steering.load_model("tiny@2")
    steering.update_tags("tiny", add=["prod"])
    assert [model.name for model in steering.list_models("TINY", tags=["prod"])] == ["tiny"]
    assert steering.list_models(tags=["never"]) == []
    assert steering.list_models(states=["error"], order_by="last_used", descending=True) == []
    with pytest.raises(InvalidArgumentError, match="states"):
        steering.list_models(states=["asleep"])


def test_going_back_is_not_tried_again(client: Client, fake: FakeServer) -> None:
    """A second try could go back twice, when only the first one's answer was lost."""
    fake.fail("RollbackModel", UNAVAILABLE)
    with pytest.raises(UnavailableError):
        client.rollback_model("prod")
    assert fake.methods() == ["RollbackModel"]
