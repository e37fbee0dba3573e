"""What the export environment contributes: graph, tokenizer, reference vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoal_server.core import Pooling
from shoal_server.preparation.card import ModelCard
from shoal_server.preparation.check import TEXTS_FILE
from shoal_server.preparation.commands import CommandFailed
from shoal_server.preparation.errors import ExportFailed, Unsupported
from shoal_server.preparation.sources import Fetched, Workshop
from shoal_server.registry.manifest import GRAPH_FILE, TOKENIZER_FILE
from shoal_server.registry.reference import Vectors

SCRIPT = Path(__file__).with_name("export_script.py")
# As sentence-transformers names them.
_POOLING_NAMES = {Pooling.MEAN: "mean", Pooling.CLS: "cls", Pooling.LAST_TOKEN: "lasttoken"}


@dataclass(frozen=True, slots=True)
class ReferenceVectors:
    """What the reference runtime makes of the texts of `check_texts.json`.

    Attributes:
        runtime: Its name and version.
        vectors: float32[N, D]
    """

    runtime: str
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a version is made of.

    Attributes:
        graph: ONNX file from token ids to token vectors.
        tokenizer: A `tokenizer.json`.
        exported: Whether we made the graph; False when the authors did.
        reference: None where the reference runtime was not at hand.
    """

    graph: Path
    tokenizer: Path
    exported: bool
    reference: ReferenceVectors | None


def gather(
    fetched: Fetched, card: ModelCard, pooling: Pooling, max_tokens: int, workshop: Workshop
) -> Ingredients:
    """Take the authors' ONNX file and tokenizer, and export what they did not make.

    The export environment is made when something must be exported. When it is there
    anyway, the reference vectors come from it.

    Raises:
        Unsupported: There are no weights that can be exported.
        EnvironmentFailed: The export environment can not be made.
        ExportFailed: The exporter refuses the model.
    """
    graph = fetched.onnx_file(card.transformer)
    tokenizer = fetched.folder / card.transformer / TOKENIZER_FILE
    job = _Job(fetched, card, pooling, max_tokens, workshop)
    if graph is not None and tokenizer.is_file():
        return Ingredients(graph, tokenizer, exported=False, reference=job.try_reference())
    if graph is None:
        job.check_exportable()
    workshop.environment.make(workshop.progress)
    workshop.progress.step("exporting with PyTorch")
    job.run("--export" if graph is None else "--tokenizer")
    return Ingredients(
        graph=graph or job.out / GRAPH_FILE,
        tokenizer=job.out / TOKENIZER_FILE,
        exported=graph is None,
        reference=job.reference(),
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """One model in the export environment."""

    fetched: Fetched
    card: ModelCard
    pooling: Pooling
    max_tokens: int
    workshop: Workshop

    @property
    def out(self) -> Path:
        return self.workshop.scratch / "export"

    def check_exportable(self) -> None:
        if self.card.needs_remote_code:
            raise Unsupported(
                "the model has no ONNX file and its PyTorch model is code of the "
                "repository's own (auto_map), which is never run"
            )
        if not self._has_weights():
            raise Unsupported(
                "the model has neither an ONNX file (model.onnx or onnx/model.onnx) nor "
                "model.safetensors; pickles such as pytorch_model.bin are never loaded"
            )

    def try_reference(self) -> ReferenceVectors | None:
        """Reference vectors, where the runtime is at hand and can run the model."""
        is_at_hand = self.workshop.environment.is_complete() and not self.card.needs_remote_code
        if not is_at_hand or not self._has_weights():
            return None
        self.workshop.progress.step("running the reference runtime")
        try:
            self.run()
        except ExportFailed as error:
            reason = str(error).splitlines()[-1]
            self.workshop.progress.step(f"not compared with the reference: {reason}")
            return None
        return self.reference()

    def run(self, *flags: str) -> None:
        arguments = [
            *("--model", str(self.fetched.folder.resolve())),
            *("--transformer", self.card.transformer),
            *("--out", str(self.out)),
            *("--pooling", _POOLING_NAMES[self.pooling]),
            *("--max-tokens", str(self.max_tokens)),
            *flags,
        ]
        if self._has_weights():
            arguments += ["--texts", str(TEXTS_FILE)]
        try:
            self.workshop.environment.run(SCRIPT, arguments, self.workshop.progress)
        except CommandFailed as error:
            raise ExportFailed(f"the export environment failed on this model:\n{error}") from error

    def reference(self) -> ReferenceVectors | None:
        path = self.out / "reference.npy"
        if not path.exists():
            return None
        runtime = (self.out / "reference.txt").read_text(encoding="utf-8")
        return ReferenceVectors(runtime, np.load(path, allow_pickle=False))

    def _has_weights(self) -> bool:
        return self.fetched.has_safetensors(self.card.transformer)
