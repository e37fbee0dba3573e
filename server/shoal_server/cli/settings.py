"""`shoal settings`: the settings of a running server, and changing them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from shoal.v1 import settings_pb2 as pb
from shoal_server.cli.output import AsJson, echo_json, print_folded
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Timeout, Tls

_WRONG_USAGE = 2


def settings(
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="Changes; all are made, or none. NAME=unset takes a limit away where the "
            "setting may have none.",
        ),
    ] = None,
    persist: Annotated[
        bool, typer.Option("--persist", help="Keep the changes over restarts.")
    ] = False,
    as_json: AsJson = False,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Show the settings of a running server, or change some until it stops.

    After a change only what is other than configured is shown.
    """
    request = pb.UpdateSettingsRequest(settings=dict(map(_parsed, changes or ())), persist=persist)
    with Server(address, tls, ca_file, server_name).control() as control:
        found = control.UpdateSettings(request, timeout=timeout_s).settings
    if as_json:
        values = {each.name: each.value for each in found}
        echo_json(values)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("setting", "value", "configured", "note"):
        table.add_column(title, overflow="fold")
    for each in found:
        was_changed = each.HasField("configured_value")
        if changes and not was_changed:
            continue
        table.add_row(
            each.name,
            escape(each.value),
            escape(each.configured_value),
            _note(each),
            style="bold" if was_changed else "",
        )
    print_folded(table)


def _note(setting: pb.Setting) -> str:
    if setting.persistent:
        return "kept over restarts"
    return "" if setting.changeable else "takes a restart"


def _parsed(change: str) -> tuple[str, str]:
    name, equals, value = change.partition("=")
    if not (name and equals):
        typer.echo(f"shoal: {change!r} is not NAME=VALUE", err=True)
        raise typer.Exit(_WRONG_USAGE)
    return name.replace("-", "_"), value
