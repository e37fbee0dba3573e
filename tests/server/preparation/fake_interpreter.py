"""Plays the interpreter of the export environment, which takes gigabytes to make.

It "exports" the lookup graph, "runs" it as the reference, and "installs" a package
that holds a model without a graph. Behaviours: `wrong` gives other reference
vectors, `fail` ends with an error, `hang` never ends, `full` finds the
disk full.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from tokenizers import Tokenizer

from .authors import TABLE, lookup_graph, write_authors_model


def main(arguments: Sequence[str], behaviour: str) -> None:
    """Do what `python -I ARGUMENTS` would do in the export environment."""
    if behaviour == "fail":
        raise SystemExit("ValueError: this model can not be exported")
    if behaviour == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if behaviour == "hang":
        signal.pause()
    if "pip" in arguments:
        _install(Path(arguments[arguments.index("--target") + 1]), arguments[-1])
    else:
        _export(arguments[2:], 1 if behaviour == "wrong" else 0)


def _install(target: Path, requirement: str) -> None:
    package, _, version = requirement.partition("==")
    folder = target / package.replace("-", "_")
    write_authors_model(folder / "model", onnx_file=None)
    info = target / f"{folder.name}-{version or '9.9'}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {package}\nVersion: {version or '9.9'}\n")


def _export(arguments: Sequence[str], roll: int) -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--out", "--texts"):
        parser.add_argument(name, type=Path)
    for name in ("--transformer", "--pooling", "--max-tokens"):
        parser.add_argument(name)
    for name in ("--export", "--tokenizer"):
        parser.add_argument(name, action="store_true")
    options = parser.parse_args(arguments)
    options.out.mkdir()
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    if options.export or options.tokenizer:
        tokenizer.save(str(options.out / "tokenizer.json"))
    if options.export:
        onnx.save(lookup_graph(), options.out / "model.onnx")
    if options.texts:
        tokenizer.no_padding()
        tokenizer.enable_truncation(int(options.max_tokens))
        texts = json.loads(options.texts.read_text())
        rows = [TABLE[tokenizer.encode(text).ids].sum(axis=0) for text in texts]
        norms = [max(float(np.linalg.norm(row)), 1e-12) for row in rows]
        vectors = np.stack(rows) / np.array(norms)[:, None]
        np.save(options.out / "reference.npy", np.roll(vectors, roll, axis=1).astype(np.float32))
        (options.out / "reference.txt").write_text("a reference 1.0")
