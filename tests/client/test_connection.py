"""Addresses, credentials and metadata: what is refused, what is sent where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from shoal_client import Client, RetryPolicy, Tls, UnavailableError
from shoal_client.connection import describe_connection
from shoal_client.retry import Clock
from tests.client.conftest import Connect, FakeTime
from tests.client.fake import UNAVAILABLE, FakeServer, vectors_of

CERTIFICATES = Path(__file__).parent / "certificates"


def read(name: str) -> bytes:
    return (CERTIFICATES / name).read_bytes()


@pytest.mark.parametrize(
    ("addresses", "targets"),
    [
        ("localhost:1", ("localhost:1",)),
        ("a:1, b:2", ("a:1", "b:2")),
        (["a:1", "[::1]:2", "unix:/run/shoal"], ("a:1", "[::1]:2", "unix:/run/shoal")),
        ("dns:///shoal.example:50051", ("dns:///shoal.example:50051",)),
    ],
)
def test_addresses(addresses: str | list[str], targets: tuple[str, ...]) -> None:
    """One target for each address, whichever way they are listed."""
    connection = describe_connection(addresses, tls=False, token="", metadata={})
    assert connection.targets == targets


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "http://host:1", "host:port", "a:1,"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    """Taken by gRPC, these would be names and fail later, or take port 443."""
    with pytest.raises(ValueError, match="is not an address"):
        Client(address)


def test_no_address_is_refused() -> None:
    """An empty list is an error when the client is made, not when it is used."""
    with pytest.raises(ValueError, match="at least one"):
        Client([])


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/run/shoal"]
)
def test_token_in_plaintext_stays_on_this_machine(address: str) -> None:
    """Loopback and unix sockets may carry a token without TLS."""
    connection = describe_connection(address, tls=False, token="secret", metadata={})
    assert connection.metadata == (("authorization", "Bearer secret"),)


@pytest.mark.parametrize("address", ["10.0.0.1:1", "shoal.example:1", "dns:///shoal.example:1"])
def test_token_in_plaintext_to_elsewhere_is_refused(address: str) -> None:
    """One address that is not local is enough; with TLS any will do."""
    addresses = ["127.0.0.1:1", address]
    with pytest.raises(ValueError, match="plaintext"):
        Client(addresses, token="secret")
    Client(addresses, token="secret", tls=True).close()


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"concurrency": 0}])
def test_numbers_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    """Found when the client is made."""
    with pytest.raises(ValueError, match="above 0"):
        Client(**options)  # type: ignore[arg-type]


def test_token_and_metadata_go_with_every_call(connect: Connect, fake: FakeServer) -> None:
    """Unary calls and streams alike."""
    client = connect(token="secret", metadata={"X-Tenant": "fish"})
    client.embed(["a"])
    list(client.embed_iter(["a"]))
    client.health()
    for call in fake.calls:
        if call.method != "StreamRequest":
            assert call.metadata["authorization"] == "Bearer secret"
            assert call.metadata["x-tenant"] == "fish"


def test_closed_client_says_so(client: Client) -> None:
    """Whether or not it was used before."""
    client.close()
    with pytest.raises(UnavailableError, match="the client was closed"):
        client.embed(["a"])


@pytest.fixture
def tls_server() -> Iterator[FakeServer]:
    """Shows a certificate for server.shoal.test, wants one from the client."""
    credentials = grpc.ssl_server_credentials(
        [(read("server.key"), read("server.pem"))], read("root.pem"), require_client_auth=True
    )
    with FakeServer(credentials) as server:
        yield server


def test_tls_both_ways(connect: Connect, tls_server: FakeServer) -> None:
    """Root, client certificate and server name are what the handshake needs."""
    tls = Tls(
        root_certificates=read("root.pem"),
        private_key=read("client.key"),
        certificate_chain=read("client.pem"),
        server_name="server.shoal.test",
    )
    assert len(connect(tls_server.address, tls=tls, token="secret").embed(["a"])) == 1


@pytest.mark.parametrize("tls", [True, Tls(root_certificates=read("root.pem"))])
def test_tls_refuses_a_server_it_can_not_verify(
    connect: Connect, tls_server: FakeServer, tls: bool | Tls
) -> None:
    """An unknown root, or another name, is no connection."""
    client = connect(tls_server.address, tls=tls, retry=RetryPolicy(max_attempts=1))
    with pytest.raises(UnavailableError):
        client.embed(["a"])


@pytest.fixture
def pair(fake: FakeServer) -> Iterator[tuple[FakeServer, FakeServer]]:
    """Two servers."""
    with FakeServer() as other:
        yield fake, other


def test_servers_are_taken_in_turn(connect: Connect, pair: tuple[FakeServer, FakeServer]) -> None:
    """Calls spread evenly over the servers."""
    client = connect(*(server.address for server in pair))
    for _ in range(20):
        client.embed(["a"])
    assert [len(server.methods()) for server in pair] == [10, 10]


def test_parts_of_a_large_call_spread_over_the_servers(
    connect: Connect, pair: tuple[FakeServer, FakeServer]
) -> None:
    """One call uses all servers."""
    texts = [f"text {number}" for number in range(1000)]
    result = connect(*(server.address for server in pair)).embed(texts)
    np.testing.assert_array_equal(vectors_of(texts), result)
    assert [len(server.methods()) for server in pair] == [5, 5]


def test_stopped_server_is_passed_over_without_waiting(
    connect: Connect, pair: tuple[FakeServer, FakeServer], time: FakeTime
) -> None:
    """With one of two servers gone every call still succeeds, and none backs off."""
    client = connect(*(server.address for server in pair))
    client.embed(["a"])
    pair[1].stop()
    for _ in range(10):
        assert len(client.embed(["a"])) == 1
    assert sum(time.waits_s) == 0


def test_draining_servers_are_gone_round(
    connect: Connect, pair: tuple[FakeServer, FakeServer], time: FakeTime
) -> None:
    """UNAVAILABLE sends a call to the next server at once, and waits after each round."""
    for server in pair:
        server.fail("Embed", UNAVAILABLE, UNAVAILABLE)
    client = connect(*(server.address for server in pair))
    assert len(client.embed(["a"])) == 1
    assert time.waits_s == [0, 0.05, 0, 0.1]


def test_all_servers_gone_is_an_error(connect: Connect, fake: FakeServer) -> None:
    """After the attempts the caller learns that nobody is there."""
    fake.stop()
    with pytest.raises(UnavailableError):
        connect(fake.address, "127.0.0.1:1").embed(["a"])


def test_stream_moves_to_the_other_server(
    connect: Connect, pair: tuple[FakeServer, FakeServer], time: FakeTime
) -> None:
    """A bulk job outlives the server it began on."""
    client = connect(*(server.address for server in pair))
    texts = [f"text {number}" for number in range(200)]
    rows = client.embed_iter(texts, chunk_size=5, max_in_flight=20)
    received = [next(rows) for _ in range(30)]
    first = next(server for server in pair if "EmbedStream" in server.methods())
    first.stop()
    received += rows
    np.testing.assert_array_equal(vectors_of(texts), received)
    assert sum(time.waits_s) == 0


def test_server_that_comes_back_is_found_again(connect: Connect, fake: FakeServer) -> None:
    """A restart between two calls is noticed by the retries alone."""
    client = connect(clock=Clock())
    client.embed(["a"])
    fake.stop()
    port = int(fake.address.rpartition(":")[2])
    with FakeServer(port=port) as again:
        assert len(client.embed(["a"])) == 1
        assert again.methods() == ["Embed"]


def test_new_client_does_not_wait_out_the_failures_of_another(
    connect: Connect, fake: FakeServer
) -> None:
    """A server that came back is reached by a new client's first try."""
    fake.stop()
    port = int(fake.address.rpartition(":")[2])
    other = connect()
    for _ in range(10):  # the longer gRPC failed, the longer it backs off
        with pytest.raises(UnavailableError):
            other.embed(["a"])
    with FakeServer(port=port) as again:
        client = connect(again.address, retry=RetryPolicy(max_attempts=1))
        assert len(client.embed(["a"])) == 1
