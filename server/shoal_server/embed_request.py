"""What one caller wants embedded, and whether it may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal_server.core import Priority, VectorEncoding
from shoal_server.errors import InvalidInput
from shoal_server.registry.manifest import VersionManifest
from shoal_server.registry.prepared import ModelVersion


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What one caller wants embedded. Exactly one of `texts` and `tokens` is set."""

    model: str
    """Name, `name@version`, or empty for the default."""
    size_bytes: int
    """Of the request on the wire, for admission."""
    texts: Sequence[str] = ()
    tokens: Sequence[Sequence[int]] = ()
    normalize: bool | None = None
    """None: as the model's authors define the vector."""
    dimensions: int | None = None
    encoding: VectorEncoding = VectorEncoding.FLOAT32
    truncate: bool = True
    prompt_name: str = ""
    priority: Priority = Priority.NORMAL
    keep_alive_s: float | None = None
    """How long the model stays in memory after its last use; negative: for ever; None: as it is."""
    deadline_s: float | None = None
    """On the monotonic clock."""
    routing_key: str = ""
    """Keeps who sends it with one of the versions that share an alias's traffic."""
    caller: str = ""
    """Whose request it is, for usage and rate limits."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may be; the names are those of the settings."""

    max_texts_per_request: int
    max_text_bytes: int
    max_request_bytes: int
    inline_tokenize_bytes: int


def check_size(request: EmbedRequest, limits: RequestLimits) -> None:
    """Check what can be said without a model.

    Raises:
        InvalidInput: It has no inputs, or more than it may.
    """
    field, inputs = ("tokens", request.tokens) if request.tokens else ("texts", request.texts)
    if not inputs:
        raise InvalidInput(field, "at least one is needed, there is none")
    _within(field, len(inputs), "max_texts_per_request", limits.max_texts_per_request, "inputs")
    _within(field, request.size_bytes, "max_request_bytes", limits.max_request_bytes, "bytes")
    if request.size_bytes > limits.max_text_bytes:
        for index, text in enumerate(request.texts):
            size_bytes = len(text.encode())
            _within(f"texts[{index}]", size_bytes, "max_text_bytes", limits.max_text_bytes, "bytes")


def check_against_model(request: EmbedRequest, manifest: VersionManifest) -> None:
    """Check the rest, for the version that is to embed it.

    Raises:
        InvalidInput: It does not go with the model.
    """
    if request.dimensions is not None and not 1 <= request.dimensions <= manifest.dimensions:
        raise InvalidInput(
            "dimensions",
            f"{request.dimensions} is not in [1, {manifest.dimensions}], the model's dimensions",
            metadata={"limit": manifest.dimensions, "value": request.dimensions},
        )
    if request.tokens:
        _check_tokens(request, manifest)
    else:
        prompt_of(request.prompt_name, manifest)


def prompt_of(name: str, manifest: VersionManifest) -> str:
    """What a model puts before each text, by the prompt's name; empty: the model's default.

    Raises:
        InvalidInput: The model has no such prompt.
    """
    name = name or manifest.default_prompt_name or ""
    if not name:
        return ""
    if name not in manifest.prompts:
        known = ", ".join(sorted(manifest.prompts)) or "none"
        raise InvalidInput("prompt_name", f"the model has no prompt {name[:64]!r}; it has: {known}")
    return manifest.prompts[name]


def estimated_tokens(request: EmbedRequest, version: ModelVersion) -> int:
    """About what tokenizing will give: English has some four bytes a token."""
    items = len(request.texts) or len(request.tokens)
    return min(request.size_bytes // 4 + items, items * version.manifest.max_tokens)


def must_normalize(request: EmbedRequest, version: ModelVersion) -> bool:
    """Whether rows need normalising after the run.

    The graph already gives unit length where the model's authors want it; a slice
    loses it, and a model without it gets it only when asked.
    """
    if request.normalize is None:
        return version.manifest.normalized and request.dimensions is not None
    if request.normalize and version.manifest.normalized:
        return request.dimensions is not None
    return request.normalize


def _check_tokens(request: EmbedRequest, manifest: VersionManifest) -> None:
    if request.prompt_name:
        raise InvalidInput("prompt_name", "prompts go with texts; these are tokens")
    for index, ids in enumerate(request.tokens):
        field = f"tokens[{index}]"
        if not ids:
            raise InvalidInput(field, "holds no ids; at least one is needed")
        if len(ids) > manifest.max_tokens:
            raise InvalidInput(
                field,
                f"{len(ids)} tokens, the model takes {manifest.max_tokens}",
                metadata={"limit": manifest.max_tokens, "value": len(ids)},
            )
        if max(ids) >= manifest.vocabulary_size:
            raise InvalidInput(
                field,
                f"id {max(ids)} is not in [0, {manifest.vocabulary_size}), the vocabulary",
                metadata={"limit": manifest.vocabulary_size, "value": max(ids)},
            )


def _within(field: str, value: int, limit_name: str, limit: int, unit: str) -> None:
    if value > limit:
        raise InvalidInput(
            field,
            f"{value} {unit}, {limit_name} is {limit}",
            metadata={"limit": limit_name, "limit_value": limit, "value": value},
        )
