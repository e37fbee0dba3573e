"""`shoal models profile`: how fast a model is on a running server, as a table and as a plot."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shoal.v1 import profile_pb2 as pb
from shoal.v1.model_control_pb2_grpc import ModelControlServiceStub
from shoal_server.cli.output import AsJson, echo_message, unfolded
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Tls

_WRONG_USAGE = 2
_SHOW_S = 10.0
_PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def profile(
    model: Annotated[
        str, typer.Argument(metavar="[NAME[@VERSION]]", help="Default: the default model.")
    ] = "",
    show: Annotated[
        bool, typer.Option("--show", help="Measure nothing: the profile that was made last.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw it into this file, too: .png, .svg or .pdf.", dir_okay=False),
    ] = None,
    as_json: AsJson = False,
    batch_sizes: Annotated[
        str, typer.Option(metavar="N,N,…", help="Items in a batch. Default: 1, 2, 4, …")
    ] = "",
    lengths: Annotated[
        str, typer.Option(metavar="N,N,…", help="Tokens of an item. Default: 8, 16, …")
    ] = "",
    max_batch_tokens: Annotated[
        int, typer.Option(help="Larger batches are left out. Default: as the server has it.", min=0)
    ] = 0,
    runs: Annotated[int, typer.Option(help="Timed runs of each batch. Default: 10.", min=0)] = 0,
    max_share: Annotated[
        float,
        typer.Option(
            help="Of one slot's time, that it takes at most. Default: as the server has it.",
            min=0,
            max=1,
        ),
    ] = 0,
    address: Address = "",
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Measure a model on a running server, by batch size and length, and suggest limits.

    On the session that serves it, in turn with requests, and with rests. The server keeps
    the profile. Ctrl-C ends it.
    """
    if plot is not None:
        _check_plot(plot)
    server = Server(address, tls, ca_file, server_name)
    request = pb.ProfileModelRequest(
        model=model,
        batch_sizes=_numbers(batch_sizes, "--batch-sizes"),
        lengths=_numbers(lengths, "--lengths"),
        max_batch_tokens=max_batch_tokens,
        runs=runs,
        max_share=max_share,
    )
    with server.control() as control:
        if show:
            asked = pb.GetProfileRequest(model=model)
            found = control.GetProfile(asked, timeout=_SHOW_S).profile
        else:
            found = _measure(control, request)
    if plot is not None:
        _draw(found, plot)
    if as_json:
        echo_message(found)
    else:
        _print(found)


def _measure(control: ModelControlServiceStub, request: pb.ProfileModelRequest) -> pb.ModelProfile:
    """The profile, with a bar on the terminal until it is there."""
    call = control.ProfileModel(request)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        with Progress(
            *columns,
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress:
            task = progress.add_task("batches", total=None)
            for answer in call:
                match answer.WhichOneof("answer"):
                    case "plan":
                        progress.update(task, total=answer.plan.cells)
                    case "cell" | "skipped":
                        progress.advance(task)
                    case "profile":
                        return answer.profile
    finally:
        call.cancel()
    typer.echo("shoal: the server ended the call before it had a profile", err=True)
    raise typer.Exit(1)


def _numbers(text: str, option: str) -> list[int]:
    """`1,2,4` as numbers."""
    words = [word.strip() for word in text.split(",")] if text else []
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) < 1 << 32):
            typer.echo(f"shoal: {option}: {word!r} is not a number", err=True)
            raise typer.Exit(_WRONG_USAGE)
    return [int(word) for word in words]


def _check_plot(path: Path) -> None:
    """Before minutes are spent on what can not be drawn."""
    if path.suffix.lower() not in _PLOT_SUFFIXES:
        typer.echo(f"shoal: --plot: {path} ends in none of {', '.join(_PLOT_SUFFIXES)}", err=True)
        raise typer.Exit(_WRONG_USAGE)
    if not path.absolute().parent.is_dir():
        typer.echo(f"shoal: --plot: there is no folder {path.absolute().parent}", err=True)
        raise typer.Exit(_WRONG_USAGE)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        typer.echo(
            "shoal: --plot needs matplotlib: pip install 'shoal-server[plot]'; "
            "what is measured without --plot is kept, and `--show --plot` draws it then",
            err=True,
        )
        raise typer.Exit(1) from None


def _draw(found: pb.ModelProfile, path: Path) -> None:
    # Only now: it takes a second, and need not be installed.
    from shoal_server.cli.profile_plot import draw

    try:
        draw(found, path)
    except OSError as error:
        typer.echo(f"shoal: --plot: {path}: {error.strerror or error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"drawn into {path}", err=True)


def _print(found: pb.ModelProfile) -> None:
    console = Console()
    if not console.is_terminal:
        console = unfolded()
    for line in _head(found):
        console.print(line, highlight=False, markup=False)
    console.print(_table(found))
    for line in (*_left_out(found), "", *_suggestion(found)):
        console.print(line, highlight=False, markup=False)


def _head(found: pb.ModelProfile) -> list[str]:
    at = found.measured_at.ToDatetime(tzinfo=UTC).astimezone()
    threads = f", threads of a run: {found.threads}" if found.threads else ""
    took_s = found.duration.ToNanoseconds() / 1e9
    held_s = found.running.ToNanoseconds() / 1e9
    lines = [
        f"{found.model}@{found.version} in {found.precision} on {found.device} "
        f"({found.hardware}), ONNX Runtime {found.runtime_version}{threads}",
        f"measured {at:%Y-%m-%d %H:%M:%S} in {took_s:.1f} s, of which one of {found.slots} slots "
        f"was held {held_s:.1f} s; one run after the other",
    ]
    return [*lines, f"not on disk: {found.problem}"] if found.problem else lines


def _table(found: pb.ModelProfile) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in (
        *("tokens", "items", "runs", "best ms", "noise", "p50 ms", "p95 ms"),
        *("items/s", "tokens/s", "memory MB"),
    ):
        table.add_column(title, justify="right")
    for cell in found.cells:
        table.add_row(
            str(cell.tokens_per_item),
            str(cell.items),
            str(cell.runs),
            f"{cell.least_us / 1000:.2f}",
            f"{cell.noise:.1%}",
            f"{cell.p50_us / 1000:.2f}",
            f"{cell.p95_us / 1000:.2f}",
            f"{cell.items_per_s:.1f}",
            f"{cell.tokens_per_s:.0f}",
            f"{cell.memory_bytes / 1e6:.1f}" if cell.HasField("memory_bytes") else "-",
        )
    return table


def _left_out(found: pb.ModelProfile) -> list[str]:
    """Batches that were not measured, by reason."""
    by_reason: dict[str, list[str]] = {}
    for each in found.skipped:
        shapes = by_reason.setdefault(each.reason, [])
        shapes.append(f"{each.items} x {each.tokens_per_item}")
    return [f"left out: {', '.join(shapes)}: {why}" for why, shapes in by_reason.items()]


def _suggestion(found: pb.ModelProfile) -> list[str]:
    if not found.HasField("suggestion"):
        return [f"nothing is suggested: {found.no_suggestion}"]
    best = found.suggestion
    prefix = "" if found.device == "cpu" else "cuda_"
    return [
        f"suggested, in model.toml of {found.model} under [serving]:",
        f"    max_batch_items = {best.max_batch_items}",
        f"    max_batch_tokens = {best.max_batch_tokens}",
        "or for all models without limits of their own:",
        f"    shoal settings {prefix}max_batch_items={best.max_batch_items} "
        f"{prefix}max_batch_tokens={best.max_batch_tokens}",
        f"(then: {found.batch_items_limit} items, {found.batch_tokens_limit} tokens)",
        *best.reasons,
    ]
