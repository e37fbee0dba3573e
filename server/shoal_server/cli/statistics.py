"""`shoal models stats`: what a server's models and callers did, as tables or JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from shoal.v1 import statistics_pb2 as pb
from shoal.v1.model_control_pb2_grpc import ModelControlServiceStub
from shoal_server.cli.output import AsJson, echo_json, facts_of, unfolded
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Timeout, Tls


def stats(
    model: Annotated[
        str, typer.Argument(metavar="[NAME[@VERSION]]", help="Default: all models.")
    ] = "",
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")
    ] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", help="Seconds between, with --watch.", min=0.1)
    ] = 2,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Show what models and callers asked of a running server, and what it took.

    Of the last minute or so, since the server started, and of all time, over restarts.
    """
    with Server(address, tls, ca_file, server_name).control() as control:
        answers = _answers(control, model, timeout_s, interval_s if watch else None)
        if not as_json:
            _print_tables(answers)
            return
        for answer in answers:
            echo_json(facts_of(answer), indent=None if watch else 2)


def _answers(
    control: ModelControlServiceStub, model: str, timeout_s: float, interval_s: float | None
) -> Iterator[pb.GetStatisticsResponse]:
    request = pb.GetStatisticsRequest(model=model)
    yield control.GetStatistics(request, timeout=timeout_s)
    while interval_s is not None:
        time.sleep(interval_s)
        yield control.GetStatistics(request, timeout=timeout_s)


def _print_tables(answers: Iterator[pb.GetStatisticsResponse]) -> None:
    console = Console()
    if not console.is_terminal:
        for answer in answers:
            unfolded().print(_page(answer))
        return
    with Live(console=console, auto_refresh=False) as live:
        for answer in answers:
            live.update(_page(answer), refresh=True)


def _page(answer: pb.GetStatisticsResponse) -> RenderableType:
    parts: list[RenderableType] = [_models(answer)]
    parts += [
        f"{_name(model)} failed since the start: {_errors(model.since_start)}"
        for model in answer.models
        if model.since_start.errors
    ]
    if answer.usage:
        parts += ["", _usage(answer)]
    parts += [_gpu(gpu) for gpu in answer.gpus]
    return Group(*parts)


def _models(answer: pb.GetStatisticsResponse) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("over", no_wrap=True)
    for title in (
        *("requests", "failed", "items", "items/s", "tokens/s", "cut", "batch"),
        *("p50 ms", "p90", "p95", "p99", "queue p50", "run p50"),
    ):
        table.add_column(title, justify="right")
    for model in answer.models:
        name, since_start = _name(model), answer.since_start
        if model.since_start.requests:
            rows = [(_start(answer), *_row(model.since_start, since_start))]
            if not _is_young(answer):
                rows.insert(0, (_time(answer.recent), *_row(model.recent, answer.recent)))
            for row in rows:
                table.add_row(name, *row)
                name = ""
        table.add_row(name, "all time", *_totals_row(model.all_time))
    if not answer.models:
        table.add_row("no requests yet", _start(answer))
    return table


def _row(traffic: pb.ModelTraffic, duration: Duration) -> list[str]:
    seconds = _seconds(duration)
    batches = sum(traffic.batch_sizes.values())
    batched = sum(size * count for size, count in traffic.batch_sizes.items())
    latency = traffic.latency
    return [
        str(traffic.requests),
        str(sum(traffic.errors.values())),
        str(traffic.items),
        f"{traffic.items / seconds:.1f}" if seconds else "-",
        f"{traffic.tokens / seconds:.0f}" if seconds else "-",
        str(traffic.truncated),
        f"{batched / batches:.1f}" if batches else "-",
        *(_ms(each) for each in (latency.p50_us, latency.p90_us, latency.p95_us, latency.p99_us)),
        _ms(traffic.queue.p50_us),
        _ms(traffic.inference.p50_us),
    ]


def _totals_row(totals: pb.ModelTotals) -> list[str]:
    failed = sum(totals.errors.values())
    counts = (totals.requests, failed, totals.items, "", "", totals.truncated)
    return [str(count) for count in counts]


def _usage(answer: pb.GetStatisticsResponse) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("caller", no_wrap=True)
    table.add_column("model", no_wrap=True)
    recent, start = _time(answer.recent), _start(answer)
    since = 1 if _is_young(answer) else 0
    for span in (recent, start, "all time")[since:]:
        for title in ("requests", "failed", "items", "tokens"):
            table.add_column(f"{title}, {span}", justify="right")
    for usage in answer.usage:
        counts = [
            str(count)
            for each in (usage.recent, usage.since_start, usage.all_time)[since:]
            for count in (each.requests, each.failed, each.items, each.tokens)
        ]
        table.add_row(escape(usage.caller), usage.model or "(unknown)", *counts)
    return table


def _is_young(answer: pb.GetStatisticsResponse) -> bool:
    """Whether the window reaches back to the start: once is enough then."""
    return _time(answer.recent) == _time(answer.since_start)


def _start(answer: pb.GetStatisticsResponse) -> str:
    """The time since the start, so that it does not read like a window."""
    return f"{_time(answer.since_start)} since start"


def _gpu(gpu: pb.GpuStatistics) -> str:
    if not gpu.HasField("utilization"):
        return f"{gpu.device}: its driver does not tell how busy it is"
    return f"{gpu.device}: busy {gpu.utilization:.0%}, memory {gpu.memory_utilization:.0%}"


def _name(model: pb.ModelStatistics) -> str:
    return f"{model.model}@{model.version}" if model.model else "(unknown)"


def _errors(traffic: pb.ModelTraffic) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(traffic.errors.items()))


def _ms(microseconds: int) -> str:
    return f"{microseconds / 1000:.1f}"


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9


def _time(duration: Duration) -> str:
    """A length of time, short: `58 s`, `12 min`, `3.4 h`."""
    seconds = _seconds(duration)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
