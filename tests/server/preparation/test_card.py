"""What is read from the authors' files."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal_server.core import Pooling
from shoal_server.preparation.card import ModelCard, read_card
from shoal_server.preparation.errors import Unsupported

from .authors import write_authors_model

TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}
POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
NORMALIZE = {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}
DENSE = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}


def card(folder: Path, **files: object) -> ModelCard:
    """The card of a model with some of its files replaced; `__` stands for `/`."""
    replaced = {name.replace("__", "/") + ".json": content for name, content in files.items()}
    return read_card(write_authors_model(folder, files=replaced))


@pytest.mark.parametrize(
    ("written", "pooling"),
    [
        ({"pooling_mode": "mean"}, Pooling.MEAN),
        ({"pooling_mode": ["cls"]}, Pooling.CLS),
        ({"pooling_mode": "lasttoken"}, Pooling.LAST_TOKEN),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, Pooling.MEAN),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, Pooling.CLS),
        ({"pooling_mode_lasttoken": True}, Pooling.LAST_TOKEN),
        ({"word_embedding_dimension": 8}, None),
    ],
)
def test_pooling(tmp_path: Path, written: object, pooling: Pooling | None) -> None:
    """Both ways in which sentence-transformers wrote it are read; silence is not filled in."""
    assert card(tmp_path, **{"1_Pooling__config": written}).pooling == pooling


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": ["mean", "cls"]}, r"mean \+ cls"),
    ],
)
def test_unknown_pooling_is_refused(tmp_path: Path, written: object, told: str) -> None:
    """A pooling that we do not have is named, not replaced by another."""
    with pytest.raises(Unsupported, match=told):
        card(tmp_path, **{"1_Pooling__config": written})


def test_pooling_without_the_prompt_is_refused(tmp_path: Path) -> None:
    """Leaving the prompt's tokens out of the pooling is not done in silence otherwise."""
    files = {
        "1_Pooling__config": {"pooling_mode": "mean", "include_prompt": False},
        "config_sentence_transformers": {"prompts": {"query": "query: "}},
    }
    with pytest.raises(Unsupported, match="prompt"):
        card(tmp_path, **files)


@pytest.mark.parametrize(
    ("modules", "normalized"),
    [([TRANSFORMER, POOLING], False), ([TRANSFORMER, POOLING, NORMALIZE], True)],
)
def test_normalization(tmp_path: Path, modules: object, normalized: bool) -> None:
    """L2 is the model's own when the modules end with Normalize."""
    assert card(tmp_path, modules=modules).normalized is normalized


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        ([TRANSFORMER, POOLING, DENSE, NORMALIZE], "Dense"),
        ([TRANSFORMER, NORMALIZE, POOLING], "order"),
        ([TRANSFORMER, POOLING, POOLING], "Pooling"),
        ([{"type": "custom_st.Transformer", "path": ""}, POOLING], "never run"),
        ([TRANSFORMER, {**POOLING, "path": "../elsewhere"}], "leaves the model's folder"),
        ([TRANSFORMER, {**POOLING, "path": "/etc"}], "leaves the model's folder"),
        (["Transformer"], "not an object"),
        ({"0": TRANSFORMER}, "modules.json"),
    ],
)
def test_other_modules_are_refused(tmp_path: Path, modules: object, told: str) -> None:
    """What a graph can not do, or what would be the authors' code, is named."""
    with pytest.raises(Unsupported, match=told):
        card(tmp_path, modules=modules)


def test_new_module_names_are_known(tmp_path: Path) -> None:
    """Version 5 of sentence-transformers moved its modules; they are the same modules."""
    package = "sentence_transformers.sentence_transformer.modules"
    modules = [
        {"type": "sentence_transformers.base.modules.transformer.Transformer", "path": ""},
        {"type": f"{package}.pooling.Pooling", "path": "1_Pooling"},
    ]
    assert card(tmp_path, modules=modules).pooling == Pooling.MEAN


@pytest.mark.parametrize(
    ("sentence", "tokenizer", "config", "expected"),
    [
        ({"max_seq_length": 256}, {"model_max_length": 512}, {"max_position_embeddings": 512}, 256),
        ({"max_seq_length": 512}, {}, {"max_position_embeddings": 128}, 128),
        ({}, {"model_max_length": 512}, {"max_position_embeddings": 1024}, 512),
        ({}, {"model_max_length": 1e30}, {"max_position_embeddings": 128}, 128),
        ({"max_seq_length": None}, {}, {"max_position_embeddings": 128}, 128),
        (
            {"max_seq_length": 514},
            {},
            {"max_position_embeddings": 514, "model_type": "xlm-roberta", "pad_token_id": 1},
            512,
        ),
        ({}, {}, {"max_position_embeddings": 514, "model_type": "mpnet"}, 512),
        ({}, {"model_max_length": 512}, {"max_position_embeddings": -1}, 512),
        ({}, {}, {"text_config": {"max_position_embeddings": 64}}, 64),
        ({}, {"model_max_length": 1e30}, {}, None),
    ],
)
def test_max_tokens(
    tmp_path: Path, sentence: object, tokenizer: object, config: object, expected: int | None
) -> None:
    """sentence-transformers' limit, within the positions that the model really has."""
    files = {
        "sentence_bert_config": sentence,
        "tokenizer_config": tokenizer,
        "config": config,
    }
    assert card(tmp_path, **files).max_tokens == expected


def test_prompts(tmp_path: Path) -> None:
    """Prompts and the default one are read; an unset prompt is none."""
    written = {"prompts": {"query": "query: ", "document": None}, "default_prompt_name": "query"}
    read = card(tmp_path, config_sentence_transformers=written)
    assert (read.prompts, read.default_prompt_name) == ({"query": "query: "}, "query")


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\nlicense: [mit, bsd]\n---\n", "mit, bsd"),
        ("---\nlicense: other\nlicense_name: house-rules\n---\n", "house-rules"),
        ("---\nlanguage: en\n---\n", ""),
        ("---\nlicense: [broken\n---\n", ""),
        ("# No front matter\n", ""),
    ],
)
def test_license(tmp_path: Path, readme: str, expected: str) -> None:
    """The licence comes from the front matter; a broken README stops nothing."""
    model = write_authors_model(tmp_path, files={"README.md": readme})
    assert read_card(model).license == expected


@pytest.mark.parametrize(
    ("front_matter", "expected"),
    [
        ("language: en", ("en",)),
        ("language: [en, zh-Hant, en]", ("en", "zh-Hant")),
        ("language: [multilingual, fr]\nlanguage_bcp47: pt-br", ("multilingual", "fr", "pt-br")),
        ("language: no", ("no",)),
        ("language: [sv, no, 'da']", ("sv", "no", "da")),
        ("language: [english words, 5, null]", ()),
        ("license: mit", ()),
        ("language: [broken", ()),
    ],
)  # fmt: skip
def test_languages(tmp_path: Path, front_matter: str, expected: tuple[str, ...]) -> None:
    """As the card has them, each once; Norwegian is a language, though YAML calls it false."""
    readme = f"---\n{front_matter}\n---\n# A model\n"
    model = write_authors_model(tmp_path, files={"README.md": readme})
    assert read_card(model).languages == expected


def test_plain_transformers(tmp_path: Path) -> None:
    """Without modules.json nothing is known of pooling, and nothing is made up."""
    read = read_card(write_authors_model(tmp_path, pooling=None))
    assert (read.pooling, read.normalized, read.max_tokens) == (None, False, 64)


def test_transformer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """Old models keep config and tokenizer in 0_Transformer."""
    files = {
        "modules.json": [{**TRANSFORMER, "path": "0_Transformer"}, POOLING],
        "0_Transformer/config.json": {"vocab_size": 99},
        "0_Transformer/sentence_bert_config.json": {"max_seq_length": 33},
    }
    read = read_card(write_authors_model(tmp_path, files=files))
    assert (read.transformer, read.vocabulary_size, read.max_tokens) == ("0_Transformer", 99, 33)


def test_remote_code_is_noticed(tmp_path: Path) -> None:
    """`auto_map` says that the PyTorch model is code of the repository."""
    assert card(tmp_path, config={"auto_map": {"AutoModel": "a.B"}}).needs_remote_code
    assert not card(tmp_path, config={}).needs_remote_code


def test_broken_json_is_told(tmp_path: Path) -> None:
    """The error names the file."""
    model = write_authors_model(tmp_path, files={"config.json": "{"})
    with pytest.raises(Unsupported, match=r"config\.json"):
        read_card(model)
