"""`shoal models tag`, `deprecate`, `undeprecate`: what is said of a running server's models."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

import typer

from shoal.v1 import versions_pb2 as pb
from shoal_server.cli.output import in_utc
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Timeout, Tls

_Ref = Annotated[
    str,
    typer.Argument(metavar="NAME[@VERSION]", help="A bare NAME is said of all its versions."),
]


def tag(
    ref: _Ref,
    add: Annotated[list[str] | None, typer.Argument(metavar="[TAG]...")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="A tag to take away; may be repeated.")
    ] = None,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Give a model tags, take others away, and print those that it has then."""
    request = pb.UpdateTagsRequest(model=ref, add=add or (), remove=remove or ())
    with Server(address, tls, ca_file, server_name).control() as control:
        answer = control.UpdateTags(request, timeout=timeout_s)
    typer.echo(f"{ref}: {' '.join(answer.tags) or 'no tags'}")


def deprecate(
    ref: _Ref,
    replacement: Annotated[str, typer.Option(help="What to ask for instead.")] = "",
    message: Annotated[str, typer.Option(help="For people.")] = "",
    refuse_after: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"],
            help="UTC; from then on requests for it fail. Default: never.",
        ),
    ] = None,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Let the answers of a model, and the log, say that it should not be used any longer."""
    deprecation = pb.Deprecation(replacement=replacement, message=message)
    if refuse_after is not None:
        deprecation.refuse_after.FromDatetime(refuse_after.replace(tzinfo=UTC))
    request = pb.DeprecateModelRequest(model=ref, deprecation=deprecation)
    with Server(address, tls, ca_file, server_name).control() as control:
        told = control.DeprecateModel(request, timeout=timeout_s).deprecation
    typer.echo(f"{ref}: deprecated{_refused(told)}")


def undeprecate(
    ref: _Ref,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Take a deprecation back."""
    with Server(address, tls, ca_file, server_name).control() as control:
        control.DeprecateModel(pb.DeprecateModelRequest(model=ref), timeout=timeout_s)
    typer.echo(f"{ref}: not deprecated")


def _refused(told: pb.Deprecation) -> str:
    """From when on, by the server's clock."""
    if not told.HasField("refuse_after"):
        return ""
    if told.refuse_after.ToNanoseconds() <= told.since.ToNanoseconds():
        return "; requests for it are refused from now on"
    return f"; requests for it are refused after {in_utc(told.refuse_after)}"


COMMANDS: dict[str, Callable[..., None]] = {
    "tag": tag,
    "deprecate": deprecate,
    "undeprecate": undeprecate,
}
