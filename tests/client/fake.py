"""A server in this process that answers by rule and fails on demand."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple, NoReturn, Self

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.v1 import (
    embed_pb2,
    embed_pb2_grpc,
    model_control_pb2,
    model_control_pb2_grpc,
    profile_pb2,
    settings_pb2,
    statistics_pb2,
    usage_pb2,
    versions_pb2,
)

DIMENSIONS = 12
MODEL = "fake"
DEPRECATED_MODEL = "old"
VERSION = "1"
MAX_CHARACTERS = 200  # longer texts count as truncated

Vectors = npt.NDArray[np.float32]
Rule = Callable[[embed_pb2.EmbedRequest], status_pb2.Status | None]


def vector_of(text: str) -> Vectors:
    """float32[DIMENSIONS] of unit length that belongs to this text."""
    values = np.random.default_rng(list(text.encode())).standard_normal(DIMENSIONS)
    return (values / np.linalg.norm(values)).astype(np.float32)


def vectors_of(texts: Sequence[str]) -> Vectors:
    """float32[N, DIMENSIONS]."""
    return np.stack([vector_of(text) for text in texts])


def text_of_tokens(ids: Sequence[int]) -> str:
    """The text whose vector stands for these token ids."""
    return f"tokens {list(ids)}"


def status(
    code: grpc.StatusCode,
    message: str = "on demand",
    *,
    reason: str = "",
    field: str = "",
    retry_after_s: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> status_pb2.Status:
    """A rich error as the server makes them."""
    details: list[Message] = []
    if reason:
        details.append(
            error_details_pb2.ErrorInfo(
                reason=reason, domain="shoal", metadata=metadata or {"limit": "512"}
            )
        )
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(retry_after_s * 1e9))
        details.append(retry)
    rich = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        rich.details.append(packed)
    return rich


def overloaded(retry_after_s: float = 0.001) -> status_pb2.Status:
    """No room; come back so soon that no test waits for it."""
    return status(
        grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OVERLOADED", retry_after_s=retry_after_s
    )


UNAVAILABLE = status(grpc.StatusCode.UNAVAILABLE, reason="UNAVAILABLE")
INTERNAL = status(grpc.StatusCode.INTERNAL, reason="INFERENCE_FAILED")


def invalid(field: str) -> status_pb2.Status:
    """A refused input, worded as the server does."""
    return status(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"{field}: 612 tokens, the model takes 512",
        reason="INVALID_INPUT",
        field=field,
    )


class Call(NamedTuple):
    """What the server got."""

    method: str
    request: Any
    metadata: dict[str, str | bytes]
    timeout_s: float | None


class FakeServer:
    """Serves shoal.v1 and health on a free port.

    Attributes:
        address: HOST:PORT.
        calls: Every call, and every request of a stream, as they arrived.
        failures: For a method's name, the statuses of its next calls.
        rule: Decides on each embed request, of a call or of a stream.
        limits: What GetServerInfo tells, and what Embed insists on.
        models: Names and their states.
        settings: What UpdateSettings answers.
        statistics: What GetStatistics answers.
        answers_before_break: For each of the next streams, how many answers it
            gives before it ends with UNAVAILABLE.
        watches: For each of the next WatchEvents calls, the answers that it gives before
            it ends with UNAVAILABLE; a call for which there are none stays open.
        stream_group: Requests that a stream answers together, last one first.
        stream_ends: For each stream that ended, whether its caller was still there.
        streamed: A token for each request of a stream.
        held: A token for each Embed call that waits, see `hold`.
        cancelled: A token for each of them that the client gave up.
        most_in_flight: Embed calls at once, at most.
    """

    def __init__(self, credentials: grpc.ServerCredentials | None = None, port: int = 0) -> None:
        self.calls: list[Call] = []
        self.failures: dict[str, deque[status_pb2.Status]] = {}
        self.rule: Rule = lambda _: None
        self.limits = model_control_pb2.Limits(
            texts_per_request=100, bytes_per_request=10_000, message_bytes=4_000_000
        )
        self.models = {MODEL: model_control_pb2.MODEL_STATE_READY}
        self.settings = settings_pb2.UpdateSettingsResponse()
        self.statistics = statistics_pb2.GetStatisticsResponse()
        self.usage = usage_pb2.GetUsageResponse()
        self.profile_answers: list[profile_pb2.ProfileModelResponse] = []
        self.answers_before_break: deque[int] = deque()
        self.watches: deque[list[model_control_pb2.WatchEventsResponse]] = deque()
        self.stream_group = 1
        self.stream_ends: SimpleQueue[bool] = SimpleQueue()
        self.streamed: SimpleQueue[None] = SimpleQueue()
        self.held: SimpleQueue[None] = SimpleQueue()
        self.cancelled: SimpleQueue[None] = SimpleQueue()
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()  # guards the two counters
        self._holding: Callable[[embed_pb2.EmbedRequest], bool] = lambda _: False
        self._hold_until = 0
        self._releases: list[threading.Event] = []
        self._server = grpc.server(
            ThreadPoolExecutor(32, "fake"), options=[("grpc.so_reuseport", 0)]
        )
        embed_pb2_grpc.add_EmbedServiceServicer_to_server(_Embed(self), self._server)
        model_control_pb2_grpc.add_ModelControlServiceServicer_to_server(
            _Control(self),  # type: ignore[abstract]  # what no test here calls is left out
            self._server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(_Health(self), self._server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def fail(self, method: str, *statuses: status_pb2.Status) -> None:
        """Let the next calls of a method fail, each in its way."""
        self.failures.setdefault(method, deque()).extend(statuses)

    def fail_requests(
        self, *statuses: status_pb2.Status, text: str | None = None, when_held: int = 0
    ) -> None:
        """Let the next embed requests fail, each in its way.

        Args:
            *statuses: One for each request.
            text: Only requests with this text; None for all.
            when_held: Not before so many calls are held.
        """
        left = deque(statuses)

        def rule(request: embed_pb2.EmbedRequest) -> status_pb2.Status | None:
            if not left or (text is not None and text not in request.texts):
                return None
            for _ in range(when_held):
                self.held.get()
            return left.popleft()

        self.rule = rule

    def hold(self, text: str | None = None, *, until: int = 0) -> None:
        """Let Embed calls (with this text) wait for `release` or their end.

        Args:
            text: None for all calls.
            until: Release them when so many wait; 0: never.
        """
        self._holding = lambda request: text is None or text in request.texts
        self._hold_until = until

    def release(self) -> None:
        """Let the calls that wait go on, and those to come."""
        self._holding = lambda _: False
        for event in self._releases:
            event.set()

    def release_first(self) -> None:
        """Let the call that has waited longest go on."""
        self._releases[0].set()

    def methods(self) -> list[str]:
        """The methods called, in order, without GetServerInfo."""
        return [call.method for call in self.calls if call.method != "GetServerInfo"]

    def stop(self) -> None:
        """Drop all connections and listen no more."""
        self.release()
        self._server.stop(0).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def enter(self, method: str, request: Message | None, context: grpc.ServicerContext) -> None:
        """Note a call; end it if it is to fail."""
        metadata = dict(context.invocation_metadata())
        # Without a deadline grpc says 9.2e18.
        timeout_s = context.time_remaining()
        call = Call(method, request, metadata, None if timeout_s > 1e9 else timeout_s)
        self.calls.append(call)
        context.set_trailing_metadata(
            (("x-request-id", f"server-{metadata.get('x-request-id')!s}"),)
        )
        failures = self.failures.get(method)
        if failures:
            abort(context, failures.popleft())

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a call that is in flight."""
        with self._lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1

    def wait_while_held(
        self, request: embed_pb2.EmbedRequest, context: grpc.ServicerContext
    ) -> None:
        """Keep a call waiting if it is to be held."""
        if not self._holding(request):
            return
        released = threading.Event()
        self._releases.append(released)
        if not context.add_callback(released.set):
            released.set()
        self.held.put(None)
        if len(self._releases) == self._hold_until:
            self.release()
        released.wait()
        if not context.is_active():
            self.cancelled.put(None)


def abort(context: grpc.ServicerContext, rich: status_pb2.Status) -> NoReturn:
    """End a call with a rich error."""
    kept = context.trailing_metadata() or ()
    context.set_trailing_metadata((*kept, ("grpc-status-details-bin", rich.SerializeToString())))
    code = next(code for code in grpc.StatusCode if code.value[0] == rich.code)
    context.abort(code, rich.message)
    raise AssertionError("abort returned")


class _Embed(embed_pb2_grpc.EmbedServiceServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def Embed(  # noqa: N802
        self, request: embed_pb2.EmbedRequest, context: grpc.ServicerContext
    ) -> embed_pb2.EmbedResponse:
        self._fake.enter("Embed", request, context)
        with self._fake.counted():
            self._fake.wait_while_held(request, context)
            failure = _refusal(request, self._fake.limits) or self._fake.rule(request)
            if failure is not None:
                abort(context, failure)
            return _answer(request)

    def EmbedStream(  # noqa: N802
        self,
        request_iterator: Iterator[embed_pb2.EmbedStreamRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[embed_pb2.EmbedStreamResponse]:
        fake = self._fake
        fake.enter("EmbedStream", None, context)
        left = fake.answers_before_break.popleft() if fake.answers_before_break else -1
        group: list[embed_pb2.EmbedStreamRequest] = []
        try:
            for request in request_iterator:
                fake.calls.append(Call("StreamRequest", request, {}, None))
                fake.streamed.put(None)
                group.append(request)
                if len(group) < fake.stream_group:
                    continue
                while group:
                    if left == 0:
                        abort(context, UNAVAILABLE)
                    left -= 1
                    yield self._stream_answer(group.pop())
        finally:
            fake.stream_ends.put(context.is_active())

    def Tokenize(  # noqa: N802
        self, request: embed_pb2.TokenizeRequest, context: grpc.ServicerContext
    ) -> embed_pb2.TokenizeResponse:
        self._fake.enter("Tokenize", request, context)
        results = [
            embed_pb2.TokenizedText(
                ids=list(text.encode()), strings=list(text) if request.include_strings else ()
            )
            for text in request.texts
        ]
        return embed_pb2.TokenizeResponse(model=MODEL, version=VERSION, results=results)

    def _stream_answer(
        self, request: embed_pb2.EmbedStreamRequest
    ) -> embed_pb2.EmbedStreamResponse:
        failure = _refusal(request.request, self._fake.limits) or self._fake.rule(request.request)
        if failure is not None:
            return embed_pb2.EmbedStreamResponse(id=request.id, error=failure)
        return embed_pb2.EmbedStreamResponse(id=request.id, response=_answer(request.request))


class _Control(model_control_pb2_grpc.ModelControlServiceServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def ListModels(  # noqa: N802
        self, request: model_control_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_control_pb2.ListModelsResponse:
        self._fake.enter("ListModels", request, context)
        models = [self._info(name, context) for name in sorted(self._fake.models)]
        return model_control_pb2.ListModelsResponse(models=models)

    def GetModel(  # noqa: N802
        self, request: model_control_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> model_control_pb2.GetModelResponse:
        self._fake.enter("GetModel", request, context)
        return model_control_pb2.GetModelResponse(model=self._info(request.model, context))

    def LoadModel(  # noqa: N802
        self, request: model_control_pb2.LoadModelRequest, context: grpc.ServicerContext
    ) -> model_control_pb2.LoadModelResponse:
        self._fake.enter("LoadModel", request, context)
        self._fake.models[request.model or MODEL] = model_control_pb2.MODEL_STATE_READY
        return model_control_pb2.LoadModelResponse(model=self._info(request.model, context))

    def PinModel(  # noqa: N802
        self, request: model_control_pb2.PinModelRequest, context: grpc.ServicerContext
    ) -> model_control_pb2.PinModelResponse:
        self._fake.enter("PinModel", request, context)
        return model_control_pb2.PinModelResponse(model=self._info(request.model, context))

    def UnloadModel(  # noqa: N802
        self, request: model_control_pb2.UnloadModelRequest, context: grpc.ServicerContext
    ) -> model_control_pb2.UnloadModelResponse:
        self._fake.enter("UnloadModel", request, context)
        self._fake.models[request.model or MODEL] = model_control_pb2.MODEL_STATE_REGISTERED
        return model_control_pb2.UnloadModelResponse(model=self._info(request.model, context))

    def WatchEvents(  # noqa: N802
        self, request: model_control_pb2.WatchEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[model_control_pb2.WatchEventsResponse]:
        fake = self._fake
        fake.enter("WatchEvents", request, context)
        ended = threading.Event()
        if not context.add_callback(ended.set):
            ended.set()
        try:
            if fake.watches:
                yield from fake.watches.popleft()
                abort(context, UNAVAILABLE)
            ended.wait()
        finally:
            fake.stream_ends.put(context.is_active())

    def RollbackModel(  # noqa: N802
        self, request: versions_pb2.RollbackModelRequest, context: grpc.ServicerContext
    ) -> versions_pb2.RollbackModelResponse:
        self._fake.enter("RollbackModel", request, context)
        return versions_pb2.RollbackModelResponse()

    def ProfileModel(  # noqa: N802
        self, request: profile_pb2.ProfileModelRequest, context: grpc.ServicerContext
    ) -> Iterator[profile_pb2.ProfileModelResponse]:
        fake = self._fake
        fake.enter("ProfileModel", request, context)
        try:
            yield from fake.profile_answers
        finally:
            fake.stream_ends.put(context.is_active())

    def GetProfile(  # noqa: N802
        self, request: profile_pb2.GetProfileRequest, context: grpc.ServicerContext
    ) -> profile_pb2.GetProfileResponse:
        self._fake.enter("GetProfile", request, context)
        return profile_pb2.GetProfileResponse(profile=self._fake.profile_answers[-1].profile)

    def GetServerInfo(  # noqa: N802
        self, request: model_control_pb2.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> model_control_pb2.GetServerInfoResponse:
        self._fake.enter("GetServerInfo", request, context)
        return model_control_pb2.GetServerInfoResponse(version="0", limits=self._fake.limits)

    def UpdateSettings(  # noqa: N802
        self, request: settings_pb2.UpdateSettingsRequest, context: grpc.ServicerContext
    ) -> settings_pb2.UpdateSettingsResponse:
        self._fake.enter("UpdateSettings", request, context)
        return self._fake.settings

    def GetUsage(  # noqa: N802
        self, request: usage_pb2.GetUsageRequest, context: grpc.ServicerContext
    ) -> usage_pb2.GetUsageResponse:
        self._fake.enter("GetUsage", request, context)
        return self._fake.usage

    def GetStatistics(  # noqa: N802
        self, request: statistics_pb2.GetStatisticsRequest, context: grpc.ServicerContext
    ) -> statistics_pb2.GetStatisticsResponse:
        self._fake.enter("GetStatistics", request, context)
        return self._fake.statistics

    def _info(self, name: str, context: grpc.ServicerContext) -> model_control_pb2.ModelInfo:
        state = self._fake.models.get(name or MODEL)
        if state is None:
            abort(context, status(grpc.StatusCode.NOT_FOUND, reason="MODEL_NOT_FOUND"))
        return model_control_pb2.ModelInfo(
            name=name or MODEL, version=VERSION, state=state, dimensions=DIMENSIONS
        )


class _Health(health_pb2_grpc.HealthServicer):
    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake

    def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        self._fake.enter("Check", request, context)
        if request.service not in {"", f"shoal.model/{MODEL}"}:
            abort(context, status(grpc.StatusCode.NOT_FOUND))
        state = self._fake.models[MODEL]
        ready = not request.service or state == model_control_pb2.MODEL_STATE_READY
        serving = health_pb2.HealthCheckResponse
        return serving(status=serving.SERVING if ready else serving.NOT_SERVING)


def _refusal(
    request: embed_pb2.EmbedRequest, limits: model_control_pb2.Limits
) -> status_pb2.Status | None:
    count = len(request.texts) + len(request.tokens)
    if not 1 <= count <= limits.texts_per_request:
        return invalid("texts")
    if request.ByteSize() > limits.bytes_per_request:
        return invalid("texts[0]")
    return None


def _answer(request: embed_pb2.EmbedRequest) -> embed_pb2.EmbedResponse:
    texts = [*request.texts, *(text_of_tokens(tokens.ids) for tokens in request.tokens)]
    dimensions = request.dimensions or DIMENSIONS
    encoding = request.encoding or embed_pb2.VECTOR_ENCODING_FLOAT32
    rows, scales = _encoded(vectors_of(texts)[:, :dimensions], encoding)
    return embed_pb2.EmbedResponse(
        model=request.model or MODEL,
        version=VERSION,
        vectors=rows.tobytes(),
        dimensions=dimensions,
        encoding=encoding,
        token_counts=[len(text) + 2 for text in texts],
        truncated=[index for index, text in enumerate(texts) if len(text) > MAX_CHARACTERS],
        timings=embed_pb2.Timings(total_us=1000 + len(texts), batch_size=len(texts)),
        scales=scales,
        deprecation=f"use {MODEL}" if request.model == DEPRECATED_MODEL else "",
    )


def _encoded(
    vectors: Vectors, encoding: embed_pb2.VectorEncoding.ValueType
) -> tuple[npt.NDArray[Any], Sequence[float]]:
    if encoding == embed_pb2.VECTOR_ENCODING_FLOAT16:
        return vectors.astype("<f2"), ()
    if encoding == embed_pb2.VECTOR_ENCODING_INT8:
        scales = np.abs(vectors).max(axis=1) / 127
        return np.rint(vectors / scales[:, np.newaxis]).astype(np.int8), scales.tolist()
    if encoding == embed_pb2.VECTOR_ENCODING_UBINARY:
        return np.packbits(vectors > 0, axis=1), ()
    return vectors, ()
