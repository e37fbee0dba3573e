"""`shoal models watch`: lines as they come, from one connection to the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf import duration_pb2, timestamp_pb2

from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import profile_pb2 as profile_pb
from shoal.v1 import versions_pb2 as versions_pb
from shoal_server.cli.watch import describe

from .conftest import Shoal

_INTERRUPTED = 130
_TIMEOUT_S = 60

CHANGED = pb.ModelStateChanged(
    model="m",
    version="1",
    before=pb.MODEL_STATE_READY,
    after=pb.MODEL_STATE_UNLOADING,
    reason="evicted to make room for n@2",
)
LOADED = pb.ModelLoaded(
    model="m",
    version="1",
    device="cpu",
    memory_bytes=25_000_000,
    duration=duration_pb2.Duration(nanos=52_000_000),
    reason=pb.LOAD_REASON_REQUEST,
)
UNLOADED = pb.ModelUnloaded(
    model="m", version="1", reason=pb.UNLOAD_REASON_EVICTED, made_room_for="n@2"
)
FAILED = pb.ModelLoadFailed(
    model="m", version="1", device="cpu", reason="MODEL_FILE_CORRUPT", message="no tokenizer"
)
PRESSED = pb.PressureChanged(
    device="cpu",
    before=pb.PRESSURE_LEVEL_NORMAL,
    after=pb.PRESSURE_LEVEL_CRITICAL,
    memory_use=0.97,
)

PROFILED = profile_pb.ModelProfiled(
    model="m",
    version="1",
    device="cpu",
    precision="int8",
    cells=30,
    duration=duration_pb2.Duration(seconds=12, nanos=500_000_000),
    max_batch_items=16,
    max_batch_tokens=4096,
)


def event(sequence: int, **kind: object) -> pb.WatchEventsResponse:
    time = timestamp_pb2.Timestamp(seconds=1_800_000_000, nanos=123_000_000)
    told = pb.Event(instance_id="i", sequence=sequence, time=time, **kind)  # type: ignore[arg-type]
    return pb.WatchEventsResponse(event=told)


class Scripted:
    """Plays a list of answers for each call, which ends with a code; the last stays open.

    Attributes:
        calls: Answers and the code that ends each call.
        asked: The requests.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[list[pb.WatchEventsResponse], grpc.StatusCode]] = []
        self.asked: list[pb.WatchEventsRequest] = []
        self.ended = threading.Event()

    def watch_events(
        self, request: pb.WatchEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchEventsResponse]:
        self.asked.append(request)
        answers, code = self.calls.pop(0)
        yield from answers
        if code is grpc.StatusCode.OK:
            self.ended.wait()
        else:
            context.abort(code, "on demand")


@pytest.fixture
def server() -> Iterator[tuple[Scripted, str]]:
    """A server that plays a script, and its address."""
    scripted = Scripted()
    server = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_stream_rpc_method_handler(
        scripted.watch_events,
        pb.WatchEventsRequest.FromString,
        pb.WatchEventsResponse.SerializeToString,
    )
    handlers = {"WatchEvents": handler}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("shoal.v1.ModelControlService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield scripted, f"127.0.0.1:{port}"
    scripted.ended.set()
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            {"model_state_changed": CHANGED},
            "m@1: ready → unloading (evicted to make room for n@2)",
        ),
        ({"model_loaded": LOADED}, "m@1: loaded on cpu in 0.052 s, 25 MB (request)"),
        ({"model_unloaded": UNLOADED}, "m@1: unloaded (evicted to make room for n@2)"),
        (
            {
                "model_unloaded": pb.ModelUnloaded(
                    model="m", version="1", reason=pb.UNLOAD_REASON_IDLE, stays_warm=True
                )
            },
            "m@1: unloaded (idle, stays warm in RAM)",
        ),
        (
            {
                "warm_model_released": pb.WarmModelReleased(
                    model="m", version="1", problem="its files were changed"
                )
            },
            "m@1: no longer warm in RAM (its files were changed)",
        ),
        (
            {"model_load_failed": FAILED},
            "m@1: could not be loaded on cpu: no tokenizer (MODEL_FILE_CORRUPT)",
        ),
        (
            {"model_state_changed": pb.ModelStateChanged(model="m", version="1", after=99)},  # type: ignore[arg-type]
            "m@1: unspecified → 99",
        ),
        (
            {"pressure_changed": PRESSED},
            "cpu: memory pressure normal → critical, 97% in use",
        ),
        (
            {"model_profiled": PROFILED},
            "m@1: profiled in int8 on cpu, 30 batches in 12.5 s; "
            "suggested: 16 items, 4096 tokens a batch",
        ),
        (
            {
                "name_switched": versions_pb.NameSwitched(
                    name="prod",
                    cause=versions_pb.SWITCH_CAUSE_SWITCH,
                    before=["m@1"],
                    after=["m@1", "m@2"],
                    after_weights=[95, 5],
                )
            },
            "prod: m@1 → m@1=95 m@2=5 (switch)",
        ),
        ({}, "something that this version of `shoal` does not know"),
    ],
)
def test_each_kind_is_a_line(kind: dict[str, object], expected: str) -> None:
    """Time, number, and what happened; what a newer server adds is not hidden."""
    line = describe(event(17, **kind).event)
    assert line.endswith(f".123      17  {expected}")


def test_events_are_printed_until_the_server_refuses(
    shoal: Shoal, server: tuple[Scripted, str]
) -> None:
    """The refusal is one line on standard error, and exit 1."""
    scripted, address = server
    scripted.calls = [([event(1, model_loaded=LOADED)], grpc.StatusCode.OUT_OF_RANGE)]
    result = shoal("models", "watch", "--address", address)
    assert (result.exit_code, result.stderr) == (1, "shoal: on demand\n")
    (line,) = result.stdout.splitlines()
    assert "loaded on cpu" in line


def test_what_is_asked_for_reaches_the_server(shoal: Shoal, server: tuple[Scripted, str]) -> None:
    """Models, kinds and the number to begin behind."""
    scripted, address = server
    scripted.calls = [([], grpc.StatusCode.OUT_OF_RANGE)]
    arguments = "--model a --model b@2 --kind model_loaded --kind model_unloaded --since 0"
    shoal("models", "watch", "--address", address, *arguments.split())
    assert scripted.asked == [
        pb.WatchEventsRequest(
            models=["a", "b@2"],
            kinds=[pb.EVENT_KIND_MODEL_LOADED, pb.EVENT_KIND_MODEL_UNLOADED],
            after_sequence=0,
        )
    ]


def test_a_server_that_went_away_is_waited_for(shoal: Shoal, server: tuple[Scripted, str]) -> None:
    """It goes on behind the last event, and says so apart from the events."""
    scripted, address = server
    scripted.calls = [
        ([event(5, model_loaded=LOADED)], grpc.StatusCode.UNAVAILABLE),
        ([event(6, model_unloaded=UNLOADED)], grpc.StatusCode.OUT_OF_RANGE),
    ]
    result = shoal("models", "watch", "--address", address)
    assert len(result.stdout.splitlines()) == 2
    assert "waiting for the server" in result.stderr.splitlines()[0]
    assert (scripted.asked[1].after_sequence, scripted.asked[1].instance_id) == (5, "i")


def test_json_is_an_object_a_line(shoal: Shoal, server: tuple[Scripted, str]) -> None:
    """As protobuf writes JSON, with the names of the protos."""
    scripted, address = server
    answers = [event(1, model_loaded=LOADED), event(2, model_unloaded=UNLOADED)]
    scripted.calls = [(answers, grpc.StatusCode.OUT_OF_RANGE)]
    result = shoal("models", "watch", "--address", address, "--json")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["model_loaded"]["device"] == "cpu"
    assert (second["sequence"], second["model_unloaded"]["made_room_for"]) == ("2", "n@2")
    assert (second["model_unloaded"]["stays_warm"], "model_loaded" in second) == (False, False)


def test_an_unknown_kind_is_wrong_usage(shoal: Shoal) -> None:
    """Exit 2, with those that there are."""
    result = shoal("models", "watch", "--kind", "model_lost")
    assert result.exit_code == 2
    assert "model_loaded" in result.stderr


def test_ctrl_c_ends_quietly(server: tuple[Scripted, str]) -> None:
    """No traceback and no word, and the status that shells expect."""
    scripted, address = server
    scripted.calls = [([event(1, model_loaded=LOADED)], grpc.StatusCode.OK)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SHOAL_")}
    with subprocess.Popen(
        [sys.executable, "-m", "shoal_server", "models", "watch", "--address", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert "loaded on cpu" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=_TIMEOUT_S)
    assert (process.returncode, output, errors) == (_INTERRUPTED, "", "")
