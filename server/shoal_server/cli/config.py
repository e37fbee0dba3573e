"""`shoal config`: the effective settings and where each came from."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shoal_server.settings import LoadedSettings, show

_UNFOLDED = 10_000


def config(loaded: LoadedSettings) -> None:
    """Show every setting, its value, and which source it came from."""
    table = Table(box=None, pad_edge=False)
    for title in ("setting", "value", "from"):
        table.add_column(title, overflow="fold")
    for name, origin in loaded.origins.items():
        style = "" if origin == "default" else "bold"
        value = escape(show(getattr(loaded.values, name)))
        table.add_row(name, value, escape(origin), style=style)
    # Rows are folded to fit a terminal; for programs, one line each.
    Console(width=None if sys.stdout.isatty() else _UNFOLDED).print(table)
    for name in loaded.unknown_variables:
        typer.echo(f"shoal: {name} is no setting", err=True)
