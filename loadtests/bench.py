"""`make bench`: how near the server comes to the bare runtime, and to its goals.

python -m loadtests.bench                         all of it, under ten minutes
python -m loadtests.bench --quick                 under 90 seconds
python -m loadtests.bench --rows short:64x1,mixed:8x32:stream --repeat 5
python -m loadtests.bench --set max_batch_items=16
python -m loadtests.bench --server wide:intra_op_threads=2 --server narrow:
python -m loadtests.bench --server old:root=/path/to/checkout --server new:
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import sys
import time
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from rich.console import Console

from loadtests import measure
from loadtests.bare import BareWindow
from loadtests.goals import outcomes
from loadtests.management import measure_management
from loadtests.policy_cost import measure_policy_cost
from loadtests.report import html_report, print_report
from loadtests.results import (
    AloneResult,
    ClosedResult,
    ClosedWindow,
    OpenResult,
    Results,
    ServerResult,
    WorkloadInfo,
)
from loadtests.rows import FULL, QUICK, Row, parse_rows
from loadtests.servers import (
    ROOT,
    ServerConfig,
    ServerStartError,
    ServerUnderTest,
    stop_on_sigterm,
)

_LOADS = (0.5, 0.8, 0.95, 1.2)
_QUICK_LOADS = (0.8, 1.2)
# Rows that share the same two measurements of the limit.
_ROWS_BETWEEN_LIMITS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; 0 unless answers were wrong or failed."""
    options = _parser().parse_args(arguments)
    stop_on_sigterm()
    began_s = time.perf_counter()
    # A log has no width; these tables need one.
    console = Console() if sys.stdout.isatty() else Console(width=150)
    if options.report:
        results = Results.read(options.report)
    else:
        try:
            results = _measure(options, console)
        except ServerStartError as error:
            console.print(f"[red]{error}")
            return 2
        results.took_s = time.perf_counter() - began_s
    print_report(results, console)
    if not options.report:
        _write(results, options.out, console)
    return _verdict(results, console, strict=options.strict)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rows, once, under 90 seconds")
    add("--rows", type=parse_rows, help="closed-loop rows: WORKLOAD:CALLERSxTEXTS[:stream],…")
    add("--repeat", type=int, help="repetitions; medians are reported (3; quick: 1)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
        help="a setting for every server")  # fmt: skip
    add("--server", action="append", default=[], metavar="NAME:KEY=VALUE,…", dest="servers",
        help="a server to compare; settings as for --set, root=PATH: another checkout")  # fmt: skip
    add("--server-root", type=Path, default=ROOT, help="the checkout whose code runs")
    add("--models", type=Path, default=ROOT / "models", help="the model repository")
    add("--model", default="all-minilm-l6-v2/1", help="NAME/VERSION in it, the default model")
    add("--graph", default="model.onnx", help="the version's graph that the bare run opens")
    add("--precision", help="of that graph, for the choice of goals (its manifest's)")
    add("--limit-s", type=float, default=590.0, help="begin no repetition that would end later")
    add("--no-open", action="store_true", help="leave out the open loop")
    add("--only-closed", action="store_true", help="closed-loop rows and nothing else")
    add("--deadline-ms", type=int, default=1000, help="of open-loop requests")
    add("--out", type=Path, default=ROOT / "loadtests" / "reports", help="folder of the reports")
    add("--report", type=Path, help="print the report of an earlier run's JSON")
    add("--strict", action="store_true", help="exit 1 when a goal is missed")
    return parser


def _measure(options: argparse.Namespace, console: Console) -> Results:
    ends_s = time.perf_counter() + options.limit_s
    rows: Sequence[Row] = options.rows or (QUICK if options.quick else FULL)
    repeat = options.repeat or (1 if options.quick else 3)
    others = not options.only_closed
    workloads = list(dict.fromkeys(["short"] * others + [row.workload for row in rows]))
    folder: Path = options.models / options.model
    pace = measure.QUICK if options.quick else measure.FULL
    results = _blank(options, folder)
    bench = measure.Bench(folder, options.graph, pace, workloads)
    try:
        for name, workload in bench.workloads.items():
            results.workloads[name] = WorkloadInfo(
                len(workload.texts), workload.mean_tokens, workload.fingerprint
            )
        with measure.started(_configs(options), options.models.resolve()) as servers:
            for name in workloads:
                console.print(f"the bare limit on {name}", style="dim")
                bench.find_limit(name)
            results.limit = bench.limits
            if others:
                _measure_starts(results, bench, servers, options, console)
                _measure_management(results, folder, options, console)
            if others and not options.no_open:
                loads = _QUICK_LOADS if options.quick else _LOADS
                _measure_open(results, bench, servers, loads, options, console)
            _Rows(results, bench, servers, console).run(rows, repeat, ends_s)
        if others:
            results.policy = measure_policy_cost()
    finally:
        bench.close()
    return results


def _configs(options: argparse.Namespace) -> list[ServerConfig]:
    common = dict(_pair(text) for text in options.settings)
    if not options.servers:
        return [ServerConfig("shoal", common, options.server_root.resolve())]
    configs = []
    for text in options.servers:
        name, _, rest = text.partition(":")
        own = dict(_pair(part) for part in rest.split(",") if part)
        root = Path(own.pop("root", options.server_root)).resolve()
        configs.append(ServerConfig(name, {**common, **own}, root))
    return configs


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SystemExit(f"{text!r} is not NAME=VALUE")
    return name.strip(), value.strip()


def _blank(options: argparse.Namespace, folder: Path) -> Results:
    manifest = tomllib.loads((folder / "version.toml").read_text(encoding="utf-8"))
    return Results(
        made_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "loadtests.bench", *sys.argv[1:]]),
        machine=_machine(),
        model=options.model,
        precision=options.precision or manifest.get("precision", "fp32"),
    )


def _machine() -> dict[str, str]:
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("onnxruntime", "tokenizers", "grpcio", "protobuf", "uvloop")
    )
    return {
        "machine": f"{os.cpu_count()} × {processor}",
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "software": f"Python {platform.python_version()}, {versions}",
    }


def _measure_management(
    results: Results, folder: Path, options: argparse.Namespace, console: Console
) -> None:
    loads, calls = (5, 20) if options.quick else (15, 50)
    for config in _configs(options):
        console.print(f"management, {config.name}", style="dim")
        results.management.append(measure_management(config, folder, loads=loads, calls=calls))


def _measure_starts(
    results: Results,
    bench: measure.Bench,
    servers: Sequence[ServerUnderTest],
    options: argparse.Namespace,
    console: Console,
) -> None:
    """How fast servers start, from all of their starts, and models load."""
    for server in servers:
        console.print(f"start and cold model, {server.config.name}", style="dim")
        starts_s = [server.start_s]
        for _ in range(1 if options.quick else 2):
            with ServerUnderTest(server.config, options.models.resolve()) as another:
                starts_s.append(another.start_s)
        text = bench.workloads["short"].texts[0]
        results.servers.append(
            ServerResult(
                server.config.name,
                str(server.config),
                starts_s,
                measure.measure_cold_ms(server, text, 2 if options.quick else 4),
            )
        )


class _Rows:
    """Measures the closed-loop rows, the limit before and after every few of them."""

    def __init__(
        self,
        results: Results,
        bench: measure.Bench,
        servers: Sequence[ServerUnderTest],
        console: Console,
    ) -> None:
        self._results = results
        self._bench = bench
        self._servers = servers
        self._console = console
        self._closed: dict[tuple[Row, str], ClosedResult] = {}
        if not results.servers:
            results.servers = [
                ServerResult(each.config.name, str(each.config), [each.start_s], [])
                for each in servers
            ]

    def run(self, rows: Sequence[Row], repeat: int, ends_s: float) -> None:
        """Measure, the servers of a row in turn, another one first each time.

        Args:
            rows: What to measure.
            repeat: How often; less where a repetition would not end in time.
            ends_s: On `time.perf_counter`.
        """
        for row in rows:
            for server in self._servers:
                found = self._closed[row, server.config.name] = ClosedResult(
                    server.config.name, row
                )
                self._results.closed.append(found)
        took_s = 0.0
        for repetition in range(repeat):
            began_s = time.perf_counter()
            if began_s + took_s > ends_s:
                self._console.print(
                    f"{repetition} of {repeat} repetitions: time is up", style="red"
                )
                return
            turn = repetition % len(self._servers)
            order = [*self._servers[turn:], *self._servers[:turn]]
            for name in dict.fromkeys(row.workload for row in rows):
                mine = [row for row in rows if row.workload == name]
                self._console.print(
                    f"closed loop, {name}, {repetition + 1} of {repeat}", style="dim"
                )
                limit = self._bench.limit_window(name)
                for at in range(0, len(mine), _ROWS_BETWEEN_LIMITS):
                    limit = self._few(mine[at : at + _ROWS_BETWEEN_LIMITS], order, limit)
                if Row(name, 1, 1) in mine:
                    self._alone(order, name)
            took_s = time.perf_counter() - began_s

    def _few(
        self, rows: Sequence[Row], servers: Sequence[ServerUnderTest], before: BareWindow
    ) -> BareWindow:
        """Some rows, then the limit once more."""
        pending = [
            (row, server.config.name, self._bench.closed(server, row))
            for row in rows
            for server in servers
        ]
        after = self._bench.limit_window(rows[0].workload)
        for row, name, figures in pending:
            window = figures(before, after)
            self._closed[row, name].windows.append(window)
            self._show(row, name, window)
        return after

    def _alone(self, servers: Sequence[ServerUnderTest], workload: str) -> None:
        for server in servers:
            found = next(
                (
                    each
                    for each in self._results.alone
                    if (each.server, each.workload) == (server.config.name, workload)
                ),
                None,
            )
            if found is None:
                found = AloneResult(server.config.name, workload)
                self._results.alone.append(found)
            found.windows.append(self._bench.alone(server, workload))

    def _show(self, row: Row, name: str, window: ClosedWindow) -> None:
        self._console.print(
            f"  {row!s:24} {name:10} {window.embeddings_per_s:7.1f}/s {window.share:6.3f} of the "
            f"limit, CPU {window.cpu_us:7.0f} µs = {window.cpu_ratio:5.3f} × bare, "
            f"generator {window.generator_cpu_us:4.0f} µs, batch {window.batch_items:4.1f}, "
            f"others {window.others_share:3.0%}",
            style="dim",
        )


def _measure_open(
    results: Results,
    bench: measure.Bench,
    servers: Sequence[ServerUnderTest],
    loads: Sequence[float],
    options: argparse.Namespace,
    console: Console,
) -> None:
    for server in servers:
        for share in loads:
            console.print(f"open loop, {share:.0%}, {server.config.name}", style="dim")
            capacity_per_s = bench.capacity_per_s(server, "short")
            window = bench.open(
                server, "short", share=share, capacity_per_s=capacity_per_s,
                timeout_ms=options.deadline_ms,
            )  # fmt: skip
            results.open.append(OpenResult(server.config.name, "short", share, [window]))


def _write(results: Results, folder: Path, console: Console) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"bench-{results.made_at.replace(':', '').replace('+0000', '')}"
    results.write(stem.with_suffix(".json"))
    stem.with_suffix(".html").write_text(html_report(results), encoding="utf-8")
    console.print(f"in {results.took_s:.0f} s; written: {stem}.json and .html")


def _verdict(results: Results, console: Console, *, strict: bool) -> int:
    wrong = [
        f"{each.server}, {each.row}: cosine {window.least_cosine:.6f} to the bare run"
        for each in results.closed
        for window in each.windows
        if window.least_cosine < measure.LEAST_COSINE
    ]
    failed = [
        f"{each.server}, {each.row}: {window.errors} requests failed"
        for each in results.closed
        for window in each.windows
        if window.errors
    ]
    for problem in wrong + failed:
        console.print(f"[red]{problem}")
    missed = [each for each in outcomes(results) if each.met is False]
    return 1 if wrong or failed or (strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
