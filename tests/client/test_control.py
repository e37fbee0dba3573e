"""Model control and health of both clients, over a real channel."""

from __future__ import annotations

import pytest

from shoal.v1.model_control_pb2 import MODEL_STATE_READY, MODEL_STATE_REGISTERED
from shoal_client import Client, HealthStatus, ModelNotFoundError, UnavailableError
from tests.client.fake import FakeServer


def test_list_and_get(client: Client) -> None:
    """Models come as the protos' own messages, out of their envelopes."""
    (model,) = client.list_models()
    assert model == client.get_model("fake") == client.get_model()
    assert (model.name, model.state) == ("fake", MODEL_STATE_READY)


def test_load_and_unload(client: Client, fake: FakeServer) -> None:
    """Arguments reach the server; the model's new state comes back."""
    assert client.unload_model("fake", force_after_s=0.5).state == MODEL_STATE_REGISTERED
    assert fake.calls[-1].request.force_after.ToMilliseconds() == 500
    assert client.load_model("fake", pin=True, device="cpu").state == MODEL_STATE_READY
    assert (fake.calls[-1].request.pin, fake.calls[-1].request.device) == (True, "cpu")


def test_pin_left_out_stays_unset(client: Client, fake: FakeServer) -> None:
    """Loading again does not unpin."""
    client.load_model("fake")
    assert not fake.calls[-1].request.HasField("pin")


@pytest.mark.parametrize("pin", [True, False])
def test_pin(client: Client, fake: FakeServer, pin: bool) -> None:
    """Says which way; without a word it pins."""
    assert client.pin_model("fake", pin=pin).name == "fake"
    assert fake.calls[-1].request.pin is pin
    client.pin_model("fake")
    assert fake.calls[-1].request.pin is True


def test_unknown_model(client: Client) -> None:
    """NOT_FOUND is ModelNotFoundError, with its reason."""
    with pytest.raises(ModelNotFoundError) as raised:
        client.get_model("none")
    assert raised.value.reason == "MODEL_NOT_FOUND"


def test_server_info(client: Client) -> None:
    """Limits are those that the client splits by."""
    assert client.server_info().limits.texts_per_request == 100


def test_health(client: Client) -> None:
    """Server, model and unknown service."""
    client.unload_model()
    assert client.health() is HealthStatus.SERVING
    assert client.health("shoal.model/fake") is HealthStatus.NOT_SERVING
    assert client.health("nobody") is HealthStatus.UNKNOWN


def test_health_of_nobody(client: Client, fake: FakeServer) -> None:
    """No server is an error, not a status."""
    fake.stop()
    with pytest.raises(UnavailableError):
        client.health()
