"""What coalescing in the SDK is worth: many callers of one process, a short text a call.

    python -m loadtests.sdk_coalescing
    python -m loadtests.sdk_coalescing --callers 1 --clients asyncio

Both clients with coalescing off and on, each in a process of its own, take turns at one
server, so that a noisy moment hits all of them. Prints medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from loadtests.bare import BareModel
from loadtests.cpu import CpuClock, CpuReading, others_share
from loadtests.measure import Job
from loadtests.servers import ROOT, ServerConfig, ServerUnderTest, stop_on_sigterm
from loadtests.stats import Percentiles
from loadtests.workloads import SPECS, make_workload
from shoal_client import AsyncClient, Client

CLIENTS = ("asyncio", "threads")
_HEADINGS = ("emb/s", "client µs", "server µs", "p50 ms", "p99 ms", "batch", "others")


@dataclass(frozen=True, slots=True)
class Load:
    """What a client is put to."""

    address: str
    server_pid: int
    coalesce: bool
    callers: int
    texts: tuple[str, ...]
    warm_up_s: float
    window_s: float

    def texts_of(self, caller: int) -> Sequence[str]:
        """All texts; each caller begins at another one."""
        return self.texts[caller * len(self.texts) // self.callers :] + self.texts


@dataclass(frozen=True, slots=True)
class Window:
    """What happened in one window. CPU times are per embedding."""

    embeddings_per_s: float
    client_cpu_us: float
    server_cpu_us: float
    p50_ms: float
    p99_ms: float
    others_share: float
    batch_items: float = 0.0
    """Mean of the server's batches; the client can not see them."""

    @classmethod
    def of(
        cls, start: CpuReading, end: CpuReading, spans_s: Sequence[tuple[float, float]]
    ) -> Window:
        """From readings of server and client, and when each call began and ended."""
        inside = [span for span in spans_s if start.at_s <= span[1] < end.at_s]
        latency = Percentiles.of(np.array([ended_s - began_s for began_s, ended_s in inside]))
        assert latency is not None, "no call was answered"
        server_s, client_s = (b - a for a, b in zip(start.of_each, end.of_each, strict=True))
        return cls(
            embeddings_per_s=len(inside) / (end.at_s - start.at_s),
            client_cpu_us=client_s / len(inside) * 1e6,
            server_cpu_us=server_s / len(inside) * 1e6,
            p50_ms=latency.p50_ms,
            p99_ms=latency.p99_ms,
            others_share=others_share(start, end),
        )

    def cells(self) -> list[str]:
        """For the table."""
        return [
            f"{self.embeddings_per_s:.0f}",
            f"{self.client_cpu_us:.0f}",
            f"{self.server_cpu_us:.0f}",
            f"{self.p50_ms:.1f}",
            f"{self.p99_ms:.1f}",
            f"{self.batch_items:.1f}",
            f"{self.others_share:.0%}",
        ]


def run_asyncio(load: Load) -> Window:
    """A closed loop of tasks over one `AsyncClient`."""
    return asyncio.run(_run_tasks(load))


async def _run_tasks(load: Load) -> Window:
    spans_s: list[tuple[float, float]] = []
    clock = CpuClock((load.server_pid, os.getpid()))
    async with AsyncClient(load.address, coalesce=load.coalesce) as client:

        async def call_on(texts: Sequence[str]) -> None:
            for text in cycle(texts):
                began_s = time.perf_counter()
                await client.embed([text])
                spans_s.append((began_s, time.perf_counter()))

        tasks = [asyncio.create_task(call_on(load.texts_of(n))) for n in range(load.callers)]
        await asyncio.sleep(load.warm_up_s)
        start = clock.read()
        await asyncio.sleep(load.window_s)
        end = clock.read()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return Window.of(start, end, spans_s)


def run_threads(load: Load) -> Window:
    """A closed loop of threads over one `Client`."""
    spans_s: list[tuple[float, float]] = []
    clock = CpuClock((load.server_pid, os.getpid()))
    over = threading.Event()
    with Client(load.address, coalesce=load.coalesce) as client:

        def call_on(texts: Sequence[str]) -> None:
            for text in cycle(texts):
                if over.is_set():
                    return
                began_s = time.perf_counter()
                client.embed([text])
                spans_s.append((began_s, time.perf_counter()))

        threads = [
            threading.Thread(target=call_on, args=(load.texts_of(n),)) for n in range(load.callers)
        ]
        for thread in threads:
            thread.start()
        time.sleep(load.warm_up_s)
        start = clock.read()
        time.sleep(load.window_s)
        end = clock.read()
        over.set()
        for thread in threads:
            thread.join()
    return Window.of(start, end, spans_s)


_RUN = {"asyncio": run_asyncio, "threads": run_threads}


def main() -> None:
    """Measure and print."""
    options = _options()
    stop_on_sigterm()
    folder = ROOT / "models" / options.model / options.version
    texts = make_workload(SPECS["short"], BareModel(folder).count_tokens).texts
    variants = [(client, coalesce) for client in options.clients for coalesce in (False, True)]
    windows: dict[tuple[str, bool], list[Window]] = {variant: [] for variant in variants}
    with ExitStack() as exits:
        config = ServerConfig("server", {"default_model": options.model}, options.root)
        server = exits.enter_context(ServerUnderTest(config, ROOT / "models"))
        jobs = {variant: exits.enter_context(closing(Job())) for variant in variants}
        turns = cycle((variants, variants[::-1]))
        for turn in islice(turns, options.repeats):
            for variant in turn:
                client, coalesce = variant
                load = Load(
                    server.address,
                    server.pid,
                    coalesce,
                    options.callers,
                    texts,
                    options.warm_up,
                    options.seconds,
                )
                before = server.metrics()
                window = jobs[variant].run(_RUN[client], load)
                batch_items = _batch_items(before, server.metrics())
                windows[variant].append(replace(window, batch_items=batch_items))
    print(
        f"{options.callers} callers, short texts, medians of {options.repeats}; CPU per embedding"
    )
    _print_row("", _HEADINGS)
    for (client, coalesce), taken in windows.items():
        _print_row(f"{client}, {'on' if coalesce else 'off'}", _median(taken).cells())


def _batch_items(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    return grown("shoal_batch_items_sum") / max(1.0, grown("shoal_batch_items_count"))


def _median(windows: Sequence[Window]) -> Window:
    names = Window.__dataclass_fields__
    return Window(
        **{name: statistics.median(getattr(each, name) for each in windows) for name in names}
    )


def _print_row(name: str, cells: Sequence[str]) -> None:
    print(f"{name:<14}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--callers", type=int, default=64, help="tasks or threads (default: 64)")
    add("--clients", nargs="+", choices=CLIENTS, default=CLIENTS)
    add("--repeats", type=int, default=3, help="windows of each variant (default: 3)")
    add("--seconds", type=float, default=4.0, help="of a window (default: 4)")
    add("--warm-up", type=float, default=0.8, help="seconds before each window (default: 0.8)")
    add("--model", default="all-minilm-l6-v2")
    add("--version", default="1")
    add("--root", type=Path, default=ROOT, help="checkout whose server runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
