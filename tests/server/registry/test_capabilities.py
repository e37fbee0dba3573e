"""What a version can do is read from its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import ModelFileCorrupt
from shoal_server.registry.capabilities import (
    Capabilities,
    InputType,
    read_capabilities,
    spoken_languages,
)
from shoal_server.registry.manifest import VERSION_FILE
from shoal_server.registry.repository import ModelRepository
from tests.tiny_model import DIMENSIONS, MAX_TOKENS, PROMPTS, add_tiny_variant, make_tiny_model


def capabilities(root: Path) -> Capabilities:
    """Of the tiny model's version 1."""
    repository = ModelRepository(root)
    manifest = repository.version_manifest("tiny", "1")
    return read_capabilities(repository, ModelKey("tiny", "1"), manifest)


def rewrite(root: Path, old: str, new: str) -> None:
    """Edit the version's manifest by hand."""
    path = root / "tiny" / "1" / VERSION_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_version_by_itself(tmp_path: Path) -> None:
    """Sizes, prompts, inputs, and its own graph alone."""
    tiny = make_tiny_model(tmp_path)
    found = capabilities(tmp_path)
    assert found.sizes == {DIMENSIONS}
    assert found.max_tokens == MAX_TOKENS
    assert found.prompts == set(PROMPTS)
    assert found.input_types == {InputType.TEXT, InputType.TOKENS}
    assert found.languages == ()
    (own,) = found.graphs
    assert (own.precision, own.cosine, own.gpu_only) == ("fp32", None, False)
    assert own.file_bytes == (tiny.folder / "model.onnx").stat().st_size


def test_variants_are_those_that_are_there(tmp_path: Path) -> None:
    """Each with the size of its own files and its cosines; fp16 is for GPUs."""
    tiny = make_tiny_model(tmp_path)
    add_tiny_variant(tiny, "int8")
    add_tiny_variant(tiny, "fp16")
    _, *variants = capabilities(tmp_path).graphs
    assert {each.precision: each.gpu_only for each in variants} == {"int8": False, "fp16": True}
    for each in variants:
        folder = tiny.folder / "variants" / each.precision
        assert each.file_bytes == sum(path.stat().st_size for path in folder.iterdir())
        assert each.cosine is not None
        assert (each.cosine.mean, each.cosine.least) == (0.99, 0.98)


def test_a_variant_that_can_not_be_read_is_none(tmp_path: Path) -> None:
    """The others are there all the same."""
    tiny = make_tiny_model(tmp_path)
    for precision in ("int8", "fp16"):
        add_tiny_variant(tiny, precision)
    (tiny.folder / "variants" / "int8" / "variant.toml").write_text("no manifest")
    assert capabilities(tmp_path).precisions == {"fp32", "fp16"}


def test_without_a_tokenizer_there_are_only_token_ids(tmp_path: Path) -> None:
    """What a version is said to take depends on its files."""
    tiny = make_tiny_model(tmp_path)
    lines = (tiny.folder / VERSION_FILE).read_text().splitlines(keepends=True)
    kept = [line for line in lines if "tokenizer.json" not in line]
    assert len(kept) == len(lines) - 1
    (tiny.folder / VERSION_FILE).write_text("".join(kept))
    assert capabilities(tmp_path).input_types == {InputType.TOKENS}


def test_a_cut_can_not_be_larger_than_the_vector(tmp_path: Path) -> None:
    """Such a manifest is refused, and the size named."""
    make_tiny_model(tmp_path)
    rewrite(tmp_path, "matryoshka_dimensions = []", "matryoshka_dimensions = [4, 99]")
    with pytest.raises(ModelFileCorrupt, match=r"matryoshka_dimensions.*99 is not in \[1, 8\]"):
        capabilities(tmp_path)


def test_wider_languages_are_spoken_too() -> None:
    """By subtags, not by letters."""
    assert spoken_languages(["zh-Hant-TW", "en"]) == {"zh", "zh-hant", "zh-hant-tw", "en"}
