"""Takes the measurements, the bare limit and the servers in turn.

So a noisy moment of the machine hits both, and their ratio stays true.

Three kinds of process: the bare runtime, the load generator, the servers. Only one of
them works at a time, but for the generator and the server it loads. This process waits.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import grpc
import numpy as np

from loadtests import bare, load, stats
from loadtests.bare import BareModel, BareWindow, Float32, Layout
from loadtests.http2 import OK
from loadtests.results import ALONE_PARTS, AloneWindow, ClosedWindow, LimitResult, OpenWindow
from loadtests.rows import Row
from loadtests.servers import ServerConfig, ServerUnderTest
from loadtests.workloads import BLOCK, SPECS, Workload, make_workload
from shoal.v1 import embed_pb2, embed_pb2_grpc, model_control_pb2, model_control_pb2_grpc

P = ParamSpec("P")
T = TypeVar("T")
ClosedFigures = Callable[[BareWindow, BareWindow], ClosedWindow]
"""Takes the limit before and after."""

# Texts whose answers are compared with the bare run's.
_CHECKED_TEXTS = 2 * BLOCK
LEAST_COSINE = 0.99999
_LAYOUTS = (
    *(Layout(2, 1, tokens) for tokens in (64, 128, 256, 512)),
    *(Layout(1, 2, tokens) for tokens in (128, 256, 512)),
)
# What the limit sorts together: the more, the less padding, and the longer a window.
_SORTED_TEXTS = {"short": 8 * BLOCK, "medium": 2 * BLOCK, "mixed": 4 * BLOCK}
_JOB_S = 300.0
_ALONE_TEXTS = 6 * BLOCK


class Job:
    """A process of its own that runs functions of this package, one at a time."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's value; it ran in the other process."""
        return self._pool.submit(function, *args, **kwargs).result(_JOB_S)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to look at each thing, in seconds."""

    warm_up_s: float
    window_s: float
    limit_s: float
    layout_s: float
    """For each layout tried; 0: only those that were best wherever this was run."""
    alone_repeats: int
    open_window_s: float


FULL = Pace(0.5, 2.0, 1.5, 0.4, 100, 5.0)
QUICK = Pace(0.5, 1.6, 1.2, 0.0, 80, 4.0)
_USUAL_LAYOUTS = (Layout(2, 1, 128), Layout(2, 1, 256))


class Bench:
    """The bare limit, the generator and the workloads, for as long as a run lasts."""

    def __init__(self, folder: Path, graph: str, pace: Pace, workloads: Sequence[str]) -> None:
        self.pace = pace
        model = BareModel(folder, graph)
        self.workloads = {
            name: make_workload(SPECS[name], model.count_tokens) for name in workloads
        }
        self.limits: dict[str, LimitResult] = {}
        self._layouts: dict[str, Layout] = {}
        self._expected_per_s: dict[str, float] = {}
        self._references: dict[str, Float32] = {}
        self._bare = Job()
        self._bare.run(bare.open_here, folder, graph)
        self._generator = Job()

    def close(self) -> None:
        """End the processes."""
        self._bare.close()
        self._generator.close()

    # -- the limit ---------------------------------------------------------------

    def find_limit(self, name: str) -> None:
        """Choose the best layout for a workload, and learn the vectors of some texts.

        The best is the one of least CPU time per embedding: all of them keep every core
        busy, so on a quiet machine it also is the fastest, and on a noisy one it can
        still be told.
        """
        texts = self.workloads[name].texts
        self._references[name] = self._bare.run(bare.run_vectors, texts[:_CHECKED_TEXTS])
        layouts = _LAYOUTS if self.pace.layout_s else _USUAL_LAYOUTS
        seconds = self.pace.layout_s or 0.5
        tried: dict[Layout, list[BareWindow]] = {layout: [] for layout in layouts}
        for order in (layouts, layouts[::-1]):
            for layout in order:
                window = self._bare.run(bare.run_window, texts, layout, 2 * BLOCK, seconds)
                tried[layout].append(window)
        cpu_us = {
            layout: statistics.mean(each.cpu_us_per_embedding for each in windows)
            for layout, windows in tried.items()
        }
        best = self._layouts[name] = min(cpu_us, key=cpu_us.__getitem__)
        self._expected_per_s[name] = max(each.embeddings_per_s for each in tried[best])
        self.limits[name] = LimitResult(
            str(best), {str(layout): value for layout, value in cpu_us.items()}, []
        )

    def limit_window(self, name: str) -> BareWindow:
        """The limit now."""
        texts = self.workloads[name].texts
        window = self._bare.run(
            bare.run_window, texts, self._layouts[name], _SORTED_TEXTS[name], self.pace.limit_s
        )
        self.limits[name].windows.append(window)
        self._expected_per_s[name] = window.embeddings_per_s
        return window

    # -- the servers -------------------------------------------------------------

    def closed(
        self, server: ServerUnderTest, row: Row
    ) -> Callable[[BareWindow, BareWindow], ClosedWindow]:
        """Measure a row; give the limit before and after to get the figures."""
        wave_s = row.callers * row.texts / max(self._expected_per_s[row.workload], 1)
        before = server.metrics()
        run = self._generator.run(
            load.run_load,
            load.LoadJob(
                address=server.address,
                server_pid=server.pid,
                requests=_requests(self.workloads[row.workload], row.texts),
                warm_up_s=max(self.pace.warm_up_s, 1.1 * wave_s),
                window_s=max(self._window_s(row.workload), wave_s),
                callers=row.callers,
                stream=row.stream,
                keep_answers=_CHECKED_TEXTS // row.texts,
            ),
        )
        batches = _batches(before, server.metrics())
        per_s = stats.requests_per_s(run) * row.texts
        embeddings = per_s * (run.window_s[1] - run.window_s[0])
        statuses = stats.count_statuses(run)

        def figures(limit_before: BareWindow, limit_after: BareWindow) -> ClosedWindow:
            limits = (limit_before, limit_after)
            return ClosedWindow(
                embeddings_per_s=per_s,
                cpu_us=run.server_cpu_s / embeddings * 1e6,
                generator_cpu_us=run.generator_cpu_s / embeddings * 1e6,
                limit_per_s=statistics.mean(each.embeddings_per_s for each in limits),
                limit_cpu_us=statistics.mean(each.cpu_us_per_embedding for each in limits),
                latency=stats.Percentiles.of(stats.answered_latencies_s(run)),
                batch_items=batches[0],
                padding_waste=batches[1],
                errors=sum(count for status, count in statuses.items() if status != OK),
                least_cosine=self._least_cosine(row, run.answers),
                others_share=run.others_share,
            )

        return figures

    def open(
        self,
        server: ServerUnderTest,
        name: str,
        *,
        share: float,
        capacity_per_s: float,
        timeout_ms: int,
    ) -> OpenWindow:
        """Arrivals at a share of capacity, one text each.

        Above capacity the queue takes time to fill to what the deadline allows: the
        warm-up is that long.
        """
        fill_s = timeout_ms / 1000 / (share - 1) if share > 1 else 0.0
        run = self._generator.run(
            load.run_load,
            load.LoadJob(
                address=server.address,
                server_pid=server.pid,
                requests=_requests(self.workloads[name], 1),
                warm_up_s=1.0 + min(fill_s, 6.0),
                window_s=self.pace.open_window_s,
                arrivals_per_s=share * capacity_per_s,
                timeout_ms=timeout_ms,
            ),
        )
        return OpenWindow(
            capacity_per_s=capacity_per_s,
            arrivals_per_s=share * capacity_per_s,
            goodput_per_s=stats.goodput_per_s(run),
            latency=stats.Percentiles.of(stats.scheduled_latencies_s(run)),
            refused_latency=stats.Percentiles.of(stats.scheduled_latencies_s(run, well=False)),
            statuses=stats.count_statuses(run),
            lateness_p99_ms=float(np.percentile(run.lateness_s, 99)) * 1000,
            others_share=run.others_share,
        )

    def capacity_per_s(self, server: ServerUnderTest, name: str) -> float:
        """What a closed loop of 64 callers reaches now, one text a request."""
        run = self._generator.run(
            load.run_load,
            load.LoadJob(
                address=server.address,
                server_pid=server.pid,
                requests=_requests(self.workloads[name], 1),
                warm_up_s=self.pace.warm_up_s,
                window_s=self._window_s(name),
                callers=64,
            ),
        )
        return stats.requests_per_s(run)

    def alone(self, server: ServerUnderTest, name: str) -> AloneWindow:
        """One caller with one text a request, beside a bare process with the same texts."""
        texts = self.workloads[name].texts[:_ALONE_TEXTS]
        repeats = self.pace.alone_repeats
        one_s = self._bare.run(bare.run_alone, texts, 1, repeats)
        run = self._generator.run(
            load.run_load,
            load.LoadJob(
                address=server.address,
                server_pid=server.pid,
                requests=_requests(self.workloads[name], 1)[:_ALONE_TEXTS],
                warm_up_s=0.2,
                window_s=1.2 * sum(one_s),
                callers=1,
                keep_answers=_ALONE_TEXTS,
            ),
        )
        all_s = self._bare.run(bare.run_alone, texts, multiprocessing.cpu_count(), repeats)
        server_p50_ms = statistics.median(stats.answered_latencies_s(run)) * 1000
        return AloneWindow(
            server_p50_ms=server_p50_ms,
            bare_p50_ms=statistics.median(one_s) * 1000,
            bare_all_cores_p50_ms=statistics.median(all_s) * 1000,
            spent_ms=_spent_ms(server_p50_ms, run.answers.values()),
        )

    def _window_s(self, name: str) -> float:
        """Long texts: fewer of them a second, so longer."""
        return self.pace.window_s * (1.6 if name == "mixed" else 1.0)

    def _least_cosine(self, row: Row, answers: dict[int, bytes]) -> float:
        """Of the kept answers, to the vectors of the bare run."""
        cosines = [1.0]
        for place, raw in answers.items():
            answer = embed_pb2.EmbedResponse.FromString(raw)
            rows = np.frombuffer(answer.vectors, "<f4").reshape(-1, answer.dimensions)
            wanted = self._references[row.workload][place * row.texts :][: len(rows)]
            norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(wanted, axis=1)
            cosines.append(float(((rows * wanted).sum(axis=1) / norms).min()))
        return min(cosines)


def _spent_ms(server_p50_ms: float, answers: Iterable[bytes]) -> dict[str, float]:
    """Where the time of the median request went, as the answers tell."""
    timings = [embed_pb2.EmbedResponse.FromString(raw).timings for raw in answers]
    total, tokenize, queue, run = (
        statistics.median(getattr(each, name) for each in timings) / 1000
        for name in ("total_us", "tokenize_us", "queue_us", "inference_us")
    )
    rest, outside = total - tokenize - queue - run, server_p50_ms - total
    return dict(zip(ALONE_PARTS, (tokenize, queue, run, rest, outside), strict=True))


def measure_cold_ms(server: ServerUnderTest, text: str, repeats: int) -> list[float]:
    """First answers of a model that is not in memory, milliseconds.

    The model is unloaded before each; the channel and the process are warm.
    """
    request = embed_pb2.EmbedRequest(texts=[text])
    times_ms = []
    with grpc.insecure_channel(server.address) as channel:
        embed = embed_pb2_grpc.EmbedServiceStub(channel)
        control = model_control_pb2_grpc.ModelControlServiceStub(channel)
        for _ in range(repeats):
            control.UnloadModel(model_control_pb2.UnloadModelRequest(), timeout=30)
            began_s = time.perf_counter()
            embed.Embed(request, timeout=30)
            times_ms.append((time.perf_counter() - began_s) * 1000)
    return times_ms


@contextmanager
def started(configs: Sequence[ServerConfig], models: Path) -> Iterator[list[ServerUnderTest]]:
    """Servers of all configurations, started one after the other."""
    with ExitStack() as exits:
        yield [exits.enter_context(ServerUnderTest(config, models)) for config in configs]


def _requests(workload: Workload, texts: int) -> list[bytes]:
    return [
        embed_pb2.EmbedRequest(texts=workload.texts[at : at + texts]).SerializeToString()
        for at in range(0, len(workload.texts), texts)
    ]


def _batches(before: dict[str, float], after: dict[str, float]) -> tuple[float, float]:
    """Mean items of a batch, and the share of computed tokens that were padding."""

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    batches = grown("shoal_batch_items_count")
    if not batches:
        return 0.0, 0.0
    padding = grown("shoal_padding_tokens_total")
    computed = padding + grown("shoal_tokens_total")
    return grown("shoal_batch_items_sum") / batches, padding / computed if computed else 0.0
