"""`shoal health`: ask a server how it is; for people and container health checks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal_server.settings import SettingsError, load_settings


def health(
    address: Annotated[
        str,
        typer.Option(
            envvar="SHOAL_ADDRESS",
            help="HOST:PORT of the server's gRPC; default: what `shoal serve` would take here.",
            show_default=False,
        ),
    ] = "",
    model: Annotated[str, typer.Option(help="Ask about one model, not the whole server.")] = "",
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait.", min=0.001)] = 3,
    tls: Annotated[bool, typer.Option("--tls", help="Connect with TLS.")] = False,
    ca_file: Annotated[
        Path | None, typer.Option(help="PEM roots to trust; default: the system's.")
    ] = None,
    server_name: Annotated[
        str, typer.Option(help="Name in the server's certificate, where it is not the address.")
    ] = "",
) -> None:
    """Print SERVING and exit 0, or what is wrong and exit 1."""
    service = f"shoal.model/{model}" if model else ""
    address = address or own_address()
    with open_channel(address, tls or ca_file is not None, ca_file, server_name) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = stub.Check(request, timeout=timeout_s)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            what = error.details() or f"no service {service!r}"
            typer.echo(f"shoal: {address}: {error.code().name}: {what}", err=True)
            raise typer.Exit(1) from None
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    typer.echo(name)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise typer.Exit(1)


def own_address() -> str:
    """Where a server with these settings listens, as seen from the same machine."""
    try:
        settings = load_settings().values
    except SettingsError as error:
        typer.echo(f"shoal: {error}", err=True)
        raise typer.Exit(2) from None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.grpc_host, settings.grpc_host)  # noqa: S104
    return f"[{host}]:{settings.grpc_port}" if ":" in host else f"{host}:{settings.grpc_port}"


def open_channel(address: str, tls: bool, ca_file: Path | None, server_name: str) -> grpc.Channel:
    """A channel to a server; a file that can not be read ends the command."""
    if not tls:
        return grpc.insecure_channel(address)
    try:
        roots = ca_file.read_bytes() if ca_file else None
    except OSError as error:
        typer.echo(f"shoal: {ca_file}: {error.strerror}", err=True)
        raise typer.Exit(2) from None
    options = [("grpc.ssl_target_name_override", server_name)] if server_name else None
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(roots), options)
