"""`shoal settings`: what a server answers, and what it is asked to change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from shoal.v1 import settings_pb2 as pb

from .conftest import Shoal

SERVICE = "shoal.v1.ModelControlService"

SETTINGS = [
    pb.Setting(name="log_level", value="debug", changeable=True, configured_value="info"),
    pb.Setting(name="drain_s", value="5.0", changeable=True, persistent=True),
    pb.Setting(name="max_wait_ms", value="5.0", changeable=True),
    pb.Setting(name="model_dir", value="/m[o]dels", changeable=False),
]


class Answering:
    """Answers with the settings above, unless it is to refuse.

    Attributes:
        asked: What it was asked to change.
        refuses: Whether it refuses.
        persist: Whether it was last asked to keep what it changes.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.refuses = False
        self.persist = False

    def handle(
        self, request: pb.UpdateSettingsRequest, context: grpc.ServicerContext
    ) -> pb.UpdateSettingsResponse:
        self.asked.append(dict(request.settings))
        self.persist = request.persist
        if self.refuses:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "grpc_port: restart")
        return pb.UpdateSettingsResponse(settings=SETTINGS)


@pytest.fixture
def fake() -> Answering:
    return Answering()


@pytest.fixture
def address(fake: Answering) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(
        fake.handle,
        pb.UpdateSettingsRequest.FromString,
        pb.UpdateSettingsResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"UpdateSettings": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_all_are_shown(shoal: Shoal, fake: Answering, address: str) -> None:
    """A line each: now, at the start where that was another, and whether it takes a restart."""
    result = shoal("settings", "--address", address)
    assert (result.exit_code, result.stderr, fake.asked) == (0, "", [{}])
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [
        ["log_level", "debug", "info"],
        ["drain_s", "5.0", "kept", "over", "restarts"],
        ["max_wait_ms", "5.0"],
        ["model_dir", "/m[o]dels", "takes", "a", "restart"],
    ]


def test_changes(shoal: Shoal, fake: Answering, address: str) -> None:
    """Are sent as they stand; what is other than at the start is shown."""
    changes = ("log-level=debug", "rate_limit_overrides=a=1/-,b=-/2")
    result = shoal("settings", *changes, "--address", address)
    assert fake.asked == [{"log_level": "debug", "rate_limit_overrides": "a=1/-,b=-/2"}]
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["setting", "log_level"]


def test_persist(shoal: Shoal, fake: Answering, address: str) -> None:
    """Only where it is asked for."""
    shoal("settings", "log_level=debug", "--persist", "--address", address)
    assert fake.persist
    shoal("settings", "log_level=debug", "--address", address)
    assert not fake.persist


def test_json(shoal: Shoal, address: str) -> None:
    """Values by name."""
    found = json.loads(shoal("settings", "--json", "--address", address).stdout)
    assert found == {each.name: each.value for each in SETTINGS}


def test_a_refusal_is_one_line(shoal: Shoal, fake: Answering, address: str) -> None:
    """What the server says, and exit 1."""
    fake.refuses = True
    result = shoal("settings", "grpc_port=1", "--address", address)
    assert (result.exit_code, result.stderr) == (1, "shoal: grpc_port: restart\n")


@pytest.mark.parametrize("change", ["log_level", "=debug"])
def test_what_is_no_change_is_wrong_usage(shoal: Shoal, fake: Answering, change: str) -> None:
    """Exit 2, and nobody is asked."""
    result = shoal("settings", change)
    assert (result.exit_code, fake.asked) == (2, [])
    assert "is not NAME=VALUE" in result.stderr
