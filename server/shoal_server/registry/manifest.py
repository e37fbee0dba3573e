"""What is written down about a model.

`models/<name>/model.toml` belongs to the operator and is committed: where the
model comes from and how it is served. `models/<name>/<version>/version.toml`
belongs to the preparation, is made with the files beside it and never changed:
what the files are. `models/<name>/<version>/variants/<precision>/variant.toml` is
the same for a graph of the version in another precision. The folder's name is the
model's name, so a copied folder is another model.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from shoal_server.core import ModelKind, Pooling

MODEL_FILE = "model.toml"
VERSION_FILE = "version.toml"
VARIANT_FILE = "variant.toml"
VARIANTS_FOLDER = "variants"
GRAPH_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"

# The tensors of a prepared graph.
INPUT_IDS = "input_ids"  # int64[B, T]
ATTENTION_MASK = "attention_mask"  # int64[B, T]
TOKEN_TYPE_IDS = "token_type_ids"  # int64[B, T], only in graphs that take it
POSITION_IDS = "position_ids"  # int64[B, T], only in graphs that take it
EMBEDDING = "embedding"  # float32[B, D]: the vector as the model's authors define it
POOLED = "pooled"  # float32[B, D]: before L2, only where `normalized`

Precision = Literal["fp32", "fp16", "int8"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# A plain path below the version's folder: no `..`, no absolute path.
FileName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")
]


class ManifestError(Exception):
    """A manifest can not be read; the message names file and field."""


M = TypeVar("M", bound="_Manifest")


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a manifest.

        Raises:
            FileNotFoundError: There is none.
            ManifestError: It is not TOML, or a field is wrong.
        """
        try:
            manifest: Self = _parsed(cls, path.read_text(encoding="utf-8"))
            return manifest
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ManifestError(f"{path.name}: not valid TOML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ManifestError(f"{path.name}: {field}: {first['msg']}") from error

    def to_toml(self) -> str:
        """The manifest as TOML, without what is unset."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


# Parsing costs more than the rest of a look at a model. The same text is the same manifest,
# whoever reads it and when, and those who read it share it: it is not changed.
@lru_cache(maxsize=4096)
def _parsed(kind: type[M], text: str) -> M:
    return kind.model_validate(tomllib.loads(text))


class Serving(_Manifest):
    """How one model is served where that differs from the server's settings."""

    device: str | None = Field(None, pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    pinned: bool = False
    max_batch_items: int | None = Field(None, ge=1)
    max_batch_tokens: int | None = Field(None, ge=1)
    max_wait_ms: float | None = Field(None, ge=0)
    precision: Precision | None = None
    """The only one that will do; unset: the server's, where the model has it."""
    ram_idle_s: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Idle for so long, it leaves memory on the CPU; 0: never; unset: as the server's."""
    gpu_idle_s: float | None = Field(None, ge=0, allow_inf_nan=False)
    """The same on a GPU."""
    allow_mixing: bool = False
    """Batch also a graph whose vectors depend on their batch mates."""


class ModelManifest(_Manifest):
    """`model.toml`: one model, whatever its version."""

    description: str = ""
    license: str = ""
    source: str = ""
    """What `shoal models pull` prepares it from: a hub id, `pypi:PACKAGE` or a folder."""
    default_version: str | None = None
    """The version that the bare name means; unset: the latest."""
    serving: Serving = Serving()


class Source(_Manifest):
    """Where the files of a version came from."""

    kind: str
    """`hub`, `pypi` or `local`."""
    location: str
    """Hub id, package name, or the folder's name."""
    revision: str = ""
    """Commit of the hub repository or version of the package."""
    exported: bool
    """Whether we made the ONNX file; False when the source brought one."""


class Reference(_Manifest):
    """How close the prepared graph came to the reference runtime."""

    runtime: str
    """Such as `sentence-transformers 5.1.0`."""
    texts: int
    min_cosine: float
    max_abs_difference: float


class VersionManifest(_Manifest):
    """`version.toml`: what the prepared files of one version are."""

    kind: ModelKind = ModelKind.TEXT_EMBEDDING
    dimensions: int = Field(ge=1)
    matryoshka_dimensions: tuple[int, ...] = ()
    max_tokens: int = Field(ge=1)
    """Longest input, special tokens included."""
    vocabulary_size: int = Field(ge=1)
    """Token ids are in [0, vocabulary_size)."""
    pooling: Pooling
    normalized: bool
    """Whether `embedding` has unit length; then the graph also gives `pooled`."""
    precision: str = "fp32"
    batch_invariant: bool = True
    """Whether a text's vector is the same alone and in any batch; checked when prepared."""
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None
    languages: tuple[str, ...] = ()
    """Of its texts, as the model's card has them: BCP 47 tags, or words like `multilingual`."""
    license: str = ""
    created_at: str
    """UTC, RFC 3339."""
    source: Source
    reference: Reference | None = None
    files: dict[FileName, Sha256]
    """Every file of the version but this one, with its SHA-256."""

    @field_validator("matryoshka_dimensions")
    @classmethod
    def _are_cuts(cls, sizes: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        whole = info.data.get("dimensions")
        wrong = [size for size in sizes if whole is not None and not 1 <= size <= whole]
        if wrong:
            raise ValueError(f"{wrong[0]} is not in [1, {whole}], the model's dimensions")
        return sizes


class Closeness(_Manifest):
    """How close a variant's vectors are to those of its version: cosines over fixed texts."""

    texts: int = Field(ge=1)
    mean: float
    least: float


class VariantManifest(_Manifest):
    """`variant.toml`: what a version's graph in another precision is."""

    precision: Precision
    batch_invariant: bool = True
    """As in `VersionManifest`."""
    created_at: str
    """UTC, RFC 3339."""
    cosine: Closeness
    files: dict[FileName, Sha256]
    """Every file of the variant but this one, with its SHA-256."""
