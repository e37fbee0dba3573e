"""Connections that do what no client should: the server answers everybody else."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import grpc
import pytest

from shoal.v1 import embed_pb2 as pb
from tests.running import RunningServer
from tests.tiny_model import TinyModel

from .calls import KNOWN_TEXT, TIMEOUT_S, Connection, assert_idle, refusal, unharmed

EMBED = "/shoal.v1.EmbedService/Embed"
MESSAGE_BYTES = 8 * 1024 * 1024


@pytest.fixture(scope="module")
def running(model: TinyModel) -> Iterator[RunningServer]:
    with RunningServer(
        model_dir=model.root,
        default_model="tiny",
        max_request_bytes=MESSAGE_BYTES,
        max_message_bytes=MESSAGE_BYTES,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(running: RunningServer) -> Iterator[Connection]:
    with unharmed(running) as connection:
        yield connection


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_GRPC = {
    "nothing": b"",
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "noise": b"\xff\x00" * 5000,
    "preface, then noise": PREFACE + b"\xff\x00" * 5000,
    # A frame of settings that says it is longer than it is.
    "preface, then half a frame": PREFACE + b"\x00\x10\x00\x04\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("data", NO_GRPC.values(), ids=NO_GRPC)
def test_what_is_no_grpc_harms_nobody(
    tiny: Connection, running: RunningServer, data: bytes
) -> None:
    """Bytes that are not HTTP/2, before and after the connection is dropped."""
    host, port = running.address.split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(data)
        assert tiny.embed("red").dimensions == 8
    assert tiny.embed("red").dimensions == 8


def test_half_closed_without_a_request(tiny: Connection) -> None:
    """A unary call whose caller says nothing ends with its deadline, and holds nothing."""
    call: grpc.StreamUnaryMultiCallable[bytes, bytes] = tiny.channel.stream_unary(EMBED)

    found = refusal(lambda: call(iter([]), timeout=0.3))

    assert found.code is not grpc.StatusCode.OK
    assert_idle(tiny)


def test_compressed_request_is_read(tiny: Connection) -> None:
    """Compression is the transport's matter: the vectors are the same."""
    request = pb.EmbedRequest(texts=[KNOWN_TEXT])

    answer = tiny.embedding.Embed(request, timeout=TIMEOUT_S, compression=grpc.Compression.Gzip)

    assert answer.vectors == tiny.embed(KNOWN_TEXT).vectors


def test_message_that_grows_when_it_is_unpacked_is_refused(tiny: Connection) -> None:
    """The limit holds for what a compressed message unpacks to."""
    bomb = pb.EmbedRequest(texts=["a" * (10 * MESSAGE_BYTES)])

    found = refusal(
        lambda: tiny.embedding.Embed(bomb, timeout=TIMEOUT_S, compression=grpc.Compression.Gzip)
    )

    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_connections_that_come_of_age_lose_no_call(model: TinyModel) -> None:
    """Being asked to reconnect, again and again, is nothing that a caller notices."""
    with (
        RunningServer(
            model_dir=model.root, default_model="tiny", max_connection_age_s=0.05
        ) as running,
        unharmed(running) as connection,
    ):
        for _ in range(8):
            pending = [connection.start("slow") for _ in range(5)]
            assert {len(future.result().vectors) for future in pending} == {8 * 4}


def test_many_connections(tiny: Connection, running: RunningServer) -> None:
    """Each caller has its own, all at once, and none says goodbye."""
    crowd = [Connection(running.address) for _ in range(50)]

    pending = [connection.start("red") for connection in crowd]

    assert len({future.result().vectors for future in pending}) == 1
    for connection in crowd:
        connection.channel.close()
    assert_idle(tiny)
