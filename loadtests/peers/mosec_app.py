"""mosec, tuned: the same tokenizer and graph as Shoal's, behind mosec's batcher.

Runs in the peers' environment. It is given every advantage that was found to matter for it:
answers are raw bytes, texts of a batch are sorted by length and cut into runs by tokens.

    PEER_MODEL=FOLDER PEER_LAYOUT=WORKERS,THREADS,WAIT_MS python mosec_app.py --port PORT
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import tokenizers
from mosec import Server, Worker

Float32 = npt.NDArray[np.float32]

# Its workers are processes that read this file anew, and its flags are its own.
FOLDER = Path(os.environ["PEER_MODEL"])
WORKERS, THREADS, WAIT_MS = (int(each) for each in os.environ["PEER_LAYOUT"].split(","))

_MAX_BATCH = 32
_RUN_TOKENS = 128
_MAX_TOKENS = 256


class Embedder(Worker):  # type: ignore[misc]
    """One process with one session."""

    def __init__(self) -> None:
        raw = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
        raw |= {"padding": None, "truncation": None}
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            FOLDER / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {each.name for each in self._session.get_inputs()}

    def deserialize(self, data: bytes) -> list[str]:
        """The texts of a request: a JSON list."""
        texts: list[str] = json.loads(data)
        return texts

    def serialize(self, data: Float32) -> bytes:
        """float32[B, D], little-endian."""
        return data.astype("<f4").tobytes()

    def forward(self, data: list[list[str]]) -> list[Float32]:
        """The vectors of a batch of requests."""
        texts = [text for request in data for text in request]
        sequences = [each.ids for each in self._tokenizer.encode_batch_fast(texts)]
        places = [place for batch in _runs(sequences) for place in batch]
        found = [self._run([sequences[at] for at in batch]) for batch in _runs(sequences)]
        rows = np.concatenate(found)[np.argsort(places)]
        ends = np.cumsum([len(request) for request in data])
        return np.split(rows, ends[:-1])

    def _run(self, sequences: list[list[int]]) -> Float32:
        longest = max(map(len, sequences))
        ids = np.zeros((len(sequences), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = np.zeros_like(ids)
        rows: Float32 = self._session.run(["embedding"], feeds)[0]
        return rows


def _runs(sequences: list[list[int]]) -> Iterator[list[int]]:
    """Places in `sequences`, sorted by length, cut so that a run has about so many tokens."""
    batch: list[int] = []
    for place in sorted(range(len(sequences)), key=lambda at: len(sequences[at])):
        if batch and (len(batch) + 1) * len(sequences[place]) > _RUN_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    yield batch


if __name__ == "__main__":
    server = Server()
    server.append_worker(Embedder, num=WORKERS, max_batch_size=_MAX_BATCH, max_wait_time=WAIT_MS)
    server.run()
