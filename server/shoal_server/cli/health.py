"""`shoal health`: ask a server how it is; for people and container health checks."""

from __future__ import annotations

from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal_server.cli.remote import (
    Address,
    CaFile,
    ServerName,
    Timeout,
    Tls,
    open_channel,
    own_address,
)


def health(
    address: Address = "",
    model: Annotated[str, typer.Option(help="Ask about one model, not the whole server.")] = "",
    timeout_s: Timeout = 3,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
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
