"""Health of single models, over a real channel: what an orchestrator would act on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.running import RunningServer
from tests.server.api.calls import Connection
from tests.tiny_model import make_tiny_model

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningServer]:
    make_tiny_model(tmp_path, "good")
    make_tiny_model(tmp_path, "broken")
    (tmp_path / "broken" / "1" / "tokenizer.json").write_text("{}")
    with RunningServer(model_dir=tmp_path, default_model="good") as server:
        yield server


def state(connection: Connection, model: str) -> int:
    stub = health_pb2_grpc.HealthStub(connection.channel)
    request = health_pb2.HealthCheckRequest(service=f"shoal.model/{model}")
    return int(stub.Check(request, timeout=10).status)  # type: ignore[attr-defined]


def test_a_model_whose_load_failed_is_not_serving(running: RunningServer) -> None:
    """What GetModel calls failed, health does not call serving."""
    with Connection(running.address) as connection:
        assert state(connection, "good") == SERVING
        with pytest.raises(grpc.RpcError):
            connection.embed("red", model="broken")
        assert state(connection, "broken") == NOT_SERVING
        assert state(connection, "good") == SERVING


def test_a_model_that_came_later_is_known(running: RunningServer, tmp_path: Path) -> None:
    """Health looks where requests look, not at what was there at start."""
    with Connection(running.address) as connection:
        with pytest.raises(grpc.RpcError) as refused:
            state(connection, "later")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        shutil.copytree(tmp_path / "good", tmp_path / "later")
        assert state(connection, "later") == SERVING


def test_watchers_hear_of_a_failed_load(running: RunningServer) -> None:
    """Without asking again."""
    with Connection(running.address) as connection:
        stub = health_pb2_grpc.HealthStub(connection.channel)
        request = health_pb2.HealthCheckRequest(service="shoal.model/broken")
        watch = stub.Watch(request, timeout=20)  # type: ignore[attr-defined]
        assert next(watch).status == SERVING
        with pytest.raises(grpc.RpcError):
            connection.embed("red", model="broken")
        assert next(watch).status == NOT_SERVING
        watch.cancel()
