"""Verifying, reloading and updating models through the SDK, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from shoal_client import AsyncClient, Client, FailedPreconditionError, InvalidArgumentError
from tests.reference import keep_vectors
from tests.running import RunningServer
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a model that is in memory in the former of its versions."""
    root = tmp_path_factory.mktemp("models")
    keep_vectors(make_tiny_model(root))
    make_tiny_model(root, "bare")
    with RunningServer(model_dir=root, default_model="tiny") as server:
        keep_vectors(make_tiny_model(root, version="2", seed=2))
        yield server.address


def test_a_model_from_both_clients(address: str) -> None:
    """What the server answers arrives; once updated, there is nothing newer."""
    with Client(address) as client:
        (verified,) = client.verify_model()
        assert (verified.model, verified.version) == ("tiny", "1")
        assert verified.accuracy.passed
        (reloaded,) = client.reload_model("tiny")
        assert (reloaded.model, reloaded.version, reloaded.device) == ("tiny", "1", "cpu")
        updated = client.update_model("tiny", source="repository")
        assert (updated.updated, updated.before, updated.after) == (True, "1", "2")

    async def ask() -> None:
        async with AsyncClient(address) as client:
            (verified,) = await client.verify_model("tiny")
            assert verified.version == "2"
            (reloaded,) = await client.reload_model()
            assert reloaded.version == "2"
            assert not (await client.update_model("tiny")).updated

    asyncio.run(ask())


def test_refusals_arrive(address: str) -> None:
    """With the server's reason."""
    with Client(address) as client, pytest.raises(FailedPreconditionError) as refused:
        client.verify_model("bare")
    assert refused.value.reason == "NOTHING_TO_COMPARE"


def test_another_source_is_refused_here(address: str) -> None:
    """Before anything is sent, as other words that are none; the message has those there are."""
    with Client(address) as client, pytest.raises(InvalidArgumentError, match="repository, hub"):
        client.update_model("tiny", source="moon")
