"""`shoal models register` and `deregister`: what a running server knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from shoal.v1 import model_control_pb2 as pb
from shoal_server.cli.memory import ForceAfter
from shoal_server.cli.output import AsJson, echo_message
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Timeout, Tls

# Requests in flight may take their time.
_UNLOAD_TIMEOUT_S = 600.0

_Name = Annotated[str, typer.Argument(metavar="NAME", help="Of its folder in the repository.")]


def register(
    name: _Name,
    as_json: AsJson = False,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Let a running server know one model, or its changes, at once.

    Takes `deregister` back. What is served from memory goes on as it is.
    """
    with Server(address, tls, ca_file, server_name).control() as control:
        answer = control.RegisterModel(pb.RegisterModelRequest(model=name), timeout=timeout_s)
    if as_json:
        echo_message(answer)
        return
    version = f"@{answer.model.version}" if answer.model.version else ", without a version"
    if answer.added:
        what = "registered"
    else:
        what = "read anew" if answer.changed else "known, and as it was"
    outdated = (
        f"; that is in memory and serves on, {name} means another version once "
        f"`shoal models load {name}` has loaded it"
    )
    typer.echo(f"{name}{version}: {what}{outdated if answer.outdated else ''}")


def deregister(
    name: _Name,
    force_after_s: ForceAfter = None,
    address: Address = "",
    timeout_s: Timeout = _UNLOAD_TIMEOUT_S,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Let a running server neither serve nor list a model, until `register`.

    Its files, tags and pins stay. It outlasts a restart.
    """
    request = pb.DeregisterModelRequest(model=name)
    if force_after_s is not None:
        request.force_after.FromNanoseconds(round(force_after_s * 1e9))
    with Server(address, tls, ca_file, server_name).control() as control:
        control.DeregisterModel(request, timeout=timeout_s)
    typer.echo(f"{name}: deregistered")


COMMANDS: dict[str, Callable[..., None]] = {"register": register, "deregister": deregister}
