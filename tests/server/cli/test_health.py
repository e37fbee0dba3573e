"""`shoal health`: the exit status that container health checks go by."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from .conftest import Shoal

Status = health_pb2.HealthCheckResponse


@pytest.fixture
def address() -> Iterator[str]:
    """A server that serves as a whole and one model, and does not serve another."""
    servicer = health.HealthServicer()
    servicer.set("", Status.SERVING)
    servicer.set("shoal.model/good", Status.SERVING)
    servicer.set("shoal.model/bad", Status.NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("arguments", [(), ("--model", "good")])
def test_serving_exits_0(shoal: Shoal, address: str, arguments: tuple[str, ...]) -> None:
    """The server, or the model asked for, serves."""
    result = shoal("health", "--address", address, *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "SERVING\n", "")


def test_not_serving_exits_1(shoal: Shoal, address: str) -> None:
    """The status is told as the server gave it."""
    result = shoal("health", "--address", address, "--model", "bad")
    assert (result.exit_code, result.stdout) == (1, "NOT_SERVING\n")


def test_an_unknown_model_exits_1_and_is_named(shoal: Shoal, address: str) -> None:
    """NOT_FOUND with the service that was asked for, in one line."""
    result = shoal("health", "--address", address, "--model", "unheard-of")
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "NOT_FOUND" in line
    assert "shoal.model/unheard-of" in line


def test_nobody_there_exits_1_with_one_line(shoal: Shoal) -> None:
    """No server at the address: which address, and that it can not be reached."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = shoal("health", "--address", address)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"shoal: {address}: UNAVAILABLE: ")


def test_a_server_that_does_not_answer_exits_1_in_time(shoal: Shoal) -> None:
    """`--timeout` bounds the wait; a server that hangs is no healthy one."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        result = shoal("health", "--address", address, "--timeout", "0.05")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "DEADLINE_EXCEEDED" in line


def test_the_address_is_where_a_server_would_listen(
    shoal: Shoal, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the server's settings, for the SDK's command as for the server's own."""
    monkeypatch.setenv("SHOAL_GRPC_PORT", address.rpartition(":")[2])
    assert shoal("health").exit_code == 0
    embedding = shoal("embed", "red")  # this one embeds nothing, but it says so
    assert (embedding.exit_code, "Method not found" in embedding.stderr) == (1, True)


def test_the_address_may_come_from_the_environment(
    shoal: Shoal, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container image sets it."""
    monkeypatch.setenv("SHOAL_ADDRESS", address)
    assert shoal("health").exit_code == 0
