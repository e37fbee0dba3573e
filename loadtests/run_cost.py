"""What a run of the default model costs: as exported, without padding, without denormals.

    python -m loadtests.run_cost

One thread, CPU time; the three forms take turns, and the figures are medians. Below, by
ONNX Runtime's own profile, where the time of one batch goes.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from loadtests.servers import ROOT
from shoal_server.inference.collate import collate
from shoal_server.inference.denormals import flush_denormals
from shoal_server.inference.packed import GRAPH
from shoal_server.inference.packing import save_packed

_VERSION = ROOT / "models" / "all-minilm-l6-v2" / "1"
_VOCABULARY, _MAX_TOKENS = 30_522, 256
_PROFILED = "32 short"
_KINDS = 7

Ids = list[list[int]]


@dataclass(frozen=True, slots=True)
class Form:
    """One way to run the graph."""

    name: str
    graph: Path
    packed: bool = False
    flushing: bool = False

    def open(self, profile: Path | None = None) -> ort.InferenceSession:
        """A session of one thread, with the optimisations that the form stands for."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if self.packed:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        return ort.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])

    def thread(self) -> ThreadPoolExecutor:
        """A thread for its runs."""
        return ThreadPoolExecutor(1, initializer=flush_denormals if self.flushing else None)


def batches() -> dict[str, Ids]:
    """Texts of random tokens, by what their lengths are."""
    draw = random.Random(1)

    def texts(count: int, length: Callable[[], int]) -> Ids:
        return [[draw.randrange(1000, 20_000) for _ in range(length())] for _ in range(count)]

    equal = {f"{count} × 12": texts(count, lambda: 12) for count in (1, 2, 4, 8, 16, 32)}
    short = {f"{count} short": texts(count, lambda: draw.randrange(6, 21)) for count in (8, 32)}
    mixed = {
        f"{count} mixed": texts(count, lambda: int(6 * (257 / 6) ** draw.random()))
        for count in (4, 16)
    }
    return equal | {"1 × 256": texts(1, lambda: 256)} | short | mixed


def feeds_of(batch: Ids) -> dict[str, np.ndarray]:
    """What the graph takes."""
    ids, mask = collate(batch, 0)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def run_s(session: ort.InferenceSession, batch: Ids) -> float:
    """CPU time of one run in this thread."""
    feeds = feeds_of(batch)
    began_s = time.thread_time()
    session.run(["embedding"], feeds)
    return time.thread_time() - began_s


def times_s(forms: Sequence[Form], rounds: int) -> dict[tuple[str, str], list[float]]:
    """By batch and form."""
    found: dict[tuple[str, str], list[float]] = {}
    sessions = {form.name: (form.thread(), form.open()) for form in forms}
    for _ in range(rounds):
        for kind, batch in batches().items():
            for name, (thread, session) in sessions.items():
                seconds = thread.submit(run_s, session, batch).result()
                found.setdefault((kind, name), []).append(seconds)
    return found


def profile_us(form: Form, batch: Ids, rounds: int, folder: Path) -> Counter[str]:
    """µs of a run by kind of node."""
    session = form.open(profile=folder / "profile")
    with form.thread() as thread:
        for _ in range(rounds):
            thread.submit(run_s, session, batch).result()
    spent: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] // rounds
    return spent


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = max(1, parser.parse_args().rounds)
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        packed = Path(scratch) / GRAPH
        source = _VERSION / "model.onnx"
        save_packed(source, packed, vocabulary_size=_VOCABULARY, max_tokens=_MAX_TOKENS)
        forms = (
            Form("as exported", source),
            Form("without padding", packed, packed=True),
            Form("and without denormals", packed, packed=True, flushing=True),
        )
        found = times_s(forms, rounds)
        table = Table("batch", "tokens", *(f"{form.name}, ms" for form in forms), "ratio",
                      title="CPU time of a run")  # fmt: skip
        for kind, batch in batches().items():
            medians = [statistics.median(found[kind, form.name]) for form in forms]
            table.add_row(
                kind,
                str(sum(map(len, batch))),
                *(f"{seconds * 1e3:.1f}" for seconds in medians),
                f"{medians[-1] / medians[0]:.2f}",
            )
        console.print(table)
        batch = batches()[_PROFILED]
        spent = [profile_us(form, batch, rounds, Path(scratch)) for form in forms]
        table = Table("node", *(f"{form.name}, µs" for form in forms), title=_PROFILED)
        for kind, _ in spent[0].most_common(_KINDS):
            table.add_row(kind, *(str(each[kind]) for each in spent))
        table.add_row("all", *(str(each.total()) for each in spent))
        console.print(table)


if __name__ == "__main__":
    main()
