"""What one load reads, what that takes of memory, and what is told when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from shoal_server.errors import (
    AllocationFailed,
    InferenceFailed,
    ModelLoadFailed,
    ModelUnusable,
)
from shoal_server.inference.onnx_session import kind_of_failure
from shoal_server.inference.packing import save_packed
from shoal_server.inference.tokenizer import TextTokenizer
from shoal_server.registry.manifest import TOKENIZER_FILE
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.verification import Verification

# A session on the CPU takes its weights, a part of them again in packed form, and
# the runtime's own structures (docs/performance.md: 126 MB for a file of 90 MB).
_BYTES_PER_FILE_BYTE = 1.35
_BYTES_OF_RUNTIME = 8 * 1024 * 1024
# A tokenizer in memory, by its file: 6.3 MB for 0.71 MB (all-MiniLM-L6-v2), rounded up.
_BYTES_PER_TOKENIZER_BYTE = 10


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one load."""

    version: ModelVersion
    key: str
    """Of the graph's packed form."""
    files: Verification
    trust: bool
    """Whether what was checked before, and not written to since, need not be read."""

    def save_packed(self, target: Path) -> None:
        """Pack the graph, unless it was written to since it was verified."""
        graph = self.version.graph
        manifest = self.version.manifest
        save_packed(
            graph,
            target,
            vocabulary_size=manifest.vocabulary_size,
            max_tokens=manifest.max_tokens,
        )
        if not self.files.still_holds():
            raise OSError(f"{graph.name} was changed while it was packed")


@contextmanager
def explained(version: ModelVersion) -> Iterator[None]:
    """What goes wrong in opening is the load's failure, and names the model."""
    try:
        yield
    except ModelLoadFailed as error:
        # Tokenizer and runtime know no names.
        message = f"model {version.key}: {error.message}"
        raise type(error)(message, metadata=error.metadata) from error
    except InferenceFailed as error:
        # A graph that can not run at all: remembered, not loaded for every request.
        kind = kind_of_failure(error.__cause__)
        raise kind(f"model {version.key}: {error.message}") from error
    except MemoryError as error:
        raise AllocationFailed(f"model {version.key}: out of memory") from error


def graph_files(version: ModelVersion) -> dict[str, str]:
    """What the graph is opened from: path below the version's folder, and below the graph's."""
    folder = PurePath(version.chosen.graph).parent
    names = [PurePath(name) for name in version.files if name != TOKENIZER_FILE]
    return {str(name): str(name.relative_to(folder)) for name in names}


def cpu_bytes(version: ModelVersion) -> int:
    """What a version's session takes of RAM, on the CPU."""
    return int(version.file_bytes * _BYTES_PER_FILE_BYTE) + _BYTES_OF_RUNTIME


def warm_bytes(version: ModelVersion) -> int:
    """What a version's warm form takes of RAM."""
    tokenizer_bytes = (version.folder / TOKENIZER_FILE).stat().st_size
    return version.file_bytes + (_BYTES_PER_TOKENIZER_BYTE - 1) * tokenizer_bytes


def open_tokenizer(version: ModelVersion) -> TextTokenizer:
    """Open a version's tokenizer; blocks.

    Raises:
        ModelUnusable: It is none, or not one for this version.
        ModelLoadFailed: The system refused to open it.
    """
    manifest = version.manifest
    try:
        return TextTokenizer.open(version.folder / TOKENIZER_FILE, manifest.max_tokens)
    except ValueError as error:
        # tokenizers has no type of its own for this.
        kind = ModelLoadFailed if "(os error" in str(error) else ModelUnusable
        raise kind(str(error)) from error
