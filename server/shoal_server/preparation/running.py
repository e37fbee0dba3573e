"""Running a prepared graph on texts as the server runs it: same collation, same inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from shoal_server.inference.collate import collate
from shoal_server.inference.tokenizer import TextTokenizer
from shoal_server.preparation.errors import Unsupported
from shoal_server.registry.manifest import (
    ATTENTION_MASK,
    INPUT_IDS,
    POSITION_IDS,
    TOKEN_TYPE_IDS,
)

Float32 = NDArray[np.float32]

# onnxruntime raises classes of its own, which derive from these.
_RUNTIME_ERRORS = (RuntimeError, ValueError, NotImplementedError)


def read_texts(name: str) -> list[str]:
    """Texts that lie beside this module, in a JSON file."""
    texts: list[str] = json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return texts


class TextRunner:
    """A graph and the tokenizer that belongs to it."""

    def __init__(
        self, graph: Path | bytes, tokenizer: Path, max_tokens: int, *, weights: Path | None = None
    ) -> None:
        """Open both.

        Args:
            graph: The ONNX file, or its contents.
            tokenizer: A `tokenizer.json`.
            max_tokens: Longer texts are cut.
            weights: Folder of the external data of a graph given by its contents.

        Raises:
            Unsupported: One of them can not be used.
        """
        try:
            self._tokenizer = TextTokenizer.open(tokenizer, max_tokens)
        except ValueError as error:
            raise Unsupported(f"the tokenizer can not be used: {error}") from error
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if weights is not None:
            name = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(name, str(weights))
        try:
            self._session = ort.InferenceSession(
                graph, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except _RUNTIME_ERRORS as error:
            raise Unsupported(f"the runtime refuses the graph: {error}") from error
        self._inputs = {tensor.name for tensor in self._session.get_inputs()}

    def run(self, texts: Sequence[str], outputs: Sequence[str]) -> list[Float32]:
        """Give some tensors of the graph for one batch of texts.

        Raises:
            Unsupported: The graph can not run.
        """
        encodings = self._tokenizer.encode(texts)
        ids, mask = collate([each.ids for each in encodings], self._tokenizer.pad_id)
        feeds = {
            INPUT_IDS: ids,
            ATTENTION_MASK: mask,
            TOKEN_TYPE_IDS: np.zeros_like(ids),
            POSITION_IDS: np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy(),
        }
        try:
            found: list[Float32] = self._session.run(
                list(outputs), {name: feeds[name] for name in self._inputs}
            )
        except _RUNTIME_ERRORS as error:
            raise Unsupported(f"the graph can not run: {error}") from error
        return found
