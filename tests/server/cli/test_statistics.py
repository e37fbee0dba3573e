"""`shoal models stats`: what a server answers, for people and for programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf import duration_pb2

from shoal.v1 import statistics_pb2 as pb

from .conftest import Shoal

SERVICE = "shoal.v1.ModelControlService"


def answer() -> pb.GetStatisticsResponse:
    """One model with traffic, requests for none, one caller, two GPUs."""
    recent = pb.ModelTraffic(
        requests=90,
        errors={"OVERLOADED": 5, "CANCELLED": 1},
        items=120,
        tokens=6000,
        truncated=3,
        latency=pb.Latency(mean_us=2500, p50_us=2000, p90_us=4000, p95_us=5000, p99_us=9000),
        queue=pb.Latency(p50_us=500),
        inference=pb.Latency(p50_us=1300),
        batch_sizes={1: 10, 11: 10},
    )
    unknown = pb.ModelTraffic(requests=2, errors={"MODEL_NOT_FOUND": 2})
    usage = pb.UsageCounts(requests=90, failed=6, items=120, tokens=6000)
    ever = pb.UsageCounts(requests=91, failed=7, items=121, tokens=6001)
    return pb.GetStatisticsResponse(
        recent=duration_pb2.Duration(seconds=60),
        since_start=duration_pb2.Duration(seconds=36_000),
        models=[
            pb.ModelStatistics(
                model="tiny",
                version="1",
                recent=recent,
                since_start=recent,
                all_time=pb.ModelTotals(requests=900, errors={"OVERLOADED": 7}, items=1000),
            ),
            pb.ModelStatistics(model="old", version="1", all_time=pb.ModelTotals(requests=3)),
            pb.ModelStatistics(recent=unknown, since_start=unknown),
        ],
        usage=[
            pb.CallerUsage(
                caller="[search]", model="tiny", recent=usage, since_start=usage, all_time=ever
            )
        ],
        gpus=[
            pb.GpuStatistics(device="cuda:0", utilization=0.75, memory_utilization=0.5),
            pb.GpuStatistics(device="cuda:1"),
        ],
    )


class Answering:
    """Answers so often, and is then away.

    Attributes:
        left: Answers that it still gives.
        asked: The models that it was asked for.
    """

    def __init__(self) -> None:
        self.left = 1
        self.asked: list[str] = []
        self.answer = answer()

    def handle(
        self, request: pb.GetStatisticsRequest, context: grpc.ServicerContext
    ) -> pb.GetStatisticsResponse:
        if self.left == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        self.left -= 1
        self.asked.append(request.model)
        return self.answer


@pytest.fixture
def fake() -> Answering:
    return Answering()


@pytest.fixture
def address(fake: Answering) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(
        fake.handle, pb.GetStatisticsRequest.FromString, pb.GetStatisticsResponse.SerializeToString
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"GetStatistics": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def cells(line: str) -> list[str]:
    return line.split()


def test_the_table(shoal: Shoal, address: str) -> None:
    """Lines for the last minute, since the start and all time; what failed, who called, the GPUs.

    What was used only before the start has the last of these.
    """
    result = shoal("models", "stats", "--address", address)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    numbers = ["90", "6", "120", "2.0", "100", "3", "6.0", "2.0", "4.0", "5.0", "9.0", "0.5", "1.3"]
    assert cells(lines[1]) == ["tiny@1", "60", "s", *numbers]
    assert cells(lines[2])[:7] == ["10.0", "h", "since", "start", "90", "6", "120"]
    assert cells(lines[3]) == ["all", "time", "900", "7", "1000", "0"]
    assert cells(lines[4])[:4] == ["old@1", "all", "time", "3"]
    assert cells(lines[5])[:5] == ["(unknown)", "60", "s", "2", "2"]
    assert "tiny@1 failed since the start: 1 CANCELLED, 5 OVERLOADED" in lines
    counts = [*["90", "6", "120", "6000"] * 2, "91", "7", "121", "6001"]
    assert ["[search]", "tiny", *counts] in [cells(each) for each in lines]
    assert "cuda:0: busy 75%, memory 50%" in lines
    assert "cuda:1: its driver does not tell how busy it is" in lines


def test_a_young_server(shoal: Shoal, fake: Answering, address: str) -> None:
    """While the last minute is all that there was, its figures and its span stand there once."""
    fake.answer.recent.CopyFrom(fake.answer.since_start)
    lines = shoal("models", "stats", "--address", address).stdout.splitlines()
    assert cells(lines[1])[:7] == ["tiny@1", "10.0", "h", "since", "start", "90", "6"]
    assert cells(lines[2])[:3] == ["all", "time", "900"]
    (titles,) = [each for each in lines if each.startswith("caller")]
    assert titles.count("tokens, 10.0 h since start") == 1
    counts = ["90", "6", "120", "6000", "91", "7", "121", "6001"]
    assert ["[search]", "tiny", *counts] in [cells(each) for each in lines]


def test_one_model(shoal: Shoal, fake: Answering, address: str) -> None:
    """The server is asked for it."""
    assert shoal("models", "stats", "tiny@1", "--address", address).exit_code == 0
    assert fake.asked == ["tiny@1"]


def test_no_requests_yet(shoal: Shoal, fake: Answering, address: str) -> None:
    """Said in words, not by an empty table."""
    fake.answer = pb.GetStatisticsResponse()
    assert "no requests yet" in shoal("models", "stats", "--address", address).stdout


def test_json(shoal: Shoal, address: str) -> None:
    """Every field of the answer, zeros too, by its name in the protos."""
    result = shoal("models", "stats", "--json", "--address", address)
    found = json.loads(result.stdout)
    assert found["models"][0]["recent"]["requests"] == "90"
    assert found["models"][2]["recent"]["truncated"] == "0"
    assert found["since_start"] == "36000s"
    assert "utilization" not in found["gpus"][1]


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_watch(shoal: Shoal, fake: Answering, address: str, arguments: tuple[str, ...]) -> None:
    """Again and again, until the server is gone; JSON one line each."""
    fake.left = 3
    options = ("--watch", "--interval", "0.1", *arguments)
    result = shoal("models", "stats", "--address", address, *options)
    assert (result.exit_code, len(fake.asked)) == (1, 3)
    assert "gone" in result.stderr
    if arguments:
        assert len([json.loads(line) for line in result.stdout.splitlines()]) == 3
    else:
        assert result.stdout.count("tiny@1 ") == 6


def test_ctrl_c_ends_quietly(fake: Answering, address: str) -> None:
    """No traceback and no word, and the status that shells expect."""
    fake.left = 1000
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SHOAL_")}
    command = [sys.executable, "-m", "shoal_server", "models", "stats", "--watch", "--json"]
    with subprocess.Popen(
        [*command, "--interval", "60", "--address", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["models"]
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "")
