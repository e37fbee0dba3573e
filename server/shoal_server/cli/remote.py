"""Commands that ask a running server: where it is, and how its errors are shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc
import typer

from shoal.v1 import model_control_pb2_grpc
from shoal_server.cli.health import open_channel, own_address

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
        """The server's model control; what it refuses ends the command with one line."""
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
