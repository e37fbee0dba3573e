"""Bad input of every kind is an answer that names what is wrong; odd input is served."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from google.protobuf import duration_pb2

from shoal.v1 import embed_pb2 as pb
from shoal.v1 import model_control_pb2 as control_pb

from .calls import TIMEOUT_S, Connection, assert_idle, refusal, rows

EMBED = "/shoal.v1.EmbedService/Embed"
TOKENIZE = "/shoal.v1.EmbedService/Tokenize"

# Of all-MiniLM-L6-v2; see its card.
MAX_TOKENS = 256
DIMENSIONS = 384
VOCABULARY = 30522
# The defaults of the server's settings.
MAX_TEXTS = 2048
MAX_TEXT_BYTES = 1024 * 1024
CLS, SEP, HELLO = 101, 102, 7592


def tokens(*sequences: list[int]) -> list[pb.TokenIds]:
    return [pb.TokenIds(ids=ids) for ids in sequences]


INVALID: dict[str, tuple[pb.EmbedRequest, str, list[str]]] = {
    # name: (request, field at fault, what the message must name)
    "nothing": (pb.EmbedRequest(), "texts", []),
    "10,000 texts": (
        pb.EmbedRequest(texts=["x"] * 10_000), "texts", ["10000", f"{MAX_TEXTS}"],
    ),
    "10,000 token lists": (
        pb.EmbedRequest(tokens=tokens([CLS]) * 10_000), "tokens", ["10000", f"{MAX_TEXTS}"],
    ),
    "text over the limit": (
        pb.EmbedRequest(texts=["x", "é" * (MAX_TEXT_BYTES // 2 + 1)]),
        "texts[1]", [f"{MAX_TEXT_BYTES + 2}", f"{MAX_TEXT_BYTES}"],
    ),
    "texts and tokens": (pb.EmbedRequest(texts=["x"], tokens=tokens([1])), "tokens", ["texts"]),
    "texts and images": (pb.EmbedRequest(texts=["x"], images=[b"x"]), "images", ["texts"]),
    "no token ids": (pb.EmbedRequest(tokens=tokens([CLS], [])), "tokens[1]", []),
    "token outside the vocabulary": (
        pb.EmbedRequest(tokens=tokens([CLS, SEP], [CLS, VOCABULARY])),
        "tokens[1]", [f"id {VOCABULARY} ", f"[0, {VOCABULARY})"],
    ),
    "largest token id": (
        pb.EmbedRequest(tokens=tokens([2**32 - 1])), "tokens[0]", [f"{2**32 - 1}"],
    ),
    "too many token ids": (
        pb.EmbedRequest(tokens=tokens([HELLO] * (MAX_TOKENS + 1))),
        "tokens[0]", [f"{MAX_TOKENS + 1} tokens", f"{MAX_TOKENS}"],
    ),
    "prompt with tokens": (
        pb.EmbedRequest(tokens=tokens([CLS]), prompt_name="query"), "prompt_name", [],
    ),
    "unknown prompt": (
        pb.EmbedRequest(texts=["x"], prompt_name="query"), "prompt_name", ["'query'"],
    ),
    "no dimensions": (
        pb.EmbedRequest(texts=["x"], dimensions=0), "dimensions", ["0", f"{DIMENSIONS}"],
    ),
    "more dimensions than the model's": (
        pb.EmbedRequest(texts=["x"], dimensions=DIMENSIONS + 1),
        "dimensions", [f"{DIMENSIONS + 1}", f"{DIMENSIONS}"],
    ),
    "unknown encoding": (pb.EmbedRequest(texts=["x"], encoding=99), "encoding", ["99"]),  # type: ignore[arg-type]
    "unknown priority": (pb.EmbedRequest(texts=["x"], priority=-1), "priority", ["-1"]),  # type: ignore[arg-type]
    "too long and not to be cut": (
        pb.EmbedRequest(texts=["x", "hello " * 300], truncate=False),
        # 300 words of one token each, [CLS] and [SEP]
        "texts[1]", ["302 tokens", f"{MAX_TOKENS}"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_invalid_request_names_field_limit_and_value(real: Connection, name: str) -> None:
    """INVALID_ARGUMENT with BadRequest's field, and a message that holds limit and value."""
    request, field, named = INVALID[name]

    found = refusal(lambda: real.embedding.Embed(request, timeout=TIMEOUT_S))

    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (found.reason, found.domain) == ("INVALID_INPUT", "shoal")
    assert found.fields == (field,)
    assert found.message.startswith(field)
    assert [each for each in named if each not in found.message] == []
    assert found.retry_s is None


NO_NAMES = ["../etc/passwd", "..", "a/b", "/etc", "a\\b", ".hidden", "a\0b", "a b", "ä", "@1", "a@",
            "a@../1", "a@1@2", "x" * 129, "x" * 1_000_000]  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: repr(name[:20]))
def test_what_can_not_be_a_name_is_refused_by_every_method(real: Connection, name: str) -> None:
    """No method takes a model name that could leave the repository."""
    control = real.control
    calls: list[Callable[[], object]] = [
        lambda: real.embed("x", model=name),
        lambda: real.embedding.Tokenize(pb.TokenizeRequest(model=name, texts=["x"])),
        lambda: control.GetModel(control_pb.GetModelRequest(model=name)),
        lambda: control.LoadModel(control_pb.LoadModelRequest(model=name)),
        lambda: control.UnloadModel(control_pb.UnloadModelRequest(model=name)),
    ]
    for call in calls:
        found = refusal(call)

        assert found.code is grpc.StatusCode.INVALID_ARGUMENT
        assert found.fields == ("model",)
        assert len(found.message) < 300


@pytest.mark.parametrize("name", ["absent", "all-minilm-l6-v2@9", "absent@1"])
def test_unknown_model_is_not_found(real: Connection, name: str) -> None:
    """NOT_FOUND that names the model, from every method that takes one."""
    control = real.control
    calls: list[Callable[[], object]] = [
        lambda: real.embed("x", model=name),
        lambda: real.embedding.Tokenize(pb.TokenizeRequest(model=name, texts=["x"])),
        lambda: control.GetModel(control_pb.GetModelRequest(model=name)),
        lambda: control.LoadModel(control_pb.LoadModelRequest(model=name)),
        lambda: control.UnloadModel(control_pb.UnloadModelRequest(model=name)),
    ]
    for call in calls:
        found = refusal(call)

        assert found.code is grpc.StatusCode.NOT_FOUND
        assert (found.reason, found.domain) == ("MODEL_NOT_FOUND", "shoal")
        assert found.metadata["model"] == name.partition("@")[0]
        assert name.partition("@")[0] in found.message


def test_images_are_refused(real: Connection) -> None:
    """FAILED_PRECONDITION: no model takes them, yet the request is well formed."""
    found = refusal(lambda: real.embedding.Embed(pb.EmbedRequest(images=[b"\x89PNG"])))

    assert found.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (found.reason, found.domain) == ("FAILED_PRECONDITION", "shoal")
    assert "images" in found.message


MALFORMED = {
    "garbage": b"\xff" * 64,
    "cut short": pb.EmbedRequest(texts=["hello"]).SerializeToString()[:-2],
    # Field 2 (texts), length 2, bytes that are no UTF-8.
    "texts that are not UTF-8": b"\x12\x02\xc3\x28",
    # Field 1 (model), a lone surrogate as UTF-8 would have it.
    "model that is a lone surrogate": b"\x0a\x03\xed\xa0\x80",
}


@pytest.mark.parametrize("method", [EMBED, TOKENIZE])
@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_message_is_invalid_argument(real: Connection, method: str, data: bytes) -> None:
    """What is no message, or holds no UTF-8, is the caller's fault and said so."""
    found = refusal(lambda: real.send_raw(method, data))

    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (found.reason, found.domain) == ("INVALID_INPUT", "shoal")
    assert found.fields == ("request",)


def test_unknown_field_is_read_past(real: Connection) -> None:
    """A newer client's fields do no harm: protobuf's promise, kept."""
    known = pb.EmbedRequest(texts=["hello"]).SerializeToString()
    newer = known + b"\xfa\x7f\x03new"  # field 2047, length 3

    answer = pb.EmbedResponse.FromString(real.send_raw(EMBED, newer))

    assert answer.vectors == real.embed("hello").vectors


@pytest.mark.parametrize(
    "control",
    [
        control_pb.LoadModelRequest(device="tpu"),
        control_pb.LoadModelRequest(device="cuda:-1"),
        control_pb.LoadModelRequest(device="x" * 10_000),
    ],
    ids=lambda message: message.device[:10],
)
def test_wrong_device_is_invalid_argument(
    real: Connection, control: control_pb.LoadModelRequest
) -> None:
    """A device that is none is the caller's fault, whatever the machine has."""
    found = refusal(lambda: real.control.LoadModel(control))

    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.fields == ("device",)


@pytest.mark.parametrize(
    "force_after",
    [
        duration_pb2.Duration(seconds=-1),
        duration_pb2.Duration(nanos=-1),
        duration_pb2.Duration(seconds=2**62),
        duration_pb2.Duration(seconds=1, nanos=-5),
        duration_pb2.Duration(nanos=2**31 - 1),
    ],
    ids=lambda each: f"{each.seconds}s{each.nanos}ns",
)
def test_wrong_duration_is_invalid_argument(
    real: Connection, force_after: duration_pb2.Duration
) -> None:
    """A duration below zero, or that is none by its own rules, is the caller's fault."""
    request = control_pb.UnloadModelRequest(force_after=force_after)

    found = refusal(lambda: real.control.UnloadModel(request))

    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.fields == ("force_after",)


def test_empty_text_is_valid(real: Connection) -> None:
    """An empty text has a vector: that of [CLS] [SEP]."""
    answer = real.embed("")

    by_tokens = real.embedding.Embed(pb.EmbedRequest(tokens=tokens([CLS, SEP])))
    assert list(answer.token_counts) == [2]
    assert answer.vectors == by_tokens.vectors


def test_100_000_characters_are_cut(real: Connection) -> None:
    """A long text gets the vector of its first tokens, and the caller is told."""
    text = "hello " * 16_667
    assert len(text) > 100_000

    answer = real.embed("short", text)

    first = [CLS, *[HELLO] * (MAX_TOKENS - 2), SEP]
    expected = real.embedding.Embed(pb.EmbedRequest(tokens=tokens(first)))
    assert list(answer.truncated) == [1]
    assert answer.token_counts[1] == MAX_TOKENS
    assert rows(answer)[1].tobytes() == expected.vectors


def test_nul_is_dropped_as_the_tokenizer_defines(real: Connection) -> None:
    """BERT's normaliser removes NUL; the text does not end at it."""
    assert real.embed("hel\0lo world\0").vectors == real.embed("hello world").vectors


ODD = [
    "\n\t \u00a0", "\u200b", "\ufffd", "\U0010ffff", "e\u0301" * 50, "👩\u200d👧\u200d👦" * 100,
    "a" * 100_000, "[CLS] [SEP] [PAD] [MASK]", "\u202eabc", "\x7f\x01\x1b[31m",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text[:8]))
def test_odd_text_has_a_unit_vector(real: Connection, text: str) -> None:
    """Whatever is Unicode can be embedded."""
    (row,) = rows(real.embed(text))

    assert float(row @ row) == pytest.approx(1.0, abs=1e-5)


def test_deadline_of_one_millisecond(real: Connection) -> None:
    """A deadline that can not be met is DEADLINE_EXCEEDED and leaves nothing behind."""
    texts = ["a text of some length " * 20] * 64

    found = refusal(lambda: real.embedding.Embed(pb.EmbedRequest(texts=texts), timeout=0.001))

    assert found.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_idle(real)
