"""`shoal models profile`: a table, JSON and plots of what a server answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import grpc
import pytest
from google.protobuf import duration_pb2

from shoal.v1 import profile_pb2 as pb

from .conftest import Shoal

SERVICE = "shoal.v1.ModelControlService"


def cell(items: int, length: int, p50_us: int) -> pb.ProfileCell:
    return pb.ProfileCell(
        items=items,
        tokens_per_item=length,
        runs=10,
        least_us=p50_us - 500,
        noise=0.025,
        p50_us=p50_us,
        p95_us=2 * p50_us,
        items_per_s=items / p50_us * 1e6,
        tokens_per_s=items * length / p50_us * 1e6,
        memory_bytes=2_500_000 if length > 8 else None,
    )


def profile() -> pb.ModelProfile:
    return pb.ModelProfile(
        model="tiny",
        version="1",
        precision="fp32",
        device="cpu",
        hardware="A [fast] CPU",
        runtime_version="1.31.1",
        threads=1,
        slots=2,
        duration=duration_pb2.Duration(seconds=10),
        running=duration_pb2.Duration(seconds=2),
        batch_items_limit=32,
        batch_tokens_limit=8192,
        cells=[cell(1, 8, 1000), cell(2, 8, 1500), cell(1, 16, 2000), cell(2, 16, 4000)],
        skipped=[
            pb.SkippedCell(items=64, tokens_per_item=16, reason="no time"),
            pb.SkippedCell(items=128, tokens_per_item=16, reason="no time"),
        ],
        suggestion=pb.BatchSuggestion(
            max_batch_items=2, max_batch_tokens=16, reasons=["For a reason."]
        ),
    )


class Answering:
    """A server that has one profile.

    Attributes:
        measured: The requests to measure.
        shown: The models whose profile was asked for.
    """

    def __init__(self) -> None:
        self.measured: list[pb.ProfileModelRequest] = []
        self.shown: list[str] = []
        self.profile = profile()

    def measure(
        self, request: pb.ProfileModelRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ProfileModelResponse]:
        self.measured.append(request)
        if request.runs == 1:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "runs: 1, from 3 to 100")
        yield pb.ProfileModelResponse(plan=pb.ProfilePlan(cells=1))
        yield pb.ProfileModelResponse(cell=self.profile.cells[0])
        yield pb.ProfileModelResponse(profile=self.profile)

    def show(
        self, request: pb.GetProfileRequest, context: grpc.ServicerContext
    ) -> pb.GetProfileResponse:
        self.shown.append(request.model)
        return pb.GetProfileResponse(profile=self.profile)


@pytest.fixture
def fake() -> Answering:
    return Answering()


@pytest.fixture
def address(fake: Answering) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ProfileModel": grpc.unary_stream_rpc_method_handler(
            fake.measure,
            pb.ProfileModelRequest.FromString,
            pb.ProfileModelResponse.SerializeToString,
        ),
        "GetProfile": grpc.unary_unary_rpc_method_handler(
            fake.show, pb.GetProfileRequest.FromString, pb.GetProfileResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_the_table(shoal: Shoal, address: str) -> None:
    """What was measured and on what, what was left out, and what to set."""
    result = shoal("models", "profile", "tiny", "--address", address)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("tiny@1 in fp32 on cpu (A [fast] CPU), ONNX Runtime 1.31.1")
    rows = [line.split() for line in lines]
    assert ["8", "2", "10", "1.00", "2.5%", "1.50", "3.00", "1333.3", "10667", "-"] in rows
    assert ["16", "1", "10", "1.50", "2.5%", "2.00", "4.00", "500.0", "8000", "2.5"] in rows
    assert "left out: 64 x 16, 128 x 16: no time" in lines
    assert "    max_batch_items = 2" in lines
    assert "    shoal settings max_batch_items=2 max_batch_tokens=16" in lines
    assert "For a reason." in lines


def test_a_gpu_has_settings_of_its_own(shoal: Shoal, fake: Answering, address: str) -> None:
    """model.toml is the same for both."""
    fake.profile.device = "cuda:0"
    lines = shoal("models", "profile", "--address", address).stdout.splitlines()
    assert "    max_batch_items = 2" in lines
    assert "    shoal settings cuda_max_batch_items=2 cuda_max_batch_tokens=16" in lines


def test_nothing_can_be_suggested(shoal: Shoal, fake: Answering, address: str) -> None:
    """Said in words; and so is a profile that could not be written to disk."""
    fake.profile.ClearField("suggestion")
    fake.profile.no_suggestion = "all is noise"
    fake.profile.problem = "no space"
    lines = shoal("models", "profile", "--address", address).stdout.splitlines()
    assert "nothing is suggested: all is noise" in lines
    assert "not on disk: no space" in lines


def test_what_is_asked_for_reaches_the_server(shoal: Shoal, fake: Answering, address: str) -> None:
    """Every option."""
    result = shoal(
        *("models", "profile", "tiny@1", "--batch-sizes", "1, 2,4", "--lengths", "8"),
        *("--max-batch-tokens", "64", "--runs", "5", "--max-share", "0.25", "--address", address),
    )
    assert result.exit_code == 0
    assert fake.measured == [
        pb.ProfileModelRequest(
            model="tiny@1",
            batch_sizes=[1, 2, 4],
            lengths=[8],
            max_batch_tokens=64,
            runs=5,
            max_share=0.25,
        )
    ]


def test_show_measures_nothing(shoal: Shoal, fake: Answering, address: str) -> None:
    """And prints the same."""
    shown = shoal("models", "profile", "tiny", "--show", "--address", address)
    assert (fake.shown, fake.measured) == (["tiny"], [])
    assert shown.stdout == shoal("models", "profile", "tiny", "--address", address).stdout


def test_json(shoal: Shoal, address: str) -> None:
    """The profile by the names of the protos, and nothing else."""
    result = shoal("models", "profile", "--json", "--address", address)
    found = json.loads(result.stdout)
    assert found["suggestion"]["max_batch_items"] == 2
    assert [each["items"] for each in found["cells"]] == [1, 2, 1, 2]


def test_plots(shoal: Shoal, address: str, tmp_path: Path) -> None:
    """A PNG and an SVG, which has a line for each length in both of its plots."""
    png, svg = tmp_path / "out.png", tmp_path / "out.SVG"
    for path in (png, svg):
        result = shoal("models", "profile", "--plot", str(path), "--address", address)
        assert (result.exit_code, result.stderr) == (0, f"drawn into {path}\n")
        assert "max_batch_items = 2" in result.stdout
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    ids = {each.get("id", "") for each in ElementTree.parse(svg).iter()}
    assert {"axes_1", "axes_2"} <= ids
    assert sum(name.startswith("FillBetweenPolyCollection") for name in ids) == 2


def test_a_plot_of_nothing(shoal: Shoal, fake: Answering, address: str, tmp_path: Path) -> None:
    """One batch, and none that is suggested, can be drawn, too."""
    del fake.profile.cells[1:]
    fake.profile.ClearField("suggestion")
    path = tmp_path / "out.png"
    assert shoal("models", "profile", "--plot", str(path), "--address", address).exit_code == 0
    assert path.stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--plot", "out.gif"), 2, "ends in none of .png"),
        (("--plot", "/nowhere/out.png"), 2, "there is no folder /nowhere"),
        (("--lengths", "8,x"), 2, "'x' is not a number"),
        (("--batch-sizes", "-1"), 2, "'-1' is not a number"),
        (("--runs", "1"), 1, "runs: 1, from 3 to 100"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_measured(
    shoal: Shoal, fake: Answering, address: str, arguments: tuple[str, ...], code: int, told: str
) -> None:
    """In one line."""
    result = shoal("models", "profile", "--address", address, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(fake.measured) == (arguments[0] == "--runs")


def test_without_matplotlib(
    shoal: Shoal,
    fake: Answering,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The extra is named, and nothing is measured in vain."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = tmp_path / "out.png"
    result = shoal("models", "profile", "--plot", str(path), "--address", address)
    assert result.exit_code == 1
    assert "pip install 'shoal-server[plot]'" in result.stderr
    assert fake.measured == []
    assert shoal("models", "profile", "--address", address).exit_code == 0
