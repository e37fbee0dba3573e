"""From the authors' files to the files of a version."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import onnxruntime
from tokenizers import Tokenizer, normalizers

from shoal_server.core import Pooling
from shoal_server.preparation.card import ModelCard, read_card
from shoal_server.preparation.check import (
    compare,
    embed_texts,
    is_batch_invariant,
    kept_vectors,
    read_tokenizer,
)
from shoal_server.preparation.errors import PoolingUnknown, SourceNotFound, Unsupported
from shoal_server.preparation.export import gather
from shoal_server.preparation.graph import build_graph, precision_of, save_graph
from shoal_server.preparation.publish import hash_files
from shoal_server.preparation.running import TextRunner
from shoal_server.preparation.sources import Fetched, Workshop
from shoal_server.registry.manifest import (
    GRAPH_FILE,
    TOKENIZER_FILE,
    Source,
    VersionManifest,
)
from shoal_server.registry.reference import REFERENCE_FILE, save_reference

_ITSELF = f"this graph when it was prepared (onnxruntime {onnxruntime.__version__})"


def prepare(
    fetched: Fetched, given: Pooling | None, staged: Path, workshop: Workshop
) -> VersionManifest:
    """Make a version's graph and tokenizer, and check them.

    Args:
        fetched: The authors' files.
        given: The pooling that the user named, for a source that does not say.
        staged: An empty folder; gets `model.onnx`, its weights, `tokenizer.json` and the
            vectors that the model can be compared with later.
        workshop: Scratch space, export environment and progress.

    Returns:
        The version's manifest.

    Raises:
        PreparationError: The model can not be prepared; the text says why.
        OSError: The disk refuses.
    """
    card = read_card(fetched.folder)
    if not fetched.has_model(card.transformer):
        raise SourceNotFound(
            f"{fetched.location} holds no model: neither an ONNX file (model.onnx or "
            "onnx/model.onnx) nor model.safetensors; pickles such as pytorch_model.bin are "
            "never loaded"
        )
    pooling = _pooling(card, given)
    max_tokens = _max_tokens(card)
    ingredients = gather(fetched, card, pooling, max_tokens, workshop)

    workshop.progress.step("building the graph")
    graph = build_graph(ingredients.graph, pooling, normalize=card.normalized)
    precision = precision_of(graph)
    save_graph(graph, staged / GRAPH_FILE)
    tokenizer = _save_tokenizer(ingredients.tokenizer, staged / TOKENIZER_FILE, card)

    workshop.progress.step("checking the graph")
    runner = TextRunner(staged / GRAPH_FILE, staged / TOKENIZER_FILE, max_tokens)
    vectors = embed_texts(runner)
    expected = ingredients.reference
    reference = expected and compare(vectors, expected.vectors, expected.runtime)
    # Without a reference at hand: what the graph gives today.
    runtime, keep = (expected.runtime, expected.vectors) if expected else (_ITSELF, vectors)
    save_reference(staged / REFERENCE_FILE, kept_vectors(runtime, keep))
    dimensions = vectors.shape[1]
    return VersionManifest(
        dimensions=dimensions,
        matryoshka_dimensions=tuple(d for d in card.matryoshka_dimensions if d <= dimensions),
        max_tokens=max_tokens,
        vocabulary_size=_vocabulary_size(card, tokenizer),
        pooling=pooling,
        normalized=card.normalized,
        precision=precision,
        batch_invariant=is_batch_invariant(runner, vectors),
        # The pinned sentence-transformers gives texts to the tokenizer as they are.
        prompts=card.prompts,
        default_prompt_name=card.default_prompt_name,
        languages=card.languages,
        license=card.license,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        source=Source(
            kind=fetched.kind,
            location=fetched.location,
            revision=fetched.revision,
            exported=ingredients.exported,
        ),
        reference=reference,
        files=hash_files(staged),
    )


def _pooling(card: ModelCard, given: Pooling | None) -> Pooling:
    if card.pooling is None and given is None:
        raise PoolingUnknown(
            "the model does not say how its token vectors become one (there is no modules.json "
            "with a Pooling and its config.json): say it with --pooling mean, cls or last_token"
        )
    if card.pooling is not None and given not in {None, card.pooling}:
        raise Unsupported(f"the model's own pooling is {card.pooling}, not {given}")
    pooling = card.pooling or given
    assert pooling is not None  # noqa: S101 - one of the two is set
    return pooling


def _max_tokens(card: ModelCard) -> int:
    if card.max_tokens is None:
        raise Unsupported(
            "the model does not say how many tokens it takes: neither max_seq_length in "
            "sentence_bert_config.json nor model_max_length in tokenizer_config.json nor "
            "max_position_embeddings in config.json"
        )
    return card.max_tokens


def _vocabulary_size(card: ModelCard, tokenizer: Tokenizer) -> int:
    needed = max(tokenizer.get_vocab().values(), default=0) + 1
    if card.vocabulary_size is None:
        return needed
    if needed > card.vocabulary_size:
        raise Unsupported(
            f"the tokenizer gives ids up to {needed - 1}, the model takes them below "
            f"{card.vocabulary_size}"
        )
    return card.vocabulary_size


def _save_tokenizer(source: Path, target: Path, card: ModelCard) -> Tokenizer:
    tokenizer = read_tokenizer(source)
    if not card.lowercase:
        shutil.copyfile(source, target)
        return tokenizer
    # As sentence-transformers does; special tokens are found before it and keep their case.
    steps = [normalizers.Lowercase()]
    if tokenizer.normalizer is not None:
        steps.append(tokenizer.normalizer)
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.save(str(target))
    return tokenizer
