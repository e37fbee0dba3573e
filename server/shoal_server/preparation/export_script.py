"""Runs inside the export environment; the server never imports it.

    python export_script.py --model DIR --out DIR [--export] [--tokenizer] [--texts FILE]
        [--pooling mean|cls|lasttoken] [--max-tokens N]

Writes to --out: with --export the ONNX graph (`model.onnx`) and the tokenizer as
transformers applies it (`tokenizer.json`), with --tokenizer only the latter; with
--texts the vectors that sentence-transformers gives for them (`reference.npy`) and its
version (`reference.txt`). Weights are read from safetensors only; no code of the model's runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import sentence_transformers
from numpy.typing import NDArray
from optimum.exporters.onnx import main_export
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer


def main() -> None:
    """Do what the arguments ask for."""
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    transformer = arguments.model / arguments.transformer
    if arguments.export or arguments.tokenizer:
        save_tokenizer(transformer, arguments.out / "tokenizer.json")
    if arguments.export:
        report("exporting to ONNX")
        export(transformer, arguments.out)
    if arguments.texts:
        report("running sentence-transformers")
        texts = json.loads(arguments.texts.read_text(encoding="utf-8"))
        model = load_reference(arguments.model, arguments.pooling, arguments.max_tokens)
        np.save(arguments.out / "reference.npy", embed(model, texts))
        name = f"sentence-transformers {sentence_transformers.__version__}"
        (arguments.out / "reference.txt").write_text(name, encoding="utf-8")


def report(text: str) -> None:
    """Tell the caller, who shows what is printed, where we are."""
    print(text, flush=True)  # noqa: T201


def save_tokenizer(folder: Path, path: Path) -> None:
    """Write the fast tokenizer with all that `tokenizer_config.json` changes in it."""
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    tokenizer.backend_tokenizer.save(str(path))


def export(folder: Path, out: Path) -> None:
    """Write `model.onnx`, from token ids to token vectors."""
    main_export(
        str(folder),
        out,
        task="feature-extraction",
        library_name="transformers",
        dtype="fp32",
        local_files_only=True,
        trust_remote_code=False,
        do_validation=False,  # the caller compares the finished graph with the reference
    )


def load_reference(
    folder: Path, pooling: str | None, max_tokens: int | None
) -> SentenceTransformer:
    """The model as sentence-transformers runs it.

    Args:
        folder: In the layout of sentence-transformers, or of plain transformers.
        pooling: What the layout of plain transformers does not say.
        max_tokens: Upper bound for the model's own limit.
    """
    options = {"use_safetensors": True, "dtype": "float32"}
    if (folder / "modules.json").exists():
        model = SentenceTransformer(
            str(folder), device="cpu", model_kwargs=options, trust_remote_code=False
        )
    else:
        transformer = Transformer(str(folder), model_kwargs=options)
        width = transformer.get_embedding_dimension()
        model = SentenceTransformer(modules=[transformer, Pooling(width, pooling)], device="cpu")
    model.max_seq_length = min(model.max_seq_length, max_tokens or model.max_seq_length)
    return model


def embed(model: SentenceTransformer, texts: list[str]) -> NDArray[np.float32]:
    """float32[N, D]: every text on its own and without the model's default prompt."""
    vectors: NDArray[np.float32] = model.encode(
        texts, prompt="", batch_size=1, show_progress_bar=False
    )
    return vectors


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--transformer", default=".", help="folder of config.json below --model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--tokenizer", action="store_true")
    parser.add_argument("--texts", type=Path, help="JSON list of texts")
    parser.add_argument("--pooling", choices=("mean", "cls", "lasttoken"))
    parser.add_argument("--max-tokens", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
