"""The `shoal` command: what it can do, and where each part is."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from importlib import metadata
from typing import Annotated

import typer

from shoal_server.cli.config import config
from shoal_server.cli.health import health
from shoal_server.cli.models import models_app
from shoal_server.cli.options import with_settings
from shoal_server.cli.remote import own_address
from shoal_server.cli.settings import settings
from shoal_server.inference.devices import runtime_conflict
from shoal_server.settings_sources import LoadedSettings

# Other distributions add commands here; the SDK adds `embed`.
_PLUGINS = "shoal.commands"
_ENDED_BY_SIGNAL = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shoal {metadata.version('shoal-server')}")
        raise typer.Exit


def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Shoal: a gRPC inference server for embedding models."""


def serve(loaded: LoadedSettings) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one stops at once."""
    conflict = runtime_conflict()
    if conflict is not None:
        typer.echo(f"shoal: {conflict}", err=True)
        raise typer.Exit(1)
    # Only now: the server's modules need a runtime, the other commands do not.
    from shoal_server.cli.serve import run_server

    run_server(loaded)


def make_app() -> typer.Typer:
    """The command with everything that is installed."""
    plugins = metadata.entry_points(group=_PLUGINS)
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
    # The SDK does not know these settings; its command finds the same server as the others.
    addresses = {plugin.name: {"address": own_address} for plugin in plugins}
    app.callback(context_settings={"default_map": addresses})(_root)
    app.command("serve")(with_settings(serve))
    app.command("config")(with_settings(config))
    app.command("health")(health)
    app.command("settings")(settings)
    app.add_typer(models_app, name="models")
    for plugin in plugins:
        try:
            app.command(plugin.name)(plugin.load())
        except ImportError as error:
            # Another distribution's fault is no reason not to serve.
            typer.echo(f"shoal: the command {plugin.name!r} can not be loaded: {error}", err=True)
    return app


def main() -> None:
    """Entry point of the `shoal` script."""
    try:
        make_app()()
    except SystemExit as ended:
        if ended.code in _ENDED_BY_SIGNAL:
            # Threads, such as of a download, may be on their way with what nobody waits for.
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(int(ended.code))
        raise
