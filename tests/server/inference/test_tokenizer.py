"""Texts to token ids: what is in the file that we do not follow, and what is refused."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from shoal_server.errors import InvalidInput
from shoal_server.inference.tokenizer import Encoding, TextTokenizer

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "A")
PAD, UNK, CLS, SEP, A, B, C, D, UPPER_A = range(len(WORDS))
# No UTF-8 has it, so the tokenizer refuses it.
SURROGATE = "a \ud800 b"


def write_tokenizer(folder: Path, *, pad: str = "[PAD]", vocabulary: tuple[str, ...] = ()) -> Path:
    """A word a token between [CLS] and [SEP]; saved with padding and truncation of its own."""
    words = vocabulary or tuple(pad if word == "[PAD]" else word for word in WORDS)
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.enable_padding(length=20, pad_id=PAD, pad_token="[PAD]")
    tokenizer.enable_truncation(4, stride=1, direction="left")
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def open_tokenizer(path: Path, *, max_tokens: int = 6) -> TextTokenizer:
    return TextTokenizer.open(path, max_tokens)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> TextTokenizer:
    """Takes six tokens, so four words."""
    return open_tokenizer(path)


def ids(tokenizer: TextTokenizer, text: str, prompt: str = "") -> list[int]:
    (encoding,) = tokenizer.encode([text], prompt=prompt)
    return list(encoding.ids)


def test_padding_and_truncation_of_the_file_are_ignored(tokenizer: TextTokenizer) -> None:
    """It says: pad to 20, cut to 4 from the left. We do neither, alone and among others."""
    alone = tokenizer.encode(["a b c d"])
    assert alone == [Encoding([CLS, A, B, C, D, SEP], truncated=False)]
    assert tokenizer.encode(["a", "a b c d", ""]) == [
        Encoding([CLS, A, SEP]),
        *alone,
        Encoding([CLS, SEP]),
    ]


def test_long_texts_are_cut_at_the_end(tokenizer: TextTokenizer) -> None:
    """To the model's maximum, special tokens included and kept, and marked as cut."""
    assert tokenizer.encode(["a b c d a", "b"]) == [
        Encoding([CLS, A, B, C, D, SEP], truncated=True),
        Encoding([CLS, B, SEP], truncated=False),
    ]


def test_without_truncation_a_long_text_is_refused(tokenizer: TextTokenizer) -> None:
    """The error names which text, its length, and the limit."""
    with pytest.raises(InvalidInput) as raised:
        tokenizer.encode(["a", "b c", "a b c d a b c"], truncate=False)
    assert raised.value.field == "texts[2]"
    assert "9 tokens, the model takes 6" in raised.value.message
    assert raised.value.metadata == {"limit": "6", "value": "9"}


SPECIAL = [("[CLS]", CLS), ("[SEP]", SEP)]
POST_PROCESSORS = {
    "a template": None,
    "bert": processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS)),
    "roberta": processors.RobertaProcessing(("[SEP]", SEP), ("[CLS]", CLS)),
    "an end only": processors.TemplateProcessing(single="$A [SEP]", special_tokens=SPECIAL),
    "several": processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="[CLS] $A [SEP] [SEP]", special_tokens=SPECIAL),
        ]
    ),
}


@pytest.mark.parametrize("special", POST_PROCESSORS)
@pytest.mark.parametrize("max_tokens", [3, 4, 6])
def test_the_length_told_is_the_whole_texts(special: str, max_tokens: int, tmp_path: Path) -> None:
    """Whatever special tokens the model's family has, and however often the text is too long."""
    path = write_tokenizer(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(path))
    plain.no_padding()
    plain.no_truncation()
    if POST_PROCESSORS[special] is not None:  # None: the file's own
        plain.post_processor = POST_PROCESSORS[special]
    plain.save(str(path))
    tokenizer = open_tokenizer(path, max_tokens=max_tokens)
    for words in range(20):
        text = " ".join("abcd"[at % 4] for at in range(words))
        length = len(plain.encode(text).ids)
        if length <= max_tokens:
            assert len(tokenizer.encode([text], truncate=False)[0].ids) == length
        else:
            with pytest.raises(InvalidInput, match=f"^.*: {length} tokens"):
                tokenizer.encode([text], truncate=False)


def test_without_truncation_what_fits_is_not_refused(tokenizer: TextTokenizer) -> None:
    """A text of exactly the maximum is not cut, hence not refused."""
    assert tokenizer.encode(["a b c d"], truncate=False) == tokenizer.encode(["a b c d"])


def test_the_length_told_counts_the_prompt(tokenizer: TextTokenizer) -> None:
    """The prompt takes its share of the model's tokens."""
    with pytest.raises(InvalidInput, match="7 tokens"):
        tokenizer.encode(["a b c"], prompt="d d ", truncate=False)


def test_the_prompt_stands_before_each_text(tokenizer: TextTokenizer) -> None:
    """Joined as it is, without a space of ours, as sentence-transformers does."""
    assert [list(each.ids) for each in tokenizer.encode(["a", "b"], prompt="d ")] == [
        [CLS, D, A, SEP],
        [CLS, D, B, SEP],
    ]
    assert ids(tokenizer, "a", prompt="d") == [CLS, UNK, SEP]


def test_special_tokens_in_a_text_are_special(tokenizer: TextTokenizer) -> None:
    """As the reference has it: a text that spells one gets that token."""
    assert ids(tokenizer, "a [SEP] b") == [CLS, A, SEP, B, SEP]


def test_a_nul_is_a_character_like_others(tokenizer: TextTokenizer) -> None:
    """Nothing ends at it."""
    assert ids(tokenizer, "a \0 b") == [CLS, A, UNK, B, SEP]


@pytest.mark.parametrize(("texts", "index"), [([SURROGATE], 0), (["a", "b", SURROGATE, "c"], 2)])
def test_a_text_that_the_tokenizer_refuses_is_named(
    tokenizer: TextTokenizer, texts: list[str], index: int
) -> None:
    """Which of the texts it was, whether it came alone or among others."""
    with pytest.raises(InvalidInput) as raised:
        tokenizer.encode(texts)
    assert raised.value.field == f"texts[{index}]"
    assert "\ud800" not in raised.value.message


TEXTS = st.lists(st.text(st.sampled_from("abcd ")), min_size=1, max_size=8)


@given(TEXTS)
def test_a_text_has_the_same_ids_in_any_company(tokenizer: TextTokenizer, texts: list[str]) -> None:
    """Alone or with others: words in order between the special tokens, at most six in all."""
    words = {word: index for index, word in enumerate(WORDS)}
    expected = [[CLS, *[words.get(word, UNK) for word in text.split()][:4], SEP] for text in texts]
    assert [list(each.ids) for each in tokenizer.encode(texts)] == expected
    assert [ids(tokenizer, text) for text in texts] == expected


def test_several_threads_may_encode_at_once(tokenizer: TextTokenizer) -> None:
    """Cutting, refusing and plain calls at the same time each give what they give alone."""
    texts = [" ".join("abcd"[(n + at) % 4] for at in range(n % 9)) for n in range(200)]
    expected = tokenizer.encode(texts)
    barrier = threading.Barrier(4)

    def encode(truncate: bool) -> list[Encoding] | str:
        barrier.wait()
        try:
            return tokenizer.encode(texts, truncate=truncate)
        except InvalidInput as error:
            return error.message

    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            results = list(threads.map(encode, [True, False, True, False]))
            assert results[0] == results[2] == expected
            assert results[1] == results[3]
            assert "7 tokens" in str(results[1])


def test_strings_of_ids(tokenizer: TextTokenizer) -> None:
    """The vocabulary's words; nothing for an id that it does not have."""
    assert tokenizer.strings([CLS, A, UNK, SEP, 999]) == ["[CLS]", "a", "[UNK]", "[SEP]", ""]


@pytest.mark.parametrize("pad", ["[PAD]", "<pad>", "<|endoftext|>"])
def test_padding_is_the_models_own_token(pad: str, tmp_path: Path) -> None:
    """Whatever its family calls it, wherever it stands in the vocabulary."""
    words = ("[UNK]", "x", "[CLS]", "[SEP]", pad)
    assert open_tokenizer(write_tokenizer(tmp_path, vocabulary=words)).pad_id == 4


def test_without_a_padding_token_the_first_id_pads(tmp_path: Path) -> None:
    """The mask hides it; it only has to be valid."""
    words = ("x", "[UNK]", "[CLS]", "[SEP]")
    assert open_tokenizer(write_tokenizer(tmp_path, vocabulary=words)).pad_id == 0


@pytest.mark.parametrize("content", [None, "", "{}", "no JSON", '{"model": 5}'])
def test_a_file_that_is_no_tokenizer_is_a_value_error(content: str | None, tmp_path: Path) -> None:
    """Missing, empty or something else: told by its name, without the path to it."""
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=r"^tokenizer\.json: ") as raised:
        open_tokenizer(file)
    assert str(tmp_path) not in str(raised.value)


def test_a_maximum_below_the_special_tokens_is_refused(path: Path) -> None:
    """No text could be cut to it, and uncut ones would go to a model that does not take them."""
    assert ids(open_tokenizer(path, max_tokens=2), "a b") == [CLS, SEP]
    with pytest.raises(ValueError, match="2 special tokens, the model takes 1"):
        open_tokenizer(path, max_tokens=1)
