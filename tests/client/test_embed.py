"""`embed`, `embed_tokens` and `tokenize` of both clients, over a real channel."""

from __future__ import annotations

import numpy as np
import pytest

from shoal_client import Client, InternalError, InvalidArgumentError
from tests.client import fake as fakes
from tests.client.conftest import Connect
from tests.client.fake import FakeServer, vector_of, vectors_of


def test_rows_are_the_texts_vectors_in_order(client: Client) -> None:
    """Row i is the vector of text i, as float32[N, D]."""
    texts = ["one", "two", "", "dreißig 🐟"]
    result = client.embed(texts)
    assert result.vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors_of(texts), result.vectors)


def test_result_tells_usage_and_timings(client: Client) -> None:
    """Model, version, tokens, truncation and timings come with the vectors."""
    result = client.embed(["abc", "x" * 300])
    assert (result.model, result.version) == ("fake", "1")
    assert result.token_counts == (5, 302)
    assert result.truncated == (1,)
    assert result.timings.total_us == 1002


def test_options_reach_the_server(client: Client, fake: FakeServer) -> None:
    """Every option is a field of the request."""
    client.embed(
        ["a"],
        model="m@2",
        normalize=False,
        dimensions=4,
        encoding="float16",
        truncate=False,
        prompt_name="query",
        priority="high",
    )
    request = fake.calls[-1].request
    assert (request.model, request.prompt_name) == ("m@2", "query")
    assert request.HasField("normalize") and not request.normalize
    assert request.HasField("truncate") and not request.truncate
    assert (request.dimensions, request.encoding, request.priority) == (4, 2, 3)


def test_options_left_out_stay_unset(client: Client, fake: FakeServer) -> None:
    """What the caller does not say is left to the server."""
    client.embed(["a"])
    request = fake.calls[-1].request
    assert not any(request.HasField(field) for field in ("normalize", "dimensions", "truncate"))


def test_large_input_is_split_and_joined_in_order(client: Client, fake: FakeServer) -> None:
    """More texts than a request may hold come back as one result, in order."""
    texts = [f"text {number}" for number in range(1050)]
    result = client.embed(texts)
    np.testing.assert_array_equal(vectors_of(texts), result.vectors)
    assert len(texts) == len(result.token_counts)
    assert fake.methods() == ["Embed"] * 11


def test_split_results_count_from_the_first_text(client: Client) -> None:
    """Indices of truncated inputs are those of the caller's list."""
    texts = ["short"] * 250
    for index in (3, 120, 249):
        texts[index] = "x" * 201
    assert client.embed(texts).truncated == (3, 120, 249)


def test_split_by_bytes(client: Client, fake: FakeServer) -> None:
    """No request is above the server's limit of bytes."""
    texts = ["ä" * 100] * 120
    assert len(texts) == len(client.embed(texts))
    assert len(fake.methods()) == 3


def test_split_by_size_of_the_answer(client: Client, fake: FakeServer) -> None:
    """Rows that would not fit into one answer are asked for in several."""
    fake.limits.message_bytes = 2000
    client.embed(["a"] * 40, dimensions=12)
    assert max(len(call.request.texts) for call in fake.calls[1:]) <= 2000 // (12 * 4)


def test_parts_are_in_flight_together_but_not_all(connect: Connect, fake: FakeServer) -> None:
    """`concurrency` parts run at once, and no more."""
    fake.hold(until=3)
    connect(concurrency=3).embed(["a"] * 1000)
    assert fake.most_in_flight == 3


def test_one_failing_part_cancels_the_others(client: Client, fake: FakeServer) -> None:
    """The caller gets the error at once; parts in flight are cancelled on the server."""
    texts = ["a"] * 200 + ["bad"]
    fake.hold(text="a")
    fake.fail_requests(fakes.INTERNAL, text="bad", when_held=2)
    with pytest.raises(InternalError):
        client.embed(texts)
    for _ in range(2):
        fake.cancelled.get(timeout=10)


def test_error_of_a_part_names_the_callers_index(client: Client, fake: FakeServer) -> None:
    """The index in field and message counts from the start of the caller's list."""
    texts = ["fine"] * 230
    texts[215] = "bad"
    fake.fail_requests(fakes.invalid("texts[15]"), text="bad")
    with pytest.raises(InvalidArgumentError, match=r"^texts\[215\]: 612 tokens") as raised:
        client.embed(texts)
    assert raised.value.field == "texts[215]"


def test_limits_are_asked_for_once(client: Client, fake: FakeServer) -> None:
    """GetServerInfo is one call a client, not one a request."""
    for _ in range(3):
        client.embed(["a"])
    assert [call.method for call in fake.calls].count("GetServerInfo") == 1


def test_tokens(client: Client) -> None:
    """Token ids are embedded like texts, and split like them."""
    tokens = [[101, number, 102] for number in range(150)]
    result = client.embed_tokens(tokens)
    expected = vectors_of([fakes.text_of_tokens(ids) for ids in tokens])
    np.testing.assert_array_equal(expected, result.vectors)


def test_tokenize(client: Client, fake: FakeServer) -> None:
    """One list of ids for each text, in order, whatever the number of requests."""
    results = client.tokenize([str(number) for number in range(150)], include_strings=True)
    assert [list(str(number).encode()) for number in range(150)] == [list(r.ids) for r in results]
    assert list(results[149].strings) == ["1", "4", "9"]
    assert fake.methods() == ["Tokenize"] * 2


def test_no_texts_are_refused_by_the_server(client: Client) -> None:
    """An empty list is the server's to refuse, and is not a crash here."""
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed([])
    assert raised.value.field == "texts"


@pytest.mark.parametrize("method", ["embed", "embed_iter", "embed_chunks", "tokenize"])
def test_single_str_is_refused(client: Client, method: str) -> None:
    """A bare str is not taken for a list of characters, even before a generator starts."""
    with pytest.raises(TypeError, match="single str"):
        getattr(client, method)("not a list")


def test_lone_surrogate_is_refused_before_anything_is_sent(
    client: Client, fake: FakeServer
) -> None:
    """The error names the text; the server never sees the request."""
    with pytest.raises(InvalidArgumentError, match=r"texts\[1\].*lone surrogate") as raised:
        client.embed(["fine", "bro\ud800ken"])
    assert raised.value.field == "texts[1]"
    assert fake.methods() == []


def test_any_iterable_will_do(client: Client) -> None:
    """Generators, tuples and arrays of str are texts."""
    for texts in ((text for text in ("a", "b")), ("a", "b"), np.array(["a", "b"])):
        np.testing.assert_array_equal(vectors_of(["a", "b"]), client.embed(texts))


def test_vector_alone_equals_vector_in_a_crowd(client: Client) -> None:
    """Splitting changes no bit."""
    crowd = client.embed([f"text {number}" for number in range(333)])
    np.testing.assert_array_equal(vector_of("text 217"), crowd[217])
