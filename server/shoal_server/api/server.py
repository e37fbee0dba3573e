"""The gRPC server: its options, its services, its port."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shoal.v1 import embed_pb2, model_control_pb2
from shoal_server.api.health import HealthServicer
from shoal_server.settings import Settings

SERVICE_NAMES = (
    embed_pb2.DESCRIPTOR.services_by_name["EmbedService"].full_name,
    model_control_pb2.DESCRIPTOR.services_by_name["ModelControlService"].full_name,
)


# More often than this is abuse, which gRPC answers by closing the connection.
_CLIENT_PING_MS = 10_000


class ListenError(Exception):
    """An address can not be had; the message says which and why."""


def make_grpc_server(
    settings: Settings, handlers: Sequence[grpc.GenericRpcHandler], health: HealthServicer
) -> grpc.aio.Server:
    """A server with our services, health and reflection; not yet listening."""
    server = grpc.aio.server(
        options=_options(settings), maximum_concurrent_rpcs=settings.max_concurrent_rpcs
    )
    server.add_generic_rpc_handlers(tuple(handlers))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (
        *SERVICE_NAMES,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
    )
    reflection.enable_server_reflection(names, server)
    return server


def listen(server: grpc.aio.Server, settings: Settings) -> int:
    """Bind the server's port, with TLS where it is configured.

    Returns:
        The port; it was chosen by the system when the setting is 0.

    Raises:
        ListenError: The address can not be had, or a TLS file can not be read.
    """
    address = host_port(settings.grpc_host, settings.grpc_port)
    credentials = _credentials(settings)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ListenError(
            f"gRPC can not listen on {address}: is the port taken? (--grpc-port 0 takes a free one)"
        ) from error


def host_port(host: str, port: int) -> str:
    """`HOST:PORT`, as people and clients write it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _options(settings: Settings) -> list[tuple[str, int]]:
    options = {
        "grpc.max_receive_message_length": settings.max_message_bytes,
        "grpc.max_send_message_length": settings.max_message_bytes,
        "grpc.max_concurrent_streams": settings.max_concurrent_streams,
        "grpc.keepalive_time_ms": _ms(settings.keepalive_s),
        "grpc.keepalive_timeout_ms": _ms(settings.keepalive_timeout_s),
        # Clients may ping this often, also between RPCs, whatever our own pace is.
        "grpc.http2.min_ping_interval_without_data_ms": _CLIENT_PING_MS,
        "grpc.keepalive_permit_without_calls": 1,
        # A second server on the same port must fail, not share it in silence.
        "grpc.so_reuseport": 0,
    }
    if settings.max_connection_age_s is not None:
        options["grpc.max_connection_age_ms"] = _ms(settings.max_connection_age_s)
        options["grpc.max_connection_age_grace_ms"] = _ms(settings.max_connection_age_grace_s)
    return list(options.items())


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    roots = settings.tls_client_ca_file
    key_and_chain = (_read(settings.tls_key_file), _read(settings.tls_cert_file))
    root_certificates = _read(roots) if roots else None
    _check_certificates(settings.tls_cert_file, settings.tls_key_file, roots)
    return grpc.ssl_server_credentials(
        [key_and_chain],
        root_certificates=root_certificates,
        require_client_auth=roots is not None,
    )


def _check_certificates(certificate: Path, key: Path, roots: Path | None) -> None:
    """Say which file is wrong: gRPC's own error is the one of a port in use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = f"tls_cert_file {certificate} and tls_key_file {key}"
    try:
        context.load_cert_chain(certificate, key)
        if roots is not None:
            files = f"tls_client_ca_file {roots}"
            context.load_verify_locations(roots)
    except ssl.SSLError as error:
        raise ListenError(f"{files} can not be used: {error.reason or 'no PEM'}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ListenError(f"{path}: {error.strerror}") from error
