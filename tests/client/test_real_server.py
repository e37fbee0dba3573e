"""Both clients against the real server and the real model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from shoal.v1.model_control_pb2 import MODEL_STATE_LOADING
from shoal_client import (
    Client,
    DeadlineExceededError,
    HealthStatus,
    InvalidArgumentError,
    ModelNotFoundError,
)
from tests.client.conftest import Connect
from tests.running import RunningServer

TEXTS = [
    "A school of fish.",
    "",
    "Ein Schwarm Fische.",
    "🐟🐟🐟",
    *(f"fish {n}" for n in range(60)),
]


@pytest.fixture
def client(connect: Connect, server: RunningServer) -> Client:
    """A client of either kind that talks to the real server."""
    return connect(server.address)


def test_all_ways_give_the_same_bits(client: Client) -> None:
    """Call, stream, tokens and smaller requests agree on every vector."""
    vectors = client.embed(TEXTS).vectors
    tokens = [text.ids for text in client.tokenize(TEXTS)]
    np.testing.assert_array_equal(vectors, list(client.embed_iter(TEXTS, chunk_size=7)))
    np.testing.assert_array_equal(vectors, client.embed_tokens(tokens))
    np.testing.assert_array_equal(vectors[:1], client.embed(TEXTS[:1]))


def test_shared_requests_give_the_same_bits(connect: Connect, server: RunningServer) -> None:
    """Whatever a call is put together with, its vectors, tokens and errors are its own."""
    client = connect(server.address, coalesce=True)
    calls = [[text] for text in TEXTS] + [TEXTS[:5], ["fish", "fish " * 1000]]
    with ThreadPoolExecutor(len(calls)) as threads:
        too_long = threads.submit(client.embed, calls[-1], truncate=False)
        shared = list(threads.map(client.embed, calls))
    with pytest.raises(InvalidArgumentError, match="256") as raised:
        too_long.result()
    assert raised.value.field == "texts[1]"
    with Client(server.address) as plain:
        for texts, result in zip(calls, shared, strict=True):
            alone = plain.embed(texts)
            np.testing.assert_array_equal(alone.vectors, result.vectors)
            assert alone.token_counts == result.token_counts
            assert alone.truncated == result.truncated


def test_encodings_are_close(client: Client) -> None:
    """What travels in fewer bytes is undone to nearly the same vector."""
    vectors = client.embed(TEXTS).vectors
    for encoding, tolerance in (("float16", 1e-3), ("int8", 5e-3)):
        encoded = client.embed(TEXTS, encoding=encoding)  # type: ignore[arg-type]
        np.testing.assert_allclose(vectors, encoded.to_float32(), rtol=0, atol=tolerance)
    bits = client.embed(TEXTS, encoding="ubinary").to_float32()
    np.testing.assert_array_equal(np.where(vectors > 0, 1, -1), bits)


def test_usage_is_the_models(client: Client) -> None:
    """Tokens and truncation are counted as the tokenizer counts them."""
    result = client.embed(["fish", "fish " * 1000])
    assert (result.token_counts, result.truncated) == ((3, 256), (1,))
    assert result.timings.total_us >= result.timings.inference_us > 0


def test_errors_are_typed(client: Client) -> None:
    """Classes, reasons, fields and request ids come through."""
    with pytest.raises(InvalidArgumentError, match="256") as too_long:
        client.embed(["fine", "fish " * 1000], truncate=False, request_id="from-the-test")
    assert (too_long.value.field, too_long.value.reason) == ("texts[1]", "INVALID_INPUT")
    assert too_long.value.request_id == "from-the-test"
    with pytest.raises(ModelNotFoundError):
        client.get_model("nobody")
    with pytest.raises(DeadlineExceededError):
        client.embed(TEXTS, timeout_s=0.001)


def test_what_happened_can_be_watched(client: Client) -> None:
    """The history begins with the default model's load; the number leads on from there."""
    model = client.load_model()
    with closing(client.watch_events([model.name], after_sequence=0)) as events:
        first, second = next(events), next(events)
    assert first.model_state_changed.after == MODEL_STATE_LOADING
    with closing(
        client.watch_events(
            [model.name], after_sequence=first.sequence, instance_id=first.instance_id
        )
    ) as again:
        assert next(again) == second


def test_control_and_health(client: Client) -> None:
    """The default model is loaded, known and serving."""
    model = client.load_model()
    assert model.name == client.get_model().name
    assert model.name in {known.name for known in client.list_models()}
    assert client.health() is HealthStatus.SERVING
    assert client.health(f"shoal.model/{model.name}") is HealthStatus.SERVING
