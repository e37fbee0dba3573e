"""`shoal models usage`: when a running server's models are asked for, and what comes soon."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.table import Table

from shoal.v1 import usage_pb2 as pb
from shoal_server.cli.output import AsJson, echo_message, new_table, unfolded
from shoal_server.cli.remote import Address, CaFile, Server, ServerName, Timeout, Tls

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_HOURS = 24
_BLOCKS = "▁▂▃▄▅▆▇█"
_BUSIEST = 3


def usage(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]", help="As callers ask for it, shown hour by hour. Default: all."
        ),
    ] = "",
    as_json: AsJson = False,
    address: Address = "",
    timeout_s: Timeout = 10,
    tls: Tls = False,
    ca_file: CaFile = None,
    server_name: ServerName = "",
) -> None:
    """Show in which hours of the week models are asked for, and what is expected soon.

    Hours are those of UTC.
    """
    request = pb.GetUsageRequest(model=model)
    with Server(address, tls, ca_file, server_name).control() as control:
        answer = control.GetUsage(request, timeout=timeout_s)
    if as_json:
        echo_message(answer)
        return
    console = unfolded()
    console.print(_patterns(answer))
    for pattern in answer.patterns if model else ():
        for line in week(pattern.requests_by_hour):
            console.print(line, highlight=False)
    console.print(_predictions(answer))


def week(requests_by_hour: Sequence[float]) -> Iterator[str]:
    """A line for the hours, and one for each day of the week."""
    most = max(requests_by_hour)
    yield "UTC  " + "".join(f"{hour:02}    " for hour in range(0, _HOURS, 3))
    for number, day in enumerate(_DAYS):
        hours = requests_by_hour[number * _HOURS : (number + 1) * _HOURS]
        bars = " ".join(_bar(each, most) for each in hours)
        yield f"{day}  {bars}  {sum(hours):.1f}"


def _bar(value: float, most: float) -> str:
    if not value:
        return "·"
    return _BLOCKS[min(len(_BLOCKS) - 1, int(len(_BLOCKS) * value / most))]


def _patterns(answer: pb.GetUsageResponse) -> Table:
    table = new_table("model", "requests a week", "busiest hours, UTC", "asked for last")
    for each in answer.patterns:
        hours = each.requests_by_hour
        busiest = sorted(range(len(hours)), key=lambda hour: -hours[hour])[:_BUSIEST]
        table.add_row(
            each.model,
            f"{sum(hours):.1f}",
            ", ".join(f"{_hour(hour)} ({hours[hour]:.1f})" for hour in busiest if hours[hour]),
            each.last_asked.ToDatetime().isoformat(sep=" ", timespec="minutes"),
        )
    if not answer.patterns:
        table.add_row("no requests yet")
    return table


def _predictions(answer: pb.GetUsageResponse) -> Table:
    within = f"within {answer.horizon.ToNanoseconds() / 6e10:.0f} min"
    table = new_table(within, "probability", "requests", "means", "loaded ahead")
    for each in answer.predictions:
        table.add_row(
            each.model,
            f"{each.probability:.0%}",
            f"{each.expected_requests:.1f}",
            each.version,
            f"no: {each.obstacle}" if each.obstacle else _yes(answer),
        )
    if not answer.predictions:
        table.add_row("nothing is expected")
    return table


def _yes(answer: pb.GetUsageResponse) -> str:
    return "yes" if answer.preload_ahead else "no: preload_ahead is off"


def _hour(hour: int) -> str:
    return f"{_DAYS[hour // _HOURS]} {hour % _HOURS:02}:00"
