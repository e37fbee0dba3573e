"""`shoal serve`: run the server in the foreground until a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import structlog
import typer
import uvloop

from shoal_server.api.server import host_port
from shoal_server.app import App, StartError
from shoal_server.settings import Settings
from shoal_server.settings_sources import LoadedSettings
from shoal_server.telemetry.logs import configure_logging

log = structlog.get_logger(__name__)

# Wrappers that signal a process and then its group send the same signal twice.
_SAME_SIGNAL_S = 0.5
# What shells report for a process that a signal ended at once.
_STOPPED_AT_ONCE = 130


def run_server(loaded: LoadedSettings) -> None:
    """Run the server of `loaded` settings until it is told to stop.

    Raises:
        typer.Exit: It could not start; standard error says why.
    """
    settings = loaded.values
    configure_logging(settings.log_level, settings.log_format)
    for name in loaded.unknown_variables:
        log.warning("unknown_setting", variable=name)
    # Requests are spread over cores by the batcher, not inside the tokenizer.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        uvloop.run(_serve(settings))
    except StartError as error:
        typer.echo(f"shoal: {error}", err=True)
        raise typer.Exit(1) from None


async def _serve(settings: Settings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    first, first_s = "", 0.0

    def on_signal(name: str) -> None:
        nonlocal first, first_s
        if stopping.is_set():
            if name == first and time.monotonic() - first_s < _SAME_SIGNAL_S:
                return
            log.warning("stopping_at_once", signal=name)
            sys.stderr.flush()
            os._exit(_STOPPED_AT_ONCE)
        first, first_s = name, time.monotonic()
        log.info("draining", signal=name, drain_s=settings.drain_s)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)

    app = App(settings)
    starting = asyncio.ensure_future(app.start())
    stopped = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        return
    try:
        await starting
    finally:
        stopped.cancel()
    grpc_address = host_port(settings.grpc_host, app.grpc_port)
    http_address = host_port(settings.http_host, app.http_port)
    # Whoever reads as far as the first line may close the pipe: that is no reason to end.
    with suppress(BrokenPipeError):
        sys.stdout.write(
            f"shoal: ready grpc={grpc_address} http={http_address}\n"
            f'try: {_own_command()} embed --address {grpc_address} "Hello, shoal"\n'
        )
        sys.stdout.flush()
    await stopping.wait()
    await app.stop()
    log.info("stopped")


def _own_command() -> str:
    """The command that runs this, as it can be typed again in the same folder."""
    return sys.argv[0] if Path(sys.argv[0]).name == "shoal" else "shoal"
