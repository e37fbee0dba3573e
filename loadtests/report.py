"""The report of a run: the same tables on the terminal and, with plots, as one HTML file."""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table as RichTable

from loadtests.goals import Outcome, outcomes
from loadtests.http2 import OK
from loadtests.plots import Bar, Line, bar_plot, line_plot
from loadtests.results import (
    ALONE_PARTS,
    AloneResult,
    ClosedResult,
    ManagementResult,
    OpenResult,
    Results,
)
from loadtests.stats import Percentiles

_STYLE = """
body { font: 14px/1.45 sans-serif; color: #222; max-width: 1100px; margin: 2em auto }
table { border-collapse: collapse; margin: .6em 0 1.6em }
caption { text-align: left; font-weight: bold }
th, td { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left; white-space: nowrap }
.met { color: #18794e } .missed { color: #c0392b }
p.note { color: #555; max-width: 62em }
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a title; cells are ready to print."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def print_report(results: Results, console: Console) -> None:
    """All tables, the goals last."""
    for table in tables(results):
        shown = RichTable(title=table.title, title_justify="left", header_style="bold")
        for place, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if place == 0 else "right")
        for row in table.rows:
            style = {"missed": "red", "met": "green"}.get(row[-1])
            shown.add_row(*row, style=style)
        console.print(shown)
        if table.note:
            console.print(table.note, style="dim")


def html_report(results: Results) -> str:
    """One self-contained page."""
    facts = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in _facts(results).items()
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Shoal benchmark</title>"
        f"<style>{_STYLE}</style><h1>Shoal benchmark</h1><table>{facts}</table>"
        + "".join(_plots(results))
        + "".join(map(_html_table, tables(results)))
        + "</html>\n"
    )


def tables(results: Results) -> Iterator[Table]:
    """Limit, closed loop, one caller, open loop, management, goals."""
    yield _limit_table(results)
    if results.closed:
        yield _closed_table(results)
    if results.alone:
        yield _alone_table(results)
    if results.open:
        yield _open_table(results)
    if results.management:
        yield _management_table(results.management)
    yield _goals_table(results)


def _facts(results: Results) -> dict[str, str]:
    return {
        "made": f"{results.made_at}, in {results.took_s:.0f} s",
        "command": results.command,
        **results.machine,
        "model": f"{results.model}, {results.precision}",
        **{
            f"workload {name}": f"{info.texts} texts, {info.mean_tokens:.1f} tokens on average, "
            f"fingerprint {info.fingerprint}"
            for name, info in results.workloads.items()
        },
        **{f"server {each.name}": each.description for each in results.servers},
    }


def _limit_table(results: Results) -> Table:
    rows = []
    for name, limit in results.limit.items():
        per_s = sorted(window.embeddings_per_s for window in limit.windows)
        cpu_us = sorted(window.cpu_us_per_embedding for window in limit.windows)
        if per_s:
            rows.append(
                (
                    name,
                    limit.layout,
                    f"{per_s[len(per_s) // 2]:.0f}",
                    f"{per_s[0]:.0f} – {per_s[-1]:.0f}",
                    f"{cpu_us[len(cpu_us) // 2]:.0f}",
                    f"{cpu_us[0]:.0f} – {cpu_us[-1]:.0f}",
                )
            )
    return Table(
        "The bare limit: tokenizer + ONNX Runtime in one process",
        ("workload", "best layout", "emb/s", "range", "CPU µs/emb", "range"),
        rows,
    )


def _closed_table(results: Results) -> Table:
    several = len(results.servers) > 1
    return Table(
        "Closed loop: workload, callers × texts a request (medians)",
        (
            *("row", *(("server",) if several else ()), "emb/s", "of limit", "±", "p50 ms"),
            *("p95 ms", "p99 ms", "CPU µs", "÷ bare", "±", "gen. µs", "batch"),
            *("padding", "errors", "others"),
        ),
        [_closed_cells(each, several) for each in results.closed],
        "±: (most − least) ÷ median of the ratio over the repetitions. ÷ bare: server CPU per "
        "embedding ÷ the limit's, measured just before and after. others: the machine's CPU time "
        "that went to other processes; above a few percent, read ratios only.",
    )


def _closed_cells(each: ClosedResult, several: bool) -> tuple[str, ...]:
    latencies = [window.latency for window in each.windows if window.latency]
    return (
        str(each.row),
        *((each.server,) if several else ()),
        f"{each.median(lambda w: w.embeddings_per_s):.0f}",
        f"{each.median(lambda w: w.share):.3f}",
        f"{each.spread(lambda w: w.share):.0%}",
        *_median_percentiles(latencies),
        f"{each.median(lambda w: w.cpu_us):.0f}",
        f"{each.median(lambda w: w.cpu_ratio):.3f}",
        f"{each.spread(lambda w: w.cpu_ratio):.0%}",
        f"{each.median(lambda w: w.generator_cpu_us):.0f}",
        f"{each.median(lambda w: w.batch_items):.1f}",
        f"{each.median(lambda w: w.padding_waste):.1%}",
        str(sum(window.errors for window in each.windows)),
        f"{each.median(lambda w: w.others_share):.0%}",
    )


def _alone_table(results: Results) -> Table:
    return Table(
        "One caller, one text a request: p50, ms",
        (
            *("workload", "server", "over the wire", "bare, 1 thread", "above it"),
            *("bare, all cores", "bare, of the limit"),
            *ALONE_PARTS,
        ),
        [
            (
                each.workload,
                each.server,
                f"{each.median(lambda w: w.server_p50_ms):.2f}",
                f"{each.median(lambda w: w.bare_p50_ms):.2f}",
                f"{each.median(lambda w: w.server_p50_ms - w.bare_p50_ms):.2f}",
                f"{each.median(lambda w: w.bare_all_cores_p50_ms):.2f}",
                _bare_alone_share(results, each),
                *(_spent(each, part) for part in ALONE_PARTS),
            )
            for each in results.alone
        ],
        "bare, of the limit: the throughput of one text after the other in a bare process, "
        "without any server: no server can do better with one caller. tokenizer to outside it: "
        "where the time over the wire went, by the answers' timings.",
    )


def _spent(alone: AloneResult, part: str) -> str:
    if not all(part in window.spent_ms for window in alone.windows):
        return "–"  # a report of before these were kept
    return f"{alone.median(lambda w: w.spent_ms[part]):.2f}"


def _bare_alone_share(results: Results, alone: AloneResult) -> str:
    windows = results.limit[alone.workload].windows
    if not windows:
        return "–"
    limit_per_s = statistics.median(window.embeddings_per_s for window in windows)
    alone_ms = alone.median(lambda w: min(w.bare_p50_ms, w.bare_all_cores_p50_ms))
    return f"{1000 / alone_ms / limit_per_s:.2f}"


def _open_table(results: Results) -> Table:
    return Table(
        "Open loop: Poisson arrivals, one text a request, latency from the scheduled time",
        (
            *("load", "server", "arrivals/s", "goodput/s", "of capacity", "p50 ms", "p95 ms"),
            *("p99 ms", "refused", "ref. p50 ms", "ref. p99 ms", "late p99 ms", "others"),
        ),
        [_open_cells(each) for each in results.open],
        "Goodput: answered well within the deadline. Refused: RESOURCE_EXHAUSTED or "
        "DEADLINE_EXCEEDED, ref.: when. late: how late the generator itself sent.",
    )


def _open_cells(each: OpenResult) -> tuple[str, ...]:
    asked = sum(sum(window.statuses.values()) for window in each.windows)
    well = sum(window.statuses.get(OK, 0) for window in each.windows)
    refused = [window.refused_latency for window in each.windows if window.refused_latency]
    refused_ms = _median_percentiles(refused)
    return (
        f"{each.workload} {each.load:.0%}",
        each.server,
        f"{each.median(lambda w: w.arrivals_per_s):.0f}",
        f"{each.median(lambda w: w.goodput_per_s):.0f}",
        f"{each.median(lambda w: w.goodput_per_s / w.capacity_per_s):.3f}",
        *_median_percentiles([window.latency for window in each.windows if window.latency]),
        f"{1 - well / asked:.1%}" if asked else "–",
        refused_ms[0],
        refused_ms[2],
        f"{each.median(lambda w: w.lateness_p99_ms):.1f}",
        f"{each.median(lambda w: w.others_share):.0%}",
    )


def _management_table(found: Sequence[ManagementResult]) -> Table:
    return Table(
        "Managing models: time at the server, ms",
        ("operation", "server", "times", "median", "least", "most"),
        [
            (
                operation,
                each.server,
                str(len(times_ms)),
                f"{each.median_ms(operation):.2f}",
                f"{min(times_ms):.2f}",
                f"{max(times_ms):.2f}",
            )
            for each in found
            for operation, times_ms in each.times_ms.items()
        ],
        "From receiving an RPC to its answer, one at a time, nothing else going on. The switch: "
        "from the new version being warm to the first request that gets it.",
    )


def _median_percentiles(of: Sequence[Percentiles]) -> tuple[str, str, str]:
    if not of:
        return ("–", "–", "–")
    middle = len(of) // 2
    return (
        f"{sorted(each.p50_ms for each in of)[middle]:.1f}",
        f"{sorted(each.p95_ms for each in of)[middle]:.1f}",
        f"{sorted(each.p99_ms for each in of)[middle]:.1f}",
    )


def _goals_table(results: Results) -> Table:
    several = len(results.servers) > 1
    return Table(
        "What it must reach",
        ("goal", *(("server",) if several else ()), "goal is", "measured", "peer", "met"),
        [_goal_cells(each, several) for each in outcomes(results)],
    )


def _goal_cells(outcome: Outcome, several: bool) -> tuple[str, ...]:
    unit = f" {outcome.unit}" if outcome.unit else ""
    measured = "–" if outcome.measured is None else f"{outcome.measured:.3g}{unit}"
    met = {True: "met", False: "missed", None: "not measured"}[outcome.met]
    return (
        outcome.name,
        *((outcome.server,) if several else ()),
        f"{'≤' if outcome.at_most else '≥'} {outcome.goal:g}{unit}",
        measured,
        "–" if outcome.peer is None else f"{outcome.peer:g}",
        met,
    )


def _plots(results: Results) -> Iterator[str]:
    series = {server.name: place for place, server in enumerate(results.servers)}

    def label(each: ClosedResult) -> str:
        return f"{each.row}, {each.server}" if len(series) > 1 else str(each.row)

    if results.closed:
        goals = {(each.server, each.name): each.goal for each in outcomes(results)}
        yield bar_plot(
            "Throughput as a share of the bare limit (red: goal)",
            [
                Bar(
                    label(each),
                    each.median(lambda w: w.share),
                    series[each.server],
                    min(w.share for w in each.windows),
                    max(w.share for w in each.windows),
                    goals.get((each.server, f"share of the limit: {each.row}")),
                )
                for each in results.closed
            ],
            reference=1.0,
        )
        yield bar_plot(
            "Server CPU per embedding ÷ the limit's (red: goal)",
            [
                Bar(
                    label(each),
                    each.median(lambda w: w.cpu_ratio),
                    series[each.server],
                    min(w.cpu_ratio for w in each.windows),
                    max(w.cpu_ratio for w in each.windows),
                    goals.get((each.server, f"CPU ÷ bare: {each.row}")),
                )
                for each in results.closed
            ],
            reference=1.0,
        )
    for server in results.servers:
        found = [each for each in results.open if each.server == server.name]
        lines = [Line(name, points) for name, points in _latency_lines(found) if points]
        if lines:
            yield line_plot(
                f"Open loop, {server.name}: latency from the scheduled time",
                lines,
                x_label="arrivals, % of capacity",
                y_label="ms",
            )


def _latency_lines(found: Sequence[OpenResult]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    for place, name in enumerate(("p50", "p95", "p99")):
        points = []
        for each in found:
            cells = _median_percentiles([w.latency for w in each.windows if w.latency])
            if cells[place] != "–":
                points.append((each.load * 100, float(cells[place])))
        yield name, points


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}" for column in table.columns)
    rows = "".join(
        f'<tr class="{row[-1] if row[-1] in ("met", "missed") else ""}">'
        + "".join(f"<td>{html.escape(cell)}" for cell in row)
        for row in table.rows
    )
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f"<table><caption>{html.escape(table.title)}</caption><tr>{head}{rows}</table>{note}"
