"""SIGTERM and Ctrl-C: what was begun is finished, what is new is refused, nothing is left."""

from __future__ import annotations

import queue
import signal
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2

from shoal.v1 import embed_pb2 as pb
from shoal_server.registry.store import STATE_FILE
from tests.running import RunningServer, launch
from tests.server.api.calls import (
    TIMEOUT_S,
    Connection,
    assert_no_surprise,
    eventually,
    kept_busy,
    refusal,
)
from tests.tiny_model import TinyModel, make_tiny_model

STOPPED_WELL, STOPPED_AT_ONCE = 0, 130


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """A tiny model that runs one item after the other."""
    return make_tiny_model(tmp_path / "models", serving={"max_batch_items": 1})


def serve(model: TinyModel, **settings: object) -> RunningServer:
    return RunningServer(model_dir=model.root, default_model="tiny", cpu_slots=2, **settings)


def admitted(running: RunningServer, connection: Connection) -> float:
    """Embed requests that ended or are in flight; at least as many as are told."""
    ended = running.metric("shoal_requests_total", method="Embed")
    return ended + connection.info().requests_in_flight


def read(running: RunningServer, connection: Connection) -> float:
    """Requests on streams that are answered or in flight; at least as many as are told."""
    answered = running.metric("shoal_stream_requests_total")
    return answered + connection.info().requests_in_flight


def ended_by(running: RunningServer, number: signal.Signals) -> bool:
    if running.process.poll() is None:
        running.signal(number)
        return False
    return True


def said(running: RunningServer, event: str) -> bool:
    return any(f'"{event}"' in line for line in list(running.output))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_succeed(model: TinyModel, number: signal.Signals) -> None:
    """64 callers wait when the signal comes: every one gets its right answer."""
    with serve(model) as running, Connection(running.address) as connection:
        right = connection.embed("slow").vectors
        pending = [connection.start("slow") for _ in range(64)]
        eventually(lambda: admitted(running, connection) >= 65, "64 requests admitted")

        running.signal(number)

        assert {future.result().vectors for future in pending} == {right}
        assert running.wait() == STOPPED_WELL
        assert_no_surprise(running)


def test_new_requests_are_refused_while_draining(model: TinyModel) -> None:
    """UNAVAILABLE on old connections and new ones, and the probes say so."""
    with (
        serve(model) as running,
        Connection(running.address) as connection,
        kept_busy(connection) as busy,
    ):
        watch = connection.watch_health()
        assert next(watch) == health_pb2.HealthCheckResponse.SERVING
        running.signal(signal.SIGTERM)

        assert next(watch) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(urllib.error.HTTPError) as not_ready:
            running.get("/readyz")
        with not_ready.value:
            assert not_ready.value.code == 503
            assert not_ready.value.read() == b"draining\n"
        assert running.get("/livez") == "ok\n"
        assert refusal(lambda: connection.embed("red")).code is grpc.StatusCode.UNAVAILABLE
        with Connection(running.address) as newcomer:
            assert refusal(lambda: newcomer.embed("red")).code is grpc.StatusCode.UNAVAILABLE
        assert not busy[-1].done()
        for future in busy:
            future.cancel()
        assert running.wait() == STOPPED_WELL


def test_second_signal_ends_at_once(model: TinyModel) -> None:
    """Whoever asks twice does not wait for what is in flight."""
    with (
        serve(model) as running,
        Connection(running.address) as connection,
        kept_busy(connection) as busy,
    ):
        running.signal(signal.SIGTERM)
        eventually(lambda: said(running, "draining"), "the server drains")

        # Again and again: what follows in the same moment may be the same wish, sent twice.
        eventually(lambda: ended_by(running, signal.SIGINT), "the server ends")

        assert not busy[-1].done() or busy[-1].exception() is not None
        assert running.wait() == STOPPED_AT_ONCE
        assert refusal(busy[-1].result).code is grpc.StatusCode.UNAVAILABLE


def test_drain_ends_in_time(model: TinyModel) -> None:
    """After `drain_s` what is left is given up, and the process ends well."""
    with (
        serve(model, drain_s=0.2) as running,
        Connection(running.address) as connection,
        kept_busy(connection) as busy,
    ):
        running.signal(signal.SIGTERM)

        assert running.wait() == STOPPED_WELL
        codes = {refusal(each.result).code for each in busy if each.exception() is not None}
        assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert busy[-1].exception() is not None
    assert_no_surprise(running)


def test_idle_stream_is_closed(model: TinyModel) -> None:
    """A stream that says nothing holds nobody up: it ends with UNAVAILABLE."""
    with serve(model) as running, Connection(running.address) as connection:
        requests: queue.SimpleQueue[pb.EmbedStreamRequest | None] = queue.SimpleQueue()
        stream = connection.embedding.EmbedStream(iter(requests.get, None), timeout=TIMEOUT_S)
        requests.put(pb.EmbedStreamRequest(id="a", request=pb.EmbedRequest(texts=["red"])))
        assert next(stream).id == "a"

        running.signal(signal.SIGTERM)

        assert refusal(lambda: next(stream)).code is grpc.StatusCode.UNAVAILABLE
        requests.put(None)
        assert running.wait() == STOPPED_WELL
        assert_no_surprise(running)


def test_stream_is_answered_what_was_read(model: TinyModel) -> None:
    """Requests that are in flight get their answers; then comes UNAVAILABLE."""
    with serve(model) as running, Connection(running.address) as connection:
        requests: queue.SimpleQueue[pb.EmbedStreamRequest | None] = queue.SimpleQueue()
        stream = connection.embedding.EmbedStream(iter(requests.get, None), timeout=TIMEOUT_S)
        for number in range(8):
            request = pb.EmbedRequest(texts=["slow " * 5])
            requests.put(pb.EmbedStreamRequest(id=str(number), request=request))
        # Not all at once: on a busy machine the first are answered when the last are read.
        eventually(lambda: read(running, connection) >= 8, "8 requests read")

        running.signal(signal.SIGTERM)

        answers = [next(stream) for _ in range(8)]
        found = refusal(lambda: next(stream))
        requests.put(None)
        assert sorted(answer.id for answer in answers) == [str(number) for number in range(8)]
        assert all(answer.response.dimensions == 8 for answer in answers)
        assert found.code is grpc.StatusCode.UNAVAILABLE
        assert (found.reason, found.domain) == ("UNAVAILABLE", "shoal")
        assert running.wait() == STOPPED_WELL


def test_stream_that_goes_on_sending_is_ended(model: TinyModel) -> None:
    """The server reads no more of it: a sender without end can not hold it up."""
    with serve(model, drain_s=60) as running, Connection(running.address) as connection:

        def endless() -> Iterator[pb.EmbedStreamRequest]:
            while True:
                yield pb.EmbedStreamRequest(request=pb.EmbedRequest(texts=["red"]))

        stream = connection.embedding.EmbedStream(endless(), timeout=TIMEOUT_S)
        for _ in range(100):
            assert next(stream).response.dimensions == 8

        running.signal(signal.SIGTERM)

        found = refusal(lambda: [answer.response.dimensions for answer in stream])
        assert found.code is grpc.StatusCode.UNAVAILABLE
        # Not its details: a sender that is cut off may not get to read the trailers.
        assert running.wait() == STOPPED_WELL


def test_signal_during_the_start_leaves_nothing(model: TinyModel) -> None:
    """Ctrl-C while a model is being loaded ends the process, without a stack trace."""
    ballast = model.folder / "ballast.bin"
    with ballast.open("wb") as file:
        file.truncate(1 << 30)
    # Verifying takes seconds: the moment at which the signal comes is no matter of luck.
    manifest = model.folder / "version.toml"
    manifest.write_text(manifest.read_text() + f'"{ballast.name}" = "{"0" * 64}"\n')
    with launch(model_dir=model.root, default_model="tiny") as process:
        try:
            eventually(lambda: _has_open(process.pid, ballast), "the file is being verified")
            children = psutil.Process(process.pid).children(recursive=True)

            process.send_signal(signal.SIGINT)

            output, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == STOPPED_WELL
    assert "Traceback" not in output
    assert "ready" not in output
    assert not any(child.is_running() for child in children)
    left = {each.name for each in model.root.iterdir()}
    assert left - {STATE_FILE, f"{STATE_FILE}.lock"} == {"tiny"}


def _has_open(pid: int, path: Path) -> bool:
    folder = Path(f"/proc/{pid}/fd")
    return any(link.resolve() == path for link in folder.iterdir() if link.is_symlink())


def test_log_that_nobody_reads_fails_no_request(model: TinyModel) -> None:
    """When the reader of the log is gone its lines are lost, and nothing else."""
    make_tiny_model(model.root, "cold")
    with launch(model_dir=model.root, default_model="tiny") as process:
        assert process.stdout is not None
        try:
            ready = next(line for line in process.stdout if "ready grpc=" in line)
            process.stdout.close()
            with Connection(ready.split("grpc=")[1].split()[0]) as connection:
                found = refusal(lambda: connection.embed("red", dimensions=0))
                assert found.code is grpc.StatusCode.INVALID_ARGUMENT
                assert connection.embed("red", model="cold").model == "cold"
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_S) == STOPPED_WELL
        finally:
            process.kill()


def test_a_signal_that_comes_twice_at_once_is_one(model: TinyModel) -> None:
    """Wrappers such as `timeout` signal the process and then its group."""
    with serve(model) as running, Connection(running.address) as connection:
        pending = [connection.start("slow slow") for _ in range(20)]
        eventually(lambda: admitted(running, connection) >= 20, "20 requests admitted")

        running.signal(signal.SIGTERM)
        running.signal(signal.SIGTERM)

        assert running.wait() == STOPPED_WELL
        assert [future.exception() for future in pending] == [None] * 20
