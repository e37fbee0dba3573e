"""What a version can do, as its files say; nothing of it is declared by hand.

`version.toml` and `variant.toml` were written when the graphs were prepared, from the graphs
themselves and from what their authors wrote down; a graph that contradicts its manifest is
refused when it is loaded (`inference/signature.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from shoal_server.core import ModelKey, ModelKind
from shoal_server.errors import ShoalError
from shoal_server.registry.manifest import (
    GRAPH_FILE,
    TOKENIZER_FILE,
    Closeness,
    VersionManifest,
)
from shoal_server.registry.repository import ModelRepository


class InputType(StrEnum):
    """What a model takes as an input."""

    TEXT = "text"
    """It comes with a tokenizer."""
    TOKENS = "tokens"
    """Its graph takes token ids."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A version's own graph, or the same in another precision."""

    precision: str
    file_bytes: int
    """Of its own files; those that all graphs of a version share are left out."""
    cosine: Closeness | None = None
    """Of a variant, to the version's own graph; None for that one."""

    @property
    def gpu_only(self) -> bool:
        """Whether a CPU has a better graph to run: the one that a variant in fp16 is of."""
        return self.precision == "fp16" and self.cosine is not None


@dataclass(frozen=True)  # without slots: what lists ask of it a thousand times is kept
class Capabilities:
    """Of one version; sets where they are only asked whether they hold something."""

    kind: ModelKind
    input_types: frozenset[InputType]
    sizes: frozenset[int]
    """Of its vectors, whole or cut (Matryoshka)."""
    max_tokens: int
    languages: tuple[str, ...]
    """As the card has them."""
    prompts: frozenset[str]
    graphs: tuple[Graph, ...]
    """Its own first."""

    @cached_property
    def precisions(self) -> frozenset[str]:
        """Of its graphs."""
        return frozenset(graph.precision for graph in self.graphs)

    @cached_property
    def spoken(self) -> frozenset[str]:
        """See `spoken_languages`."""
        return spoken_languages(self.languages)


def spoken_languages(languages: Iterable[str]) -> frozenset[str]:
    """Languages and all wider ones, in small letters: "zh-Hant" is "zh" too.

    So a look-up is basic filtering as of RFC 4647, section 3.3.1.
    """
    parts = [each.lower().split("-") for each in languages]
    return frozenset("-".join(each[:end]) for each in parts for end in range(1, len(each) + 1))


def read_capabilities(
    repository: ModelRepository, key: ModelKey, manifest: VersionManifest
) -> Capabilities:
    """What one version can do; blocks on the disk, and reads no graph.

    Args:
        repository: Has the files.
        key: The version.
        manifest: Of it.

    Raises:
        ModelNotFound: There is no such version.
    """
    folder = repository.version_folder(key.name, key.version)
    graphs = [Graph(manifest.precision, _graph_bytes(folder, manifest))]
    for precision in repository.variants(key.name, key.version):
        # One that can not be read is none that could be served.
        with suppress(ShoalError):
            variant = repository.variant_manifest(key.name, key.version, precision)
            size_bytes = repository.variant_size_bytes(key.name, key.version, precision)
            graphs.append(Graph(precision, size_bytes, variant.cosine))
    types = {InputType.TOKENS}
    if TOKENIZER_FILE in manifest.files:
        types.add(InputType.TEXT)
    return Capabilities(
        kind=manifest.kind,
        input_types=frozenset(types),
        sizes=frozenset((manifest.dimensions, *manifest.matryoshka_dimensions)),
        max_tokens=manifest.max_tokens,
        languages=manifest.languages,
        prompts=frozenset(manifest.prompts),
        graphs=tuple(graphs),
    )


def _graph_bytes(folder: Path, manifest: VersionManifest) -> int:
    size_bytes = 0
    for name in manifest.files:
        if name.startswith(GRAPH_FILE):
            # A file that is missing is told when the graph is loaded.
            with suppress(OSError):
                size_bytes += (folder / name).stat().st_size
    return size_bytes
