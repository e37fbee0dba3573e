"""Commands that ask a running server: where it is, and how they fail."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc
import typer

from shoal.v1 import model_control_pb2_grpc
from shoal_server.settings_sources import SettingsError, load_settings

_INTERRUPTED = 128 + signal.SIGINT

Address = Annotated[
    str,
    typer.Option(
        envvar="SHOAL_ADDRESS",
        help="HOST:PORT of the server's gRPC; default: what `shoal serve` would take here.",
        show_default=False,
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait.", min=0.001)]
Tls = Annotated[bool, typer.Option("--tls", help="Connect with TLS.")]
CaFile = Annotated[Path | None, typer.Option(help="PEM roots to trust; default: the system's.")]
ServerName = Annotated[
    str, typer.Option(help="Name in the server's certificate, where it is not the address.")
]


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, and how it is reached."""

    address: str = ""
    """Empty: where `shoal serve` would listen with the same settings."""
    tls: bool = False
    ca_file: Path | None = None
    server_name: str = ""

    @contextmanager
    def control(self) -> Iterator[model_control_pb2_grpc.ModelControlServiceStub]:
        """The server's model control; what it refuses, and Ctrl-C, end the command."""
        address = self.address or own_address()
        tls = self.tls or self.ca_file is not None
        with open_channel(address, tls, self.ca_file, self.server_name) as channel:
            try:
                yield model_control_pb2_grpc.ModelControlServiceStub(channel)
            except grpc.RpcError as error:
                what = error.details() or error.code().name
                where = f"{address}: " if error.code() is grpc.StatusCode.UNAVAILABLE else ""
                typer.echo(f"shoal: {where}{what}", err=True)
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                raise typer.Exit(_INTERRUPTED) from None


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
