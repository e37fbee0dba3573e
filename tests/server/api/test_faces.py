"""What stands beside the RPCs: request ids, logs, health, reflection, HTTP."""

from __future__ import annotations

import json
import re
import urllib.error
from contextlib import suppress

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shoal.v1 import embed_pb2 as pb
from shoal.v1 import embed_pb2_grpc, model_control_pb2, model_control_pb2_grpc
from tests.running import DEFAULT_MODEL, RunningServer
from tests.tiny_model import TinyModel

from .calls import TIMEOUT_S, Connection, eventually, refusal, unharmed

SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICES = ("shoal.v1.EmbedService", "shoal.v1.ModelControlService")


def trailing_id(call: grpc.Call) -> str:
    """`x-request-id` as the answer's trailers have it."""
    (found,) = [value for key, value in call.trailing_metadata() or () if key == "x-request-id"]
    assert isinstance(found, str)
    return found


def embed_with(connection: Connection, request: pb.EmbedRequest, identifier: str | None) -> str:
    """The request id of the answer, or of the error."""
    metadata = () if identifier is None else (("x-request-id", identifier),)
    try:
        _, call = connection.embedding.Embed.with_call(
            request, timeout=TIMEOUT_S, metadata=metadata
        )
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return trailing_id(error)
    return trailing_id(call)


GOOD, BAD = pb.EmbedRequest(texts=["x"]), pb.EmbedRequest(texts=["x"], dimensions=0)


@pytest.mark.parametrize("request_", [GOOD, BAD], ids=["success", "failure"])
def test_request_id_comes_back(real: Connection, request_: pb.EmbedRequest) -> None:
    """The caller's id is in the trailers, however the call ended."""
    assert embed_with(real, request_, "trace-0815") == "trace-0815"


@pytest.mark.parametrize("request_", [GOOD, BAD], ids=["success", "failure"])
@pytest.mark.parametrize("identifier", [None, "", "x" * 129, "two words"], ids=repr)
def test_request_id_is_made_where_there_is_none(
    real: Connection, request_: pb.EmbedRequest, identifier: str | None
) -> None:
    """Without an id, or with one that should not be in a log, the server makes one."""
    ids = {embed_with(real, request_, identifier) for _ in range(2)}

    assert len(ids) == 2
    assert identifier not in ids
    assert all(re.fullmatch(r"[0-9a-f]{16}", each) for each in ids)


def test_request_id_of_a_stream(real: Connection) -> None:
    """A stream has one id, in its trailers."""
    stream = real.embedding.EmbedStream(
        iter([]), timeout=TIMEOUT_S, metadata=(("x-request-id", "stream-1"),)
    )

    assert list(stream) == []
    assert trailing_id(stream) == "stream-1"


def log_lines(server: RunningServer, identifier: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in list(server.output) if line.startswith("{")]
    return [line for line in lines if line.get("request_id") == identifier]


def test_failure_is_logged_under_its_request_id(real: Connection, server: RunningServer) -> None:
    """One line that says what failed and why; ordinary requests make none."""
    embed_with(real, GOOD, "ordinary-1")
    embed_with(real, BAD, "failing-1")

    lines = eventually(lambda: log_lines(server, "failing-1"), "a line of the failure")
    assert len(lines) == 1
    assert lines[0]["event"] == "request_failed"
    assert lines[0]["method"] == "Embed"
    assert lines[0]["code"] == "INVALID_ARGUMENT"
    assert lines[0]["reason"] == "INVALID_INPUT"
    assert log_lines(server, "ordinary-1") == []


def test_failure_in_a_stream_is_logged_under_its_request_id(
    real: Connection, server: RunningServer
) -> None:
    """So that the lines of one stream can be found together."""
    request = pb.EmbedStreamRequest(id="7", request=BAD)
    list(
        real.embedding.EmbedStream(
            iter([request]), timeout=TIMEOUT_S, metadata=(("x-request-id", "stream-2"),)
        )
    )

    (line,) = eventually(lambda: log_lines(server, "stream-2"), "a line of the failure")
    assert (line["event"], line["id"]) == ("stream_request_failed", "7")


def test_every_request_is_logged_when_asked(model: TinyModel) -> None:
    """`log_requests` adds the ordinary ones."""
    with RunningServer(model_dir=model.root, default_model="tiny", log_requests="true") as server:
        with unharmed(server) as connection:
            embed_with(connection, pb.EmbedRequest(texts=["red"]), "ordinary-2")

            (line,) = eventually(lambda: log_lines(server, "ordinary-2"), "a line")
        assert (line["event"], line["code"]) == ("request", "OK")


def test_slow_request_is_logged(model: TinyModel) -> None:
    """A request above `slow_request_ms` is logged as slow."""
    with (
        RunningServer(model_dir=model.root, default_model="tiny", slow_request_ms=1) as server,
        unharmed(server) as connection,
    ):
        embed_with(connection, pb.EmbedRequest(texts=["slow"]), "slow-1")

        (line,) = eventually(lambda: log_lines(server, "slow-1"), "a line")
    assert (line["event"], line["level"]) == ("slow_request", "warning")


@pytest.mark.parametrize("service", ["", *SERVICES, f"shoal.model/{DEFAULT_MODEL}"])
def test_health_is_serving(real: Connection, service: str) -> None:
    """Overall, per service, and per model."""
    assert real.health(service) == SERVING


def test_health_of_what_is_unknown(real: Connection) -> None:
    """NOT_FOUND, as the health protocol says."""
    assert refusal(lambda: real.health("shoal.model/absent")).code is grpc.StatusCode.NOT_FOUND


def test_health_can_be_watched(real: Connection) -> None:
    """A watcher hears the state at once, and leaving it harms nothing."""
    assert next(real.watch_health()) == SERVING


def reflect(
    connection: Connection, *requests: reflection_pb2.ServerReflectionRequest
) -> list[reflection_pb2.ServerReflectionResponse]:
    stub = reflection_pb2_grpc.ServerReflectionStub(connection.channel)
    answers = stub.ServerReflectionInfo(  # type: ignore[operator]
        iter(requests), timeout=TIMEOUT_S
    )
    return list(answers)


def test_reflection_lists_the_services(real: Connection) -> None:
    """Tools such as grpcurl find what there is."""
    (answer,) = reflect(real, reflection_pb2.ServerReflectionRequest(list_services=""))

    names = {service.name for service in answer.list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health"}


def test_reflection_gives_the_messages(real: Connection) -> None:
    """The descriptor of a service is there, with all of its methods."""
    for service, stub in (
        (SERVICES[0], embed_pb2_grpc.EmbedServiceServicer),
        (SERVICES[1], model_control_pb2_grpc.ModelControlServiceServicer),
    ):
        (answer,) = reflect(
            real, reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
        )
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(data)
            for data in answer.file_descriptor_response.file_descriptor_proto
        ]
        methods = {
            method.name
            for file in files
            for each in file.service
            if f"{file.package}.{each.name}" == service
            for method in each.method
        }
        assert methods == {name for name in vars(stub) if name[0].isupper()}


def test_every_method_of_the_protos_is_served(real: Connection) -> None:
    """No method answers UNIMPLEMENTED."""
    for file in (pb.DESCRIPTOR, model_control_pb2.DESCRIPTOR):
        for service in file.services_by_name.values():
            for method in service.methods:
                call: grpc.StreamStreamMultiCallable[bytes, bytes] = real.channel.stream_stream(
                    f"/{service.full_name}/{method.name}"
                )
                answers = call(iter([b"\xff"]), timeout=TIMEOUT_S)
                with suppress(grpc.RpcError):
                    list(answers)
                assert answers.code() is not grpc.StatusCode.UNIMPLEMENTED, method.full_name


def test_server_tells_its_limits(real: Connection) -> None:
    """What GetServerInfo says is what the settings are by default."""
    info = real.info()

    assert info.default_model == DEFAULT_MODEL
    assert not info.draining
    assert info.limits.texts_per_request == 2048
    assert info.limits.stream_requests_in_flight == 32
    assert info.devices[0].device == "cpu"
    assert info.devices[0].slots >= 1
    assert info.devices[0].memory_total_bytes > 0
    assert "CPUExecutionProvider" in info.runtime_providers


@pytest.mark.parametrize("page", ["/livez", "/readyz"])
def test_alive_and_ready(server: RunningServer, page: str) -> None:
    """Both say ok while the server serves."""
    assert server.get(page) == "ok\n"


def test_other_pages_are_not_there(server: RunningServer) -> None:
    """Nothing but the three pages."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.get("/")
    with caught.value:
        assert caught.value.code == 404


def test_metrics_count_requests_by_method_and_code(real: Connection, server: RunningServer) -> None:
    """Each RPC is counted once, under how it ended, and timed once."""
    names = [("Embed", "OK"), ("Embed", "INVALID_ARGUMENT"), ("Tokenize", "NOT_FOUND")]

    def counted() -> list[float]:
        return [
            server.metric("shoal_requests_total", method=method, code=code)
            for method, code in names
        ] + [server.metric("shoal_request_duration_seconds_count", method="Embed")]

    before = counted()
    real.embed("x")
    refusal(lambda: real.embedding.Embed(BAD))
    refusal(lambda: real.embedding.Tokenize(pb.TokenizeRequest(model="absent", texts=["x"])))

    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 1, 2]


def test_metrics_count_items_and_tokens(real: Connection, server: RunningServer) -> None:
    """Items and tokens are those of the request, padding not included."""
    names = ("shoal_items_total", "shoal_tokens_total", "shoal_batch_items_sum")
    before = [server.metric(name, model=DEFAULT_MODEL) for name in names]

    real.embed("hello", "hello hello hello")

    after = [server.metric(name, model=DEFAULT_MODEL) for name in names]
    # [CLS] and [SEP] with each.
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 3 + 5, 2]
