"""`shoal config`: the effective settings and where each came from."""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from shoal_server.cli.output import print_folded
from shoal_server.settings import show
from shoal_server.settings_sources import LoadedSettings


def config(loaded: LoadedSettings) -> None:
    """Show every setting, its value, and which source it came from."""
    table = Table(box=None, pad_edge=False)
    for title in ("setting", "value", "from"):
        table.add_column(title, overflow="fold")
    for name, origin in loaded.origins.items():
        style = "" if origin == "default" else "bold"
        value = escape(show(getattr(loaded.values, name)))
        table.add_row(name, value, escape(origin), style=style)
    print_folded(table)
    for name in loaded.unknown_variables:
        typer.echo(f"shoal: {name} is no setting", err=True)
