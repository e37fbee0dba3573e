"""Prove the CUDA path right, and time it against the bare runtime on the same GPU.

    python scripts/check_cuda.py                               a GPU, and ./models
    python scripts/check_cuda.py --models DIR --json FILE
    python scripts/check_cuda.py --set cuda_cudnn_attention=true
    python scripts/check_cuda.py --device cpu --quick          the same steps without a GPU

Prints one line for each thing that must hold, `PASS` or `FAIL`, and a table of timings;
exits 0 when all hold, 1 when one does not, 2 when there is no CUDA to check.

What must hold, for fp32 and for the fp16 variant (`shoal models quantize NAME
--precision fp16` makes it, on any CPU):

- every vector's cosine to fp32 on the CPU is at least 0.9995;
- a text in a batch, or beside other runs, has the vector that it has alone (0.9999);
- a closed session gives its memory back, again and again, and opened from RAM, with no file
  read, gives the same vectors (what `gpu_idle_s` does with idle models);
- the server's answers are those vectors;
- the server reaches 90% of the bare runtime's embeddings a second, with 64 texts a request.

The bare runtime is a tokenizer and ONNX Runtime's session in this process: the best of
plain runs and I/O binding, of one thread and two, of three sizes of batches, texts sorted
by length. It and the server take turns. What the runtime alone does, its inputs ready, is
shown too: no server that is given texts can reach that.

It needs no network, and of this repository what lies beside it: server, protos, loadtests
and tests/data; nothing of it has to be installed but their dependencies. For a machine that
has no network at all see scripts/carry_to_gpu.py.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "server", ROOT / "protos"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import onnxruntime as ort  # noqa: E402

from loadtests.load import LoadJob, run_load  # noqa: E402
from loadtests.servers import ServerConfig, ServerUnderTest, stop_on_sigterm  # noqa: E402
from loadtests.stats import Percentiles, answered_latencies_s, requests_per_s  # noqa: E402
from loadtests.workloads import SPECS, make_workload  # noqa: E402
from shoal.v1 import embed_pb2  # noqa: E402
from shoal_server.inference.bound_model import BoundModel  # noqa: E402
from shoal_server.inference.cuda import CudaOptions, cuda_problem  # noqa: E402
from shoal_server.inference.graph_in_memory import GraphInMemory, hold  # noqa: E402
from shoal_server.inference.onnx_model import OnnxModel  # noqa: E402
from shoal_server.inference.onnx_session import CPU_PROVIDER  # noqa: E402
from shoal_server.inference.tokenizer import TextTokenizer  # noqa: E402
from shoal_server.registry.manifest import (  # noqa: E402
    GRAPH_FILE,
    TOKENIZER_FILE,
    VersionManifest,
)
from shoal_server.residency.probes import (  # noqa: E402
    Gpus,
    resident_set_bytes,
    return_free_memory,
)

Float32 = npt.NDArray[np.float32]
Ids = Sequence[Sequence[int]]
Feeds = dict[str, npt.NDArray[np.int64]]
T = TypeVar("T")

MIN_COSINE = 0.9995
MIN_COSINE_ALONE = 0.9999
MIN_SHARE = 0.9
_BATCH = 32
_QUICK_STRIDE = 4
_THREADS = 4
_REOPENED = 3
# What may be missing after a session was closed: a tenth of it, or this.
_MISSING_BYTES = 16 << 20
_TEXT_FILES = (
    ROOT / "tests" / "data" / "reference_texts.json",
    *(ROOT / "server" / "shoal_server" / "preparation").glob("*_texts.json"),
)


def main() -> int:
    """Check; the exit status."""
    options = _parse()
    stop_on_sigterm()
    on_gpu = options.device != "cpu"
    problem = cuda_problem() if on_gpu else ""
    if problem:
        print(f"check_cuda: {problem}", file=sys.stderr)
        return 2
    report = Report(_facts(options))
    for name, value in report.facts.items():
        print(f"{name:12} {value}")
    subject = Subject(options)
    checked = [precision for precision in ("fp32", "fp16") if _is_right(subject, precision, report)]
    # As a server chooses; on a CPU the variant is slower than the graph that it is of.
    served = "fp16" if on_gpu and "fp16" in checked else "fp32"
    _time(subject, served, report)
    if options.json:
        options.json.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    failed = [check.name for check in report.checks if not check.holds]
    print(f"check_cuda: {len(report.checks) - len(failed)} hold, {len(failed)} do not")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", type=Path, default=ROOT / "models", help="the repository (./models)")
    add("--model", default="all-minilm-l6-v2", help="default: all-minilm-l6-v2")
    add("--version", default="1", help="default: 1")
    add("--device", default="cuda:0", help="cuda:N, or cpu (default: cuda:0)")
    add("--texts", type=Path, help="JSON list of texts, in place of all others")
    add("--request-texts", type=int, default=64, help="texts a request (64)")
    add("--callers", type=int, default=8, help="requests at once (8)")
    add("--seconds", type=float, default=3.0, help="of each measurement (3)")
    add("--rounds", type=int, default=3, help="of bare and served in turn (3)")
    add("--quick", action="store_true", help="few texts, short ones timed, one short round")
    add("--json", type=Path, help="write figures and checks here")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = min(options.seconds, 0.5), 1
    options.settings = dict(pair.split("=", 1) for pair in options.set)
    return options


# -- what is checked, and what came out ------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold."""

    name: str
    holds: bool
    detail: str


@dataclass(slots=True)
class Report:
    """All that was found."""

    facts: Mapping[str, str]
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)

    def check(self, name: str, holds: bool, detail: str) -> bool:
        """Write down a check, and print it."""
        self.checks.append(Check(name, holds, detail))
        print(f"{'PASS' if holds else 'FAIL'}  {name}: {detail}", flush=True)
        return holds

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        checks = [{"name": c.name, "holds": c.holds, "detail": c.detail} for c in self.checks]
        return {"facts": dict(self.facts), "checks": checks, "figures": self.figures}


class Subject:
    """The model under check, and texts for it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = options.models / options.model / options.version
        self.manifest = VersionManifest.read(self.folder / "version.toml")
        self.tokenizer = TextTokenizer.open(self.folder / TOKENIZER_FILE, self.manifest.max_tokens)
        self.cuda = CudaOptions(
            None,
            "kSameAsRequested",
            "HEURISTIC",
            tf32=False,
            cudnn_attention=options.settings.get("cuda_cudnn_attention", "") in ("1", "true"),
        )

    def graph(self, precision: str) -> Path:
        """The ONNX file; it need not be there."""
        if precision == self.manifest.precision:
            return Path(self.folder / GRAPH_FILE)
        return Path(self.folder / "variants" / precision / GRAPH_FILE)

    def tokenize(self, texts: Sequence[str]) -> Ids:
        """Token ids."""
        return [encoding.ids for encoding in self.tokenizer.encode(texts)]

    def texts(self) -> list[str]:
        """Those whose vectors are compared."""
        files = [self.options.texts] if self.options.texts else _TEXT_FILES
        texts = [text for file in files for text in json.loads(file.read_text(encoding="utf-8"))]
        return texts[:: _QUICK_STRIDE if self.options.quick else 1]

    def workloads(self) -> dict[str, list[str]]:
        """Those that are timed, by name."""
        if self.options.texts:
            return {"given": self.texts()}

        def count_tokens(texts: Sequence[str]) -> list[int]:
            return [len(ids) for ids in self.tokenize(texts)]

        names = ("short",) if self.options.quick else ("short", "mixed")
        return {name: list(make_workload(SPECS[name], count_tokens).texts) for name in names}

    def in_memory(self, precision: str) -> GraphInMemory:
        """The graph and its weights, in RAM."""
        graph = self.graph(precision)
        beside = {path.name: path.read_bytes() for path in graph.parent.glob(f"{graph.name}?*")}
        return hold(graph.read_bytes(), beside)

    def open(
        self, precision: str, lanes: int, in_memory: GraphInMemory | None = None
    ) -> BoundModel:
        """As the server opens it on a GPU."""
        return BoundModel.open(
            self.graph(precision),
            device=self.options.device,
            cuda=self.cuda,
            pad_id=self.tokenizer.pad_id,
            max_tokens=self.manifest.max_tokens,
            dimensions=self.manifest.dimensions,
            lanes=lanes,
            in_memory=in_memory,
        )

    def used_bytes(self) -> int:
        """Memory in use: of the GPU by whomever, of RAM by this process."""
        if self.options.device == "cpu":
            return_free_memory()
            return resident_set_bytes() or 0
        memory = Gpus().memory(int(self.options.device.partition(":")[2] or 0))
        assert memory is not None  # noqa: S101
        return memory.total_bytes - memory.free_bytes


def _facts(options: argparse.Namespace) -> dict[str, str]:
    facts = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": options.device,
        "onnxruntime": f"{ort.__version__}, CUDA {getattr(ort, 'cuda_version', '') or 'none'}",
        "python": platform.python_version(),
        "CPUs": str(len(os.sched_getaffinity(0))),
        "settings": " ".join(options.set) or "none",
    }
    if options.device != "cpu":
        facts["GPU"] = _gpu_name(int(options.device.partition(":")[2] or 0))
    return facts


def _gpu_name(index: int) -> str:
    import pynvml

    pynvml.nvmlInit()
    name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))
    return f"{name}, driver {pynvml.nvmlSystemGetDriverVersion()}"


# -- right ------------------------------------------------------------------------


def _is_right(subject: Subject, precision: str, report: Report) -> bool:
    """Check one precision's vectors; whether it is there and all of them are right."""
    where = f"{precision} on {subject.options.device}"
    if not subject.graph(precision).is_file():
        how = f"shoal models quantize {subject.options.model} --precision {precision}"
        return report.check(f"{where} is there", False, f"make it with `{how}`")
    began_s = time.perf_counter()
    model = subject.open(precision, lanes=_THREADS)
    opened_s = time.perf_counter() - began_s
    report.check(
        f"{where} opens", True, f"in {opened_s:.2f} s; nodes: {_nodes(subject, precision)}"
    )
    sequences = subject.tokenize(subject.texts())
    reference = OnnxModel.open(subject.graph("fp32"), threads=1, pad_id=subject.tokenizer.pad_id)
    expected = _alone(reference.run, sequences)
    reference.close()
    alone = _alone(model.run, sequences)
    holds = [
        _compare(report, f"{where} is fp32 on the CPU", alone, expected, MIN_COSINE),
        _compare(
            report,
            f"{where} is the same in batches",
            _in_batches(model.run, sequences),
            alone,
            MIN_COSINE_ALONE,
        ),
        _compare(
            report,
            f"{where} is the same beside other runs",
            _beside_others(model.run, sequences),
            alone,
            MIN_COSINE_ALONE,
        ),
    ]
    model.close()
    holds.append(_comes_back(subject, precision, alone, sequences, report))
    return all(holds)


def _comes_back(
    subject: Subject, precision: str, expected: Float32, sequences: Ids, report: Report
) -> bool:
    """Open it from RAM and close it, several times."""
    where = f"{precision} on {subject.options.device}"
    in_memory = subject.in_memory(precision)
    before, most, seconds = subject.used_bytes(), 0, []
    for _ in range(_REOPENED):
        began_s = time.perf_counter()
        model = subject.open(precision, lanes=1, in_memory=in_memory)
        seconds.append(time.perf_counter() - began_s)
        found = _alone(model.run, sequences)
        most = max(most, subject.used_bytes() - before)
        model.close()
        del model
    missing = subject.used_bytes() - before
    detail = f"{most / 1e6:.0f} MB open, {missing / 1e6:.0f} MB after {_REOPENED} times"
    freed = report.check(
        f"{where} gives its memory back", missing <= max(_MISSING_BYTES, most / 10), detail
    )
    name = f"{where} is the same out of RAM"
    same = _compare(report, name, found, expected, MIN_COSINE_ALONE)
    print(f"      opened out of RAM in {statistics.median(seconds):.2f} s")
    return freed and same


Run = Callable[..., "object"]


def _rows(run: Run, sequences: Ids) -> Float32:
    result = run(sequences, [False] * len(sequences))
    return np.stack([np.asarray(row, dtype=np.float32) for row in result.rows])  # type: ignore[attr-defined]


def _alone(run: Run, sequences: Ids) -> Float32:
    return np.concatenate([_rows(run, [each]) for each in sequences])


def _in_batches(run: Run, sequences: Ids) -> Float32:
    """In batches of mixed lengths, each text in one of them."""
    order = random.Random(1).sample(range(len(sequences)), len(sequences))  # noqa: S311
    found: dict[int, Float32] = {}
    for at in range(0, len(order), _BATCH):
        places = order[at : at + _BATCH]
        found |= zip(places, _rows(run, [sequences[place] for place in places]), strict=True)
    return np.stack([found[place] for place in range(len(sequences))])


def _beside_others(run: Run, sequences: Ids) -> Float32:
    """Several threads at once, each with all texts; the worst of the threads' rows counts."""
    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(lambda _: _in_batches(run, sequences), range(_THREADS)))
    furthest = np.argmax([np.abs(rows - found[0]).sum(axis=1) for rows in found], axis=0)
    return np.stack([found[thread][row] for row, thread in enumerate(furthest)])


def _compare(report: Report, name: str, found: Float32, expected: Float32, least: float) -> bool:
    cosines = _cosines(found, expected)
    detail = f"cosine {cosines.min():.6f} at least, {cosines.mean():.7f} on average"
    return report.check(name, bool(cosines.min() >= least), f"{detail} ({len(found)} texts)")


def _cosines(left: Float32, right: Float32) -> npt.NDArray[np.float64]:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = (left.astype(np.float64) * right).sum(axis=1) / np.maximum(norms, 1e-30)
    # A text without tokens has the vector zero, and zero is zero. NaN stays NaN and fails.
    return np.where((left == right).all(axis=1), 1.0, cosines)


def _nodes(subject: Subject, precision: str) -> str:
    """How many nodes run where, as the runtime tells it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers = _providers(subject)
    session = ort.InferenceSession(subject.graph(precision), options, providers=providers)
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return "this runtime does not tell"
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _providers(subject: Subject) -> Sequence[object]:
    device = subject.options.device
    if device == "cpu":
        return [CPU_PROVIDER]
    return subject.cuda.providers(int(device.partition(":")[2] or 0))


# -- fast -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to drive the bare runtime."""

    binding: bool
    threads: int
    batch: int

    def __str__(self) -> str:
        how = "I/O binding" if self.binding else "plain runs"
        return f"{how}, {self.threads} at once, batches of {self.batch}"


class Bare:
    """A tokenizer and a session, with nothing around them."""

    def __init__(self, subject: Subject, precision: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            subject.graph(precision), options, providers=_providers(subject)
        )
        self._names = {each.name for each in self._session.get_inputs()}
        self._subject = subject

    def per_s(self, texts: Sequence[str], layout: Layout, seconds: float) -> float:
        """Embeddings a second, tokenizing included."""
        sizes = 4 * layout.batch
        blocks = itertools.cycle([texts[at : at + sizes] for at in range(0, len(texts), sizes)])

        def embed(block: Sequence[str]) -> int:
            sequences = sorted(self._subject.tokenize(block), key=len)
            for at in range(0, len(sequences), layout.batch):
                self._run(self._feeds(sequences[at : at + layout.batch]), layout.binding)
            return len(block)

        return _rate(embed, blocks, layout.threads, seconds)

    def runtime_per_s(self, texts: Sequence[str], layout: Layout, seconds: float) -> float:
        """Embeddings a second where the inputs are there already."""
        sequences = sorted(self._subject.tokenize(texts), key=len)
        ready = [
            self._feeds(sequences[at : at + layout.batch])
            for at in range(0, len(sequences), layout.batch)
        ]
        random.Random(1).shuffle(ready)  # noqa: S311  (a short look sees all lengths)

        def run(feeds: Feeds) -> int:
            self._run(feeds, layout.binding)
            return len(feeds["input_ids"])

        return _rate(run, itertools.cycle(ready), layout.threads, seconds)

    def _feeds(self, sequences: Ids) -> Feeds:
        width = max(map(len, sequences))
        ids = np.zeros((len(sequences), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feeds["position_ids"] = np.tile(np.arange(width), (len(sequences), 1))
        return {name: feeds[name] for name in self._names}

    def _run(self, feeds: Feeds, binding: bool) -> None:
        if not binding:
            self._session.run(["embedding"], feeds)
            return
        bound = self._session.io_binding()
        for name, value in feeds.items():
            bound.bind_cpu_input(name, value)
        bound.bind_output("embedding", "cpu")
        self._session.run_with_iobinding(bound)
        bound.copy_outputs_to_cpu()


def _rate(work: Callable[[T], int], jobs: Iterator[T], threads: int, seconds: float) -> float:
    """What `work` counts, a second, from so many threads."""
    ends_s = time.perf_counter() + seconds

    def loop(_: int) -> tuple[int, float]:
        done, began_s = 0, time.perf_counter()
        while time.perf_counter() < ends_s:
            done += work(next(jobs))
        return done, time.perf_counter() - began_s

    with ThreadPoolExecutor(threads) as pool:
        return sum(done / took_s for done, took_s in pool.map(loop, range(threads)))


def _time(subject: Subject, precision: str, report: Report) -> None:
    """Measure the bare runtime and the server in turn, on each workload."""
    options = subject.options
    bare = Bare(subject, precision)
    with ServerUnderTest(_server(subject, precision), options.models) as server:
        for name, texts in subject.workloads().items():
            layout = _best_layout(bare, texts, options)
            report.check(*_answers(subject, server, texts, name))
            bare_per_s, served = [], []
            for _ in range(options.rounds):
                bare_per_s.append(bare.per_s(texts, layout, options.seconds))
                served.append(_serve(server, texts, options))
            figures = {
                "precision": precision,
                "layout": str(layout),
                "runtime alone, inputs ready, texts/s": bare.runtime_per_s(
                    texts, layout, options.seconds
                ),
                "bare, texts/s": statistics.median(bare_per_s),
                "served, texts/s": statistics.median(each.texts_per_s for each in served),
                "served, p50 ms": statistics.median(each.p50_ms for each in served),
                "served, CPU µs a text": statistics.median(each.cpu_us for each in served),
            }
            report.figures[name] = figures
            _judge(report, name, figures, options)


@dataclass(frozen=True, slots=True)
class Served:
    """What was measured while callers were at a server."""

    texts_per_s: float
    p50_ms: float
    cpu_us: float


def _server(subject: Subject, precision: str) -> ServerConfig:
    options = subject.options
    settings = {
        "device": options.device,
        "precision": precision,
        "default_model": f"{options.model}@{options.version}",
        "cuda_max_batch_items": str(max(128, options.request_texts)),
        "log_level": "warning",
    }
    return ServerConfig("served", settings | options.settings)


def _requests(texts: Sequence[str], size: int) -> list[bytes]:
    """Serialised, of so many texts each; the first ones come again where they do not suffice."""
    count = max(1, len(texts) // size)
    many = list(itertools.islice(itertools.cycle(texts), count * size))
    chunks = [many[at : at + size] for at in range(0, len(many), size)]
    return [embed_pb2.EmbedRequest(texts=chunk).SerializeToString() for chunk in chunks]


def _serve(server: ServerUnderTest, texts: Sequence[str], options: argparse.Namespace) -> Served:
    size = options.request_texts
    job = LoadJob(
        server.address,
        server.pid,
        _requests(texts, size),
        warm_up_s=options.seconds / 3,
        window_s=options.seconds,
        callers=options.callers,
    )
    run = run_load(job)
    per_s = requests_per_s(run) * size
    latencies = Percentiles.of(answered_latencies_s(run))
    window_s = run.window_s[1] - run.window_s[0]
    return Served(
        per_s,
        latencies.p50_ms if latencies else float("nan"),
        run.server_cpu_s / window_s / max(per_s, 1e-9) * 1e6,
    )


def _answers(
    subject: Subject, server: ServerUnderTest, texts: Sequence[str], name: str
) -> tuple[str, bool, str]:
    """Whether the server's vectors are those of fp32 on the CPU; the arguments of a check."""
    size = subject.options.request_texts
    job = LoadJob(
        server.address, server.pid, _requests(texts[:size], size), 0.0, 0.2, callers=1,
        keep_answers=1,
    )  # fmt: skip
    answers = run_load(job).answers
    what = f"the server's vectors, {name}"
    if not answers:
        return what, False, f"no answer; the server said: {server.output()[-500:]}"
    answer = embed_pb2.EmbedResponse.FromString(answers[0])
    found = np.frombuffer(answer.vectors, dtype="<f4").reshape(-1, answer.dimensions)
    reference = OnnxModel.open(subject.graph("fp32"), threads=1, pad_id=subject.tokenizer.pad_id)
    wanted = list(itertools.islice(itertools.cycle(texts[:size]), size))
    cosines = _cosines(found, _alone(reference.run, subject.tokenize(wanted)))
    reference.close()
    return what, bool(cosines.min() >= MIN_COSINE), f"cosine {cosines.min():.6f} at least"


def _best_layout(bare: Bare, texts: Sequence[str], options: argparse.Namespace) -> Layout:
    sizes = (options.request_texts,) if options.quick else (64, 128, 256)
    layouts = [
        Layout(binding, threads, batch)
        for binding in (False, True)
        for threads in (1, 2)
        for batch in sizes
    ]
    seconds = options.seconds / 4
    for layout in layouts:  # each meets its shapes once before it is timed
        bare.per_s(texts, layout, seconds / 2)
    return max(layouts, key=lambda layout: bare.per_s(texts, layout, seconds))


def _judge(
    report: Report, name: str, figures: dict[str, object], options: argparse.Namespace
) -> None:
    for figure, value in figures.items():
        shown = f"{value:.1f}" if isinstance(value, float) else value
        print(f"      {name:6} {figure:36} {shown}")
    bare, served = figures["bare, texts/s"], figures["served, texts/s"]
    assert isinstance(bare, float)  # noqa: S101
    assert isinstance(served, float)  # noqa: S101
    share = served / bare
    figures["share"] = share
    detail = f"{share:.1%} of the bare runtime, {options.request_texts} texts a request"
    if options.device == "cpu":
        print(f"      {name:6} {detail}: not judged on a CPU (`make bench` does that)")
    else:
        report.check(f"the server is fast, {name}", share >= MIN_SHARE, detail)


if __name__ == "__main__":
    sys.exit(main())
