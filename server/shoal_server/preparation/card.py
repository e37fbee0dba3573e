"""What the authors wrote down about a model, read from its files; nothing is guessed.

The files are those of sentence-transformers (`modules.json`, `1_Pooling/config.json`,
`sentence_bert_config.json`, `config_sentence_transformers.json`), of transformers
(`config.json`, `tokenizer_config.json`) and the front matter of `README.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from huggingface_hub import metadata_load
from yaml import YAMLError

from shoal_server.core import Pooling
from shoal_server.preparation.errors import Unsupported

_POOLINGS = {"mean": Pooling.MEAN, "cls": Pooling.CLS, "lasttoken": Pooling.LAST_TOKEN}
# What sentence-transformers wrote before version 5: one flag for each pooling.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Architectures whose position ids start behind the padding id, as in fairseq:
# `max_position_embeddings` counts the rows of the table, of which these are never used.
_OFFSET_ARCHITECTURES = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
# Tokenizers without a limit of their own carry a number like 1e30.
_NO_LIMIT = 10_000_000

# A BCP 47 tag, or one of the hub's words such as `multilingual` and `code`.
_LANGUAGE = re.compile(r"[A-Za-z]{2,16}(-[A-Za-z0-9]{1,8})*")

_T = TypeVar("_T")
Json: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model's own files say about it.

    Attributes:
        transformer: Folder of `config.json` and tokenizer below the model's; "." for itself.
        pooling: None where the files do not say.
        normalized: Whether the authors end the model with L2.
        max_tokens: Longest input, special tokens included; None where no file says.
        vocabulary_size: Rows of the token embedding; None where no file says.
        lowercase: Whether sentence-transformers lowercases before the tokenizer.
        prompts: Name to the text put before an input.
        languages: As the front matter of `README.md` has them, each once.
        needs_remote_code: Whether the PyTorch model is code of the repository's own.
    """

    transformer: str
    pooling: Pooling | None
    normalized: bool
    max_tokens: int | None
    vocabulary_size: int | None
    lowercase: bool
    prompts: dict[str, str]
    default_prompt_name: str | None
    matryoshka_dimensions: tuple[int, ...]
    languages: tuple[str, ...]
    license: str
    needs_remote_code: bool


def read_card(folder: Path) -> ModelCard:
    """Read what the files in `folder` say about the model.

    Raises:
        Unsupported: It says something that a prepared graph can not do, or a file is broken.
    """
    modules = _read_modules(folder)
    transformer = modules.get("Transformer", ".")
    config = _read_json(folder / transformer / "config.json")
    text_config = _object(config, "text_config") or config
    sentence_config = _sentence_config(folder / transformer)
    tokenizer_config = _read_json(folder / transformer / "tokenizer_config.json")
    model_config = _read_json(folder / "config_sentence_transformers.json")
    prompts = _prompts(model_config)
    front_matter = _front_matter(folder / "README.md")
    return ModelCard(
        transformer=transformer,
        pooling=_pooling(folder / modules["Pooling"], prompts) if "Pooling" in modules else None,
        normalized="Normalize" in modules,
        max_tokens=_max_tokens(text_config, sentence_config, tokenizer_config),
        vocabulary_size=_positive(text_config, "vocab_size"),
        lowercase=sentence_config.get("do_lower_case") is True,
        prompts=prompts,
        default_prompt_name=_text(model_config, "default_prompt_name"),
        matryoshka_dimensions=_matryoshka(config),
        languages=_languages(front_matter),
        license=_license(front_matter),
        needs_remote_code="auto_map" in config or "auto_map" in tokenizer_config,
    )


def _read_modules(folder: Path) -> dict[str, str]:
    """Kind of module to its folder, of `modules.json`; empty where there is none."""
    path = folder / "modules.json"
    if not path.exists():
        return {}
    modules: dict[str, str] = {}
    for entry in _parse(path, list):
        kind, where = _module(entry)
        if kind not in {"Transformer", "Pooling", "Normalize"} or kind in modules:
            raise Unsupported(
                f"modules.json: a model with the module {kind!r} after "
                f"{' → '.join(modules) or 'nothing'} is not supported; "
                "a graph is Transformer, Pooling and perhaps Normalize"
            )
        modules[kind] = where
    if list(modules) not in (["Transformer"], *_WITH_POOLING):
        raise Unsupported(f"modules.json: the order {' → '.join(modules)} is not supported")
    return modules


_WITH_POOLING = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


def _module(entry: object) -> tuple[str, str]:
    if not isinstance(entry, dict):
        raise Unsupported("modules.json: an entry is not an object")
    full_name, where = str(entry.get("type")), str(entry.get("path") or ".")
    package, _, kind = full_name.rpartition(".")
    if package.split(".")[0] != "sentence_transformers":
        raise Unsupported(
            f"modules.json: {full_name!r} is code of the repository's own, which is never run"
        )
    if Path(where).is_absolute() or ".." in Path(where).parts:
        raise Unsupported(f"modules.json: the path {where!r} leaves the model's folder")
    return kind, where


def _sentence_config(folder: Path) -> Json:
    # Older models name the file after their architecture: sentence_roberta_config.json.
    paths = sorted(folder.glob("sentence_*_config.json"))
    return _read_json(paths[0]) if paths else {}


def _pooling(folder: Path, prompts: Mapping[str, str]) -> Pooling | None:
    config = _read_json(folder / "config.json")
    modes = _pooling_modes(config)
    if not modes:
        return None
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        raise Unsupported(
            f"1_Pooling: pooling {' + '.join(modes)!r} is not supported; "
            f"supported: {', '.join(_POOLINGS)}"
        )
    if config.get("include_prompt") is False and any(prompts.values()):
        raise Unsupported("1_Pooling: pooling that leaves out the prompt is not supported")
    return _POOLINGS[modes[0]]


def _pooling_modes(config: Json) -> list[str]:
    mode = config.get("pooling_mode")
    if isinstance(mode, list):
        return [str(one) for one in mode]
    if mode is not None:
        return [str(mode)]
    return [name for flag, name in _POOLING_FLAGS.items() if config.get(flag) is True]


def _prompts(config: Json) -> dict[str, str]:
    prompts = _object(config, "prompts")
    return {name: text for name, text in prompts.items() if isinstance(text, str)}


def _max_tokens(config: Json, sentence_config: Json, tokenizer_config: Json) -> int | None:
    """The limit that sentence-transformers applies, within what the positions allow."""
    limit = _positive(sentence_config, "max_seq_length")
    if limit is None:
        limit = _positive(tokenizer_config, "model_max_length")
    positions = _positive(config, "max_position_embeddings")
    if positions is not None and config.get("model_type") in _OFFSET_ARCHITECTURES:
        positions -= (_positive(config, "pad_token_id") or 1) + 1
    limits = [value for value in (limit, positions) if value is not None and value < _NO_LIMIT]
    return min(limits, default=None)


def _matryoshka(config: Json) -> tuple[int, ...]:
    value = config.get("matryoshka_dimensions")
    if not isinstance(value, list):
        return ()
    return tuple(sorted(one for one in value if isinstance(one, int) and one > 0))


def _front_matter(readme: Path) -> Json:
    if not readme.is_file():
        return {}
    try:
        return metadata_load(readme) or {}
    except (YAMLError, ValueError):
        return {}  # the text of a README is no reason to refuse a model


def _languages(front_matter: Json) -> tuple[str, ...]:
    # The hub has moved tags with a region to a field of their own, and back.
    written = [front_matter.get("language"), front_matter.get("language_bcp47")]
    each = [one for value in written for one in (value if isinstance(value, list) else [value])]
    # YAML 1.1 reads the code of Norwegian as a truth value.
    codes = ["no" if code is False else code for code in each]
    known = (code for code in codes if isinstance(code, str) and _LANGUAGE.fullmatch(code))
    return tuple(dict.fromkeys(known))


def _license(front_matter: Json) -> str:
    value = front_matter.get("license", "")
    if value == "other":
        value = front_matter.get("license_name", value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_json(path: Path) -> Json:
    return _parse(path, dict) if path.is_file() else {}


def _parse(path: Path, kind: type[_T]) -> _T:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise Unsupported(f"{path.name} can not be read: {error}") from error
    if not isinstance(value, kind):
        raise Unsupported(f"{path.name} is not what it should be: {type(value).__name__}")
    return value


def _object(config: Json, key: str) -> Json:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _text(config: Json, key: str) -> str | None:
    value = config.get(key)
    return value if isinstance(value, str) else None


def _positive(config: Json, key: str) -> int | None:
    value = config.get(key)
    return int(value) if isinstance(value, int | float) and value > 0 else None
