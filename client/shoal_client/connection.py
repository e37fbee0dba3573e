"""Where the servers are and how they are spoken to. No I/O."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_ADDRESS = "127.0.0.1:50051"

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """How the server is verified, and how the client shows who it is.

    Attributes:
        root_certificates: PEM; None trusts the roots that come with gRPC.
        private_key: PEM key of the client's own certificate, for mutual TLS.
        certificate_chain: PEM certificate of the client, for mutual TLS.
        server_name: Name to look for in the server's certificate; empty: the
            host of the address.
    """

    root_certificates: bytes | None = None
    private_key: bytes | None = None
    certificate_chain: bytes | None = None
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Connection:
    """All that is needed to open the channels of a client.

    Attributes:
        targets: One gRPC target for each server.
        credentials: None for plaintext.
        options: Channel arguments of gRPC.
        metadata: Sent with every call.
    """

    targets: tuple[str, ...]
    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, str | int], ...]
    metadata: Metadata


def describe_connection(
    addresses: str | Iterable[str],
    *,
    tls: bool | Tls | grpc.ChannelCredentials,
    token: str,
    metadata: Mapping[str, str | bytes],
) -> Connection:
    """Check what the caller gave and turn it into what gRPC takes.

    Raises:
        ValueError: There is no address, one is not `HOST:PORT`, or the token
            would travel in plaintext to another machine.
    """
    targets = _targets(addresses)
    secure = tls is not False
    if token and not secure and not all(_is_local(target) for target in targets):
        raise ValueError(
            "the token would be sent in plaintext to another machine: use tls=True, or, where "
            "the network itself is encrypted, pass metadata={'authorization': 'Bearer …'}"
        )
    own = {key.lower(): value for key, value in metadata.items()}
    if token:
        own["authorization"] = f"Bearer {token}"
    server_name = tls.server_name if isinstance(tls, Tls) else ""
    return Connection(targets, _credentials(tls), _channel_options(server_name), tuple(own.items()))


def _targets(addresses: str | Iterable[str]) -> tuple[str, ...]:
    listed = addresses.split(",") if isinstance(addresses, str) else addresses
    targets = tuple(_target(address.strip()) for address in listed)
    if not targets:
        raise ValueError("at least one address is needed")
    return targets


def _target(address: str) -> str:
    # A gRPC target with a scheme (unix:PATH, dns:///HOST:PORT, …) goes as it is.
    if address.startswith("unix:") or ":///" in address:
        return address
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and "/" not in host):
        raise ValueError(f"{address!r} is not an address: HOST:PORT, [IPV6]:PORT or unix:PATH")
    return address


def _is_local(target: str) -> bool:
    if target.startswith("unix:"):
        return True
    host = target.rpartition(":")[0].rpartition("/")[2].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _credentials(tls: bool | Tls | grpc.ChannelCredentials) -> grpc.ChannelCredentials | None:
    if isinstance(tls, grpc.ChannelCredentials):
        return tls
    if isinstance(tls, Tls):
        return grpc.ssl_channel_credentials(
            tls.root_certificates, tls.private_key, tls.certificate_chain
        )
    return grpc.ssl_channel_credentials() if tls else None


def _channel_options(server_name: str) -> tuple[tuple[str, str | int], ...]:
    options: dict[str, str | int] = {
        # A name that resolves to several servers is used evenly.
        "grpc.service_config": json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}),
        # Requests are split by the server's limits, and an answer's size follows
        # from its request, so that gRPC's 4 MiB would only stand in the way.
        "grpc.max_receive_message_length": -1,
        "grpc.max_send_message_length": -1,
        # A server that hangs or a dropped route is noticed while calls wait.
        "grpc.keepalive_time_ms": 60_000,
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.keepalive_permit_without_calls": 0,
        # Connecting gives up after 5 s (gRPC: 20 s), so that the next server gets
        # its turn, and a server that comes back is found within 5 s (gRPC: 120 s).
        "grpc.min_reconnect_backoff_ms": 5_000,
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 5_000,
        # gRPC shares connections between the channels of a process, and so the
        # back-off after a failure: a new client would fail unseen by any server.
        "grpc.use_local_subchannel_pool": 1,
        "grpc.primary_user_agent": "shoal-client",
    }
    if server_name:
        options["grpc.ssl_target_name_override"] = server_name
    return tuple(options.items())
