"""Patterns of use, over a real channel."""

from __future__ import annotations

import grpc
import pytest

from shoal.v1 import usage_pb2 as pb
from shoal_client import AsyncClient, Client, ModelNotFoundError
from tests.client.fake import FakeServer, status


def test_the_answer_is_the_servers(client: Client, fake: FakeServer) -> None:
    """As its own message; the name reaches the server."""
    fake.usage = pb.GetUsageResponse(patterns=[pb.UsagePattern(model="fake")], threshold=0.5)
    assert client.get_usage("fake") == fake.usage
    assert fake.calls[-1].request == pb.GetUsageRequest(model="fake")
    client.get_usage()
    assert fake.calls[-1].request == pb.GetUsageRequest()


async def test_from_tasks(fake: FakeServer) -> None:
    """The same."""
    fake.usage = pb.GetUsageResponse(threshold=0.5)
    async with AsyncClient(fake.address) as client:
        assert await client.get_usage("fake") == fake.usage


def test_a_name_that_nobody_knows(client: Client, fake: FakeServer) -> None:
    """NOT_FOUND is ModelNotFoundError."""
    fake.fail("GetUsage", status(grpc.StatusCode.NOT_FOUND, reason="MODEL_NOT_FOUND"))
    with pytest.raises(ModelNotFoundError):
        client.get_usage("nobody")
