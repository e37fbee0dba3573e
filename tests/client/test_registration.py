"""Registering and finding models through both clients, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal_client import (
    AsyncClient,
    Client,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelNotFoundError,
)
from tests.client.conftest import BlockingClient
from tests.running import RunningServer
from tests.tiny_model import add_tiny_variant, make_tiny_model


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root: Path = tmp_path_factory.mktemp("models")
    make_tiny_model(root, "plain")
    add_tiny_variant(make_tiny_model(root, "small"))
    with RunningServer(model_dir=root, default_model="plain", preload="none") as server:
        yield server.address


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, address: str) -> Iterator[Client | BlockingClient]:
    """A client of the real server."""
    if request.param == "sync":
        with Client(address) as sync:
            yield sync
        return
    blocking = BlockingClient(AsyncClient(address))
    yield blocking
    blocking.end()


def test_there_and_back(client: Client) -> None:
    """A deregistered model is not found; registered again it is, and the answer says so."""
    client.deregister_model("small", force_after_s=5.0)
    assert [each.name for each in client.list_models()] == ["plain"]
    assert [each.name for each in client.list_models(scope="deregistered")] == ["small"]
    with pytest.raises(ModelNotFoundError):
        client.embed(["red"], model="small")
    answer = client.register_model("small")
    assert (answer.model.name, answer.added) == ("small", True)
    assert client.embed(["red"], model="small").model == "small"


def test_what_can_not_be_is_refused(client: Client) -> None:
    """As errors of the SDK."""
    with pytest.raises(ModelNotFoundError):
        client.register_model("nobody")
    client.switch_model("prod", "small@1")
    with pytest.raises(FailedPreconditionError):
        client.deregister_model("small")
    client.delete_alias("prod")


def test_models_are_found_by_what_they_can_do(client: Client) -> None:
    """Each filter reaches the server."""
    assert [each.name for each in client.list_models(precision="int8")] == ["small"]
    assert client.list_models(languages=["en"]) == []
    assert client.list_models(prompt="passage") == []
    assert client.list_models(tokens=17) == []
    assert client.list_models(runs_on="cuda:63") == []
    assert len(client.list_models(input_type="text", kind="text_embedding")) == 2
    assert len(client.list_models(scope="every_version")) == 2
    with pytest.raises(InvalidArgumentError, match="scope"):
        client.list_models(scope="all")
    with pytest.raises(InvalidArgumentError, match="states"):
        client.list_models(scope="deregistered", states=["ready"])
    with pytest.raises(InvalidArgumentError, match="input_type"):
        client.list_models(input_type="smell")
