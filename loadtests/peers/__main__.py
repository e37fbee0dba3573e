"""Shoal beside mosec, the best tuned peer that was found: same machine, same files, in turn.

python -m loadtests.peers --peer-python PATH                    every row that has a goal
python -m loadtests.peers --peer-python PATH --rows short:8x1 --repeat 5

PATH: python of an environment that has loadtests/peers/requirements.txt. For each row the bare
limit, Shoal and the peer's layouts take turns, another one first each time; shares are of the
limit measured just before and after. The peer's best layout of a row is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtests import load, measure, stats
from loadtests.goals import SHARES
from loadtests.http2 import OK
from loadtests.load import LoadJob, LoadRun
from loadtests.rows import Row, parse_rows
from loadtests.servers import ROOT, ServerConfig, ServerUnderTest, stop_on_sigterm
from loadtests.workloads import Workload
from shoal.v1 import embed_pb2

_APP = Path(__file__).with_name("mosec_app.py")
# Workers, threads of each, and for how many milliseconds a batch waits.
_PEERS = {"mosec 2 × 1": (2, 1, 2), "mosec 1 × 2": (1, 2, 0)}
_START_S = 60.0
_WARM_UP_S = 0.5
_WINDOW_S = 2.0


@dataclass(frozen=True, slots=True)
class _Target:
    """A server to load."""

    address: str
    pid: int
    http_path: str
    body: Callable[[list[str]], bytes]


@dataclass(frozen=True, slots=True)
class _Window:
    """A server in one row, beside the limit."""

    share: float
    cpu_ratio: float
    others_share: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print; 1 where an answer failed."""
    options = _parser().parse_args(arguments)
    stop_on_sigterm()
    console = Console() if sys.stdout.isatty() else Console(width=150)
    folder: Path = ROOT / "models" / options.model
    rows: Sequence[Row] = options.rows or [row for row, _, _ in SHARES]
    bench = measure.Bench(
        folder, "model.onnx", measure.FULL, list(dict.fromkeys(row.workload for row in rows))
    )
    generator = measure.Job()
    found: dict[tuple[Row, str], list[_Window]] = {}
    try:
        with ExitStack() as exits:
            targets = {"shoal": exits.enter_context(_shoal())}
            for name, layout in _PEERS.items():
                targets[name] = exits.enter_context(_mosec(options.peer_python, folder, layout))
            for name in bench.workloads:
                bench.find_limit(name)
            for repetition in range(options.repeat):
                console.print(f"{repetition + 1} of {options.repeat}", style="dim")
                for row in rows:
                    _measure_row(bench, generator, row, _turned(targets, repetition), found)
    finally:
        generator.close()
        bench.close()
    console.print(_table(rows, ["shoal", *_PEERS], found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--peer-python", type=Path, required=True, help="of the peer's environment")
    add("--rows", type=parse_rows, help="WORKLOAD:CALLERSxTEXTS,… (those with goals)")
    add("--repeat", type=int, default=3, help="repetitions; medians are reported")
    add("--model", default="all-minilm-l6-v2/1", help="NAME/VERSION, the default model")
    return parser


@contextmanager
def _shoal() -> Iterator[_Target]:
    def body(texts: list[str]) -> bytes:
        return embed_pb2.EmbedRequest(texts=texts).SerializeToString()

    with ServerUnderTest(ServerConfig("shoal", {}, ROOT), ROOT / "models") as server:
        yield _Target(server.address, server.pid, "", body)


@contextmanager
def _mosec(python: Path, folder: Path, layout: tuple[int, int, int]) -> Iterator[_Target]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [python, _APP, "--address", "127.0.0.1", "--port", str(port)],
        env={
            **os.environ,
            "PEER_MODEL": str(folder),
            "PEER_LAYOUT": ",".join(map(str, layout)),
            "TOKENIZERS_PARALLELISM": "false",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await_answer(process, port)
        yield _Target(
            f"127.0.0.1:{port}", process.pid, "/inference", lambda texts: json.dumps(texts).encode()
        )
    finally:
        process.terminate()
        process.wait()


def _await_answer(process: subprocess.Popen[bytes], port: int) -> None:
    ends_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < ends_s:
        job = LoadJob(
            address=f"127.0.0.1:{port}", server_pid=process.pid, requests=[b'["a text"]'],
            warm_up_s=0.0, window_s=0.3, callers=1, http_path="/inference",
        )  # fmt: skip
        try:
            if OK in stats.count_statuses(load.run_load(job)):
                return
        except OSError:  # not listening yet
            time.sleep(0.2)
    raise SystemExit("mosec did not start; run loadtests/peers/mosec_app.py by hand to see why")


def _turned(targets: dict[str, _Target], by: int) -> dict[str, _Target]:
    names = list(targets)
    turn = by % len(names)
    return {name: targets[name] for name in names[turn:] + names[:turn]}


def _measure_row(
    bench: measure.Bench,
    generator: measure.Job,
    row: Row,
    targets: dict[str, _Target],
    found: dict[tuple[Row, str], list[_Window]],
) -> None:
    """The limit before and after each server."""
    before = bench.limit_window(row.workload)
    for name, target in targets.items():
        run = generator.run(load.run_load, _job(target, bench.workloads[row.workload], row))
        after = bench.limit_window(row.workload)
        _refuse_failures(name, row, run)
        per_s = stats.requests_per_s(run) * row.texts
        cpu_us = run.server_cpu_s / (per_s * (run.window_s[1] - run.window_s[0])) * 1e6
        limits = (before, after)
        found.setdefault((row, name), []).append(
            _Window(
                per_s / statistics.mean(each.embeddings_per_s for each in limits),
                cpu_us / statistics.mean(each.cpu_us_per_embedding for each in limits),
                run.others_share,
            )
        )
        before = after


def _job(target: _Target, workload: Workload, row: Row) -> LoadJob:
    texts = workload.texts
    window_s = _WINDOW_S * (1.6 if row.workload == "mixed" else 1.0)
    return LoadJob(
        address=target.address,
        server_pid=target.pid,
        requests=[
            target.body(list(texts[at : at + row.texts])) for at in range(0, len(texts), row.texts)
        ],
        warm_up_s=_WARM_UP_S + row.callers * row.texts / 500,
        window_s=max(window_s, row.callers * row.texts / 250),
        callers=row.callers,
        http_path=target.http_path,
    )


def _refuse_failures(name: str, row: Row, run: LoadRun) -> None:
    failed = {code: n for code, n in stats.count_statuses(run).items() if code != OK}
    if failed:
        raise SystemExit(f"{name}, {row}: failed by code: {failed}")


def _table(
    rows: Sequence[Row], names: Sequence[str], found: dict[tuple[Row, str], list[_Window]]
) -> Table:
    table = Table("row", *(f"{name}: of limit (range), CPU ÷ bare" for name in names), "others")
    for row in rows:
        cells = []
        for name in names:
            windows = found[row, name]
            shares = [each.share for each in windows]
            cpu = statistics.median(each.cpu_ratio for each in windows)
            cells.append(
                f"{statistics.median(shares):.2f} ({min(shares):.2f}–{max(shares):.2f}), {cpu:.2f}"
            )
        others = [each.others_share for name in names for each in found[row, name]]
        table.add_row(str(row), *cells, f"{statistics.median(others):.0%}")
    return table


if __name__ == "__main__":
    sys.exit(main())
