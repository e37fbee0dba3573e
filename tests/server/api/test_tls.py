"""TLS: on when it is configured, with the caller's certificate checked when that is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.running import RunningServer
from tests.tiny_model import TinyModel

from .calls import Connection, refusal

CERTIFICATES = Path(__file__).parents[2] / "client" / "certificates"
ROOT = CERTIFICATES / "root.pem"
SERVER_NAME = "server.shoal.test"


def credentials(*, client: bool = False) -> grpc.ChannelCredentials:
    key = (CERTIFICATES / "client.key").read_bytes() if client else None
    chain = (CERTIFICATES / "client.pem").read_bytes() if client else None
    return grpc.ssl_channel_credentials(ROOT.read_bytes(), key, chain)


def secure(server: RunningServer, *, client: bool = False) -> Connection:
    return Connection(server.address, credentials(client=client), server_name=SERVER_NAME)


def serve(model: TinyModel, **settings: object) -> RunningServer:
    return RunningServer(
        model_dir=model.root,
        default_model="tiny",
        tls_cert_file=CERTIFICATES / "server.pem",
        tls_key_file=CERTIFICATES / "server.key",
        **settings,
    )


@pytest.fixture(scope="module")
def encrypted(model: TinyModel) -> Iterator[RunningServer]:
    with serve(model) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(model: TinyModel) -> Iterator[RunningServer]:
    with serve(model, tls_client_ca_file=ROOT) as server:
        yield server


def test_caller_with_the_root_is_served(encrypted: RunningServer) -> None:
    """The server shows its certificate."""
    with secure(encrypted) as connection:
        assert connection.embed("red").dimensions == 8


def test_caller_without_tls_is_not_served(encrypted: RunningServer) -> None:
    """There is no way around it, and trying harms nobody."""
    with Connection(encrypted.address) as plain:
        assert refusal(lambda: plain.embed("red")).code is grpc.StatusCode.UNAVAILABLE
    with secure(encrypted) as connection:
        assert connection.embed("red").dimensions == 8


def test_caller_with_a_certificate_is_served(mutual: RunningServer) -> None:
    """Both sides show one."""
    with secure(mutual, client=True) as connection:
        assert connection.embed("red").dimensions == 8


def test_caller_without_a_certificate_is_not_served(mutual: RunningServer) -> None:
    """Where clients must show a certificate, the root alone does not do."""
    with secure(mutual) as connection:
        assert refusal(lambda: connection.embed("red")).code is grpc.StatusCode.UNAVAILABLE
