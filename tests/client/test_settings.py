"""Settings of a server, by both clients."""

from __future__ import annotations

import grpc
import pytest

from shoal.v1 import settings_pb2 as pb
from shoal_client import Client, FailedPreconditionError, Setting
from tests.client.fake import FakeServer, status


def test_changes_are_sent_and_all_settings_come_back(client: Client, fake: FakeServer) -> None:
    """By name; what was not changed since the start says so."""
    fake.settings = pb.UpdateSettingsResponse(
        settings=[
            pb.Setting(name="log_level", value="debug", changeable=True, configured_value="info"),
            pb.Setting(name="model_dir", value="models"),
            pb.Setting(name="drain_s", value="5", changeable=True, persistent=True),
        ]
    )
    assert client.update_settings({"log_level": "debug"}) == {
        "log_level": Setting("log_level", "debug", True, "info", persistent=False),
        "model_dir": Setting("model_dir", "models", False, None, persistent=False),
        "drain_s": Setting("drain_s", "5", True, None, persistent=True),
    }
    assert fake.calls[-1].request == pb.UpdateSettingsRequest(settings={"log_level": "debug"})


def test_persist(client: Client, fake: FakeServer) -> None:
    """Is passed on."""
    client.update_settings({"log_level": "debug"}, persist=True)
    assert fake.calls[-1].request.persist


def test_without_changes_it_asks(client: Client, fake: FakeServer) -> None:
    """Nothing is to be different then."""
    assert client.update_settings() == {}
    assert not fake.calls[-1].request.settings


def test_a_restart_is_needed(client: Client, fake: FakeServer) -> None:
    """FAILED_PRECONDITION is FailedPreconditionError."""
    fake.fail("UpdateSettings", status(grpc.StatusCode.FAILED_PRECONDITION))
    with pytest.raises(FailedPreconditionError):
        client.update_settings({"grpc_port": "1"})
