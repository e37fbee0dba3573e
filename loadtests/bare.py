"""The bare limit: tokenizer and ONNX Runtime in one process, and nothing else.

What a server can hope for on this machine with this model file: texts are at hand,
nobody waits for an answer, so they are tokenized by the block, sorted by length, cut
into batches, and run. No server code is used here, so that the limit is not made of
what it is to judge.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import tokenizers

from loadtests.cpu import CpuClock, others_share

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the runtime is driven."""

    runs: int
    """Runs at once, each from a thread of its own."""
    threads: int
    """Threads of one run."""
    batch_tokens: int
    """Padding included; a longer text runs alone."""

    def __str__(self) -> str:
        threads = "thread" if self.threads == 1 else "threads"
        return f"{self.runs} × {self.threads} {threads}, {self.batch_tokens} tokens a batch"


@dataclass(frozen=True, slots=True)
class BareWindow:
    """What was measured while the limit ran for a while."""

    embeddings: int
    embeddings_per_s: float
    cpu_us_per_embedding: float
    others_share: float = 0.0
    """Of the machine's CPU time, what other processes took."""


class BareModel:
    """The files of a prepared model, opened with nothing around them."""

    def __init__(self, folder: Path, graph: str = "model.onnx") -> None:
        self._folder = folder
        self._graph = graph
        manifest = tomllib.loads((folder / "version.toml").read_text(encoding="utf-8"))
        self._strip = bool(manifest.get("strip_text"))
        self._lowercase = bool(manifest.get("lowercase"))
        # A tokenizer.json carries padding and truncation that are not the model's.
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        tokenizer |= {"padding": None, "truncation": None}
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
        self._tokenizer.enable_truncation(int(manifest["max_tokens"]))
        self._sessions: dict[int, ort.InferenceSession] = {}

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Token counts, special tokens included."""
        return [len(ids) for ids in self._tokenize(texts)]

    def vectors(self, texts: Sequence[str]) -> Float32:
        """Each text run alone: float32[B, D], what every answer is compared with."""
        session = self._session(1)
        return np.concatenate([_run(session, [ids]) for ids in self._tokenize(texts)])

    def seconds_alone(self, texts: Sequence[str], *, threads: int, repeats: int) -> list[float]:
        """Times of embedding one text after the other, tokenizing included."""
        session = self._session(threads)
        seconds = []
        for text, _ in zip(cycle(texts), range(repeats), strict=False):
            began_s = time.perf_counter()
            _run(session, self._tokenize([text]))
            seconds.append(time.perf_counter() - began_s)
        return seconds

    def window(
        self, texts: Sequence[str], layout: Layout, *, block: int, seconds: float
    ) -> BareWindow:
        """Embed texts for a while, each run's thread a block of them at a time.

        Args:
            texts: Taken from the start, again and again.
            layout: How to drive the runtime.
            block: Texts that are sorted together.
            seconds: At least so long; blocks are finished.
        """
        session = self._session(layout.threads)
        blocks = cycle([texts[at : at + block] for at in range(0, len(texts), block)])
        clock = CpuClock((os.getpid(),))
        start = clock.read()
        ends_s = time.perf_counter() + seconds

        def embed_blocks(_: int) -> tuple[int, float]:
            done, began_s = 0, time.perf_counter()
            while time.perf_counter() < ends_s:
                chunk = next(blocks)
                sequences = sorted(self._tokenize(chunk), key=len)
                for batch in _batches(sequences, layout.batch_tokens):
                    _run(session, batch)
                done += len(chunk)
            return done, time.perf_counter() - began_s

        with ThreadPoolExecutor(layout.runs) as threads:
            parts = list(threads.map(embed_blocks, range(layout.runs)))
        end = clock.read()
        embeddings = sum(done for done, _ in parts)
        return BareWindow(
            embeddings=embeddings,
            embeddings_per_s=sum(done / took_s for done, took_s in parts),
            cpu_us_per_embedding=(end.of_each[0] - start.of_each[0]) / embeddings * 1e6,
            others_share=others_share(start, end),
        )

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if self._strip:
            texts = [text.strip() for text in texts]
        if self._lowercase:
            texts = [text.lower() for text in texts]
        return [each.ids for each in self._tokenizer.encode_batch_fast(list(texts))]

    def _session(self, threads: int) -> ort.InferenceSession:
        if threads not in self._sessions:
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            self._sessions[threads] = ort.InferenceSession(
                self._folder / self._graph, options, providers=["CPUExecutionProvider"]
            )
        return self._sessions[threads]


def _batches(sequences: list[list[int]], batch_tokens: int) -> Iterator[list[list[int]]]:
    """Cut sequences, shortest first, into batches."""
    batch: list[list[int]] = []
    for sequence in sequences:
        if batch and (len(batch) + 1) * len(sequence) > batch_tokens:
            yield batch
            batch = []
        batch.append(sequence)
    yield batch


def _run(session: ort.InferenceSession, sequences: Sequence[Sequence[int]]) -> Float32:
    longest = max(map(len, sequences))
    ids = np.zeros((len(sequences), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    feeds = {"input_ids": ids, "attention_mask": mask}
    names = {each.name for each in session.get_inputs()}
    if "token_type_ids" in names:
        feeds["token_type_ids"] = np.zeros_like(ids)
    if "position_ids" in names:
        feeds["position_ids"] = np.broadcast_to(np.arange(longest), ids.shape).copy()
    rows: Float32 = session.run(["embedding"], feeds)[0]
    return rows


# -- in a process of its own ---------------------------------------------------

_model: BareModel


def open_here(folder: Path, graph: str) -> None:
    """Open the model in this (worker) process, for the functions below."""
    global _model
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _model = BareModel(folder, graph)


def run_window(texts: Sequence[str], layout: Layout, block: int, seconds: float) -> BareWindow:
    """See `BareModel.window`."""
    return _model.window(texts, layout, block=block, seconds=seconds)


def run_alone(texts: Sequence[str], threads: int, repeats: int) -> list[float]:
    """See `BareModel.seconds_alone`."""
    return _model.seconds_alone(texts, threads=threads, repeats=repeats)


def run_vectors(texts: Sequence[str]) -> Float32:
    """See `BareModel.vectors`."""
    return _model.vectors(texts)
