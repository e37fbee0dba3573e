"""Calls over a real channel, what their answers say, and what they must leave behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from shoal.v1 import embed_pb2 as pb
from shoal.v1 import embed_pb2_grpc, model_control_pb2_grpc
from shoal.v1 import model_control_pb2 as control_pb
from tests.running import RunningServer

Float32 = npt.NDArray[np.float32]
T = TypeVar("T")

TIMEOUT_S = 60.0
"""Of calls that are meant to be answered: a bound, not a claim."""
KNOWN_TEXT = "red blue"
"""A text that every model of the tests has a vector for."""
SLOW = "slow " * 8
"""A text that takes tiny models about a quarter of a second of one core."""

_POLL_S = 0.01
# More than any line needs, less than a caller could send.
_LOG_LINE_CHARACTERS = 4096
# Without it channels of one process share connections, and closing one closes nothing.
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


class Connection:
    """A channel with a connection of its own, and a stub for each service."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None = None,
        *,
        server_name: str = "",
    ) -> None:
        """Connect when first used.

        Args:
            address: `HOST:PORT`.
            credentials: For TLS; None: without it.
            server_name: Whose certificate is expected, where that is not HOST.
        """
        if credentials is None:
            self.channel = grpc.insecure_channel(address, _OWN_CONNECTION)
        else:
            options = (*_OWN_CONNECTION, ("grpc.ssl_target_name_override", server_name))
            self.channel = grpc.secure_channel(address, credentials, options)
        self.embedding = embed_pb2_grpc.EmbedServiceStub(self.channel)
        self.control = model_control_pb2_grpc.ModelControlServiceStub(self.channel)
        self._health = health_pb2_grpc.HealthStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def embed(self, *texts: str, **fields: Any) -> pb.EmbedResponse:
        """The answer to one request."""
        return self.embedding.Embed(pb.EmbedRequest(texts=texts, **fields), timeout=TIMEOUT_S)

    def start(
        self, *texts: str, timeout: float = TIMEOUT_S, **fields: Any
    ) -> grpc.Future[pb.EmbedResponse]:
        """One request, under way."""
        request = pb.EmbedRequest(texts=texts, **fields)
        future: grpc.Future[pb.EmbedResponse] = self.embedding.Embed.future(request, timeout)
        return future

    def send_raw(self, method: str, data: bytes) -> bytes:
        """The answer to bytes that need not be a message."""
        call = self.channel.unary_unary(method, _as_is, _as_is)
        answer: bytes = call(data, timeout=TIMEOUT_S)
        return answer

    def health(self, service: str = "") -> int:
        """The state of a service; of the whole server when it has no name."""
        request = health_pb2.HealthCheckRequest(service=service)
        answer = self._health.Check(request, timeout=TIMEOUT_S)  # type: ignore[attr-defined]
        return int(answer.status)

    def watch_health(self) -> Iterator[int]:
        """The state of the server, and again whenever it changes."""
        request = health_pb2.HealthCheckRequest()
        watch = self._health.Watch(request, timeout=TIMEOUT_S)  # type: ignore[attr-defined]
        try:
            for answer in watch:
                yield int(answer.status)
        finally:
            watch.cancel()

    def info(self) -> control_pb.GetServerInfoResponse:
        """What the server is and does now."""
        return self.control.GetServerInfo(control_pb.GetServerInfoRequest(), timeout=TIMEOUT_S)

    def models(self) -> dict[str, control_pb.ModelInfo]:
        """Every model, by name."""
        answer = self.control.ListModels(control_pb.ListModelsRequest(), timeout=TIMEOUT_S)
        return {model.name: model for model in answer.models}

    def load(self, model: str, **fields: Any) -> control_pb.ModelInfo:
        """The model, in memory."""
        request = control_pb.LoadModelRequest(model=model, **fields)
        return self.control.LoadModel(request, timeout=TIMEOUT_S).model

    def unload(self, model: str, **fields: Any) -> control_pb.ModelInfo:
        """The model, out of memory."""
        request = control_pb.UnloadModelRequest(model=model, **fields)
        return self.control.UnloadModel(request, timeout=TIMEOUT_S).model

    def wait_in_flight(self, requests: int) -> None:
        """Return when the server works on exactly so many requests."""
        eventually(
            lambda: self.info().requests_in_flight == requests, f"{requests} requests in flight"
        )


def _as_is(data: bytes) -> bytes:
    return data


def rows(response: pb.EmbedResponse) -> Float32:
    """The vectors of a float32 answer, float32[N, D]."""
    assert response.encoding == pb.VECTOR_ENCODING_FLOAT32
    return np.frombuffer(response.vectors, "<f4").reshape(-1, response.dimensions)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as a caller gets it: the status and its details."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    domain: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    retry_s: float | None = None


def refusal(call: Callable[[], object]) -> Refusal:
    """How `call` fails; it must."""
    try:
        call()
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        # Raises when the details contradict the status.
        status = rpc_status.from_call(error)
        if status is not None:
            return refusal_of(status)
        return Refusal(error.code(), error.details() or "")
    raise AssertionError("the call succeeded")


def refusal_of(status: status_pb2.Status) -> Refusal:
    """An error as it stands in the answer of a stream."""
    info = _detail(status, error_details_pb2.ErrorInfo)
    bad = _detail(status, error_details_pb2.BadRequest)
    retry = _detail(status, error_details_pb2.RetryInfo)
    return Refusal(
        code=next(code for code in grpc.StatusCode if code.value[0] == status.code),
        message=status.message,
        reason=info.reason if info else "",
        domain=info.domain if info else "",
        metadata=dict(info.metadata) if info else {},
        fields=tuple(each.field for each in bad.field_violations) if bad else (),
        retry_s=retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
    )


M = TypeVar("M", bound=Message)


def _detail(status: status_pb2.Status, kind: type[M]) -> M | None:
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


def eventually(condition: Callable[[], T], what: str, within_s: float = 30.0) -> T:
    """The first true answer of `condition`, for what no event tells of.

    Args:
        condition: Asked again and again.
        what: For the failure's message.
        within_s: Fails after so long.
    """
    give_up_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < give_up_s, f"not within {within_s:g} s: {what}"
        time.sleep(_POLL_S)
    return found


@contextmanager
def unharmed(server: RunningServer) -> Iterator[Connection]:
    """A connection to a server that must be as sound on leaving as it was before.

    The same process answers with the same bits, nothing is in flight, no lease is
    left, and nothing happened that nobody had thought of.
    """
    with Connection(server.address) as connection:
        before = connection.embed(KNOWN_TEXT).vectors
        yield connection
        assert server.process.poll() is None, "the server ended"
        assert connection.embed(KNOWN_TEXT).vectors == before
        assert_idle(connection)
        assert_no_surprise(server)


@contextmanager
def kept_busy(
    connection: Connection, *models: str
) -> Iterator[list[grpc.Future[pb.EmbedResponse]]]:
    """Requests that keep tiny models (the default one) at work throughout the block.

    The models run one item at a time (`max_batch_items = 1`). What is not done at the
    end is cancelled.
    """
    futures = [connection.start(SLOW, model=model) for _ in range(50) for model in models or [""]]
    # On a busy machine the first may be done when the last are on their way.
    eventually(
        lambda: (
            connection.info().requests_in_flight + sum(each.done() for each in futures)
            >= len(futures)
        ),
        "a server kept busy",
    )
    yield futures
    for future in futures:
        future.cancel()


def assert_idle(connection: Connection) -> None:
    """Everything that was lent is given back, at once or very soon."""
    eventually(
        lambda: _in_flight(connection) == (0, 0, 0),
        "no request, item or byte in flight",
    )
    busy = {
        name: (model.residency.leases, model.residency.waiting_items)
        for name, model in connection.models().items()
        if model.residency.leases or model.residency.waiting_items
    }
    assert busy == {}


def _in_flight(connection: Connection) -> tuple[int, int, int]:
    info = connection.info()
    return info.requests_in_flight, info.items_in_flight, info.bytes_in_flight


def assert_no_surprise(server: RunningServer) -> None:
    """No exception reached the log that nobody raised on purpose."""
    text = "".join(server.output)
    assert max(map(len, server.output)) < _LOG_LINE_CHARACTERS, "callers fill the log"
    assert "Traceback" not in text, text
    assert "unexpected_error" not in text, text
    assert "never retrieved" not in text, text
