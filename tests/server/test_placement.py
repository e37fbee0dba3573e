"""Which device a model gets, among several."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal_server.errors import FailedPrecondition
from shoal_server.inference.devices import AvailableDevices
from shoal_server.placement import Placement
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.residency.probes import Gpus
from tests.tiny_model import add_tiny_variant, make_tiny_model

TWO = AvailableDevices(gpus=2, gpu_problem="", gpu_expected=True)


class FakeGpus(Gpus):
    """Two GPUs; the second has more free memory."""

    def __init__(self) -> None:
        pass

    def free_bytes(self) -> list[int | None]:
        return [10, 20]


@pytest.fixture
async def version(tmp_path: Path) -> ModelVersion:
    make_tiny_model(tmp_path)
    return await Registry(ModelRepository(tmp_path), "tiny").resolve("tiny")


@pytest.mark.parametrize(
    ("wanted", "current", "expected"),
    [
        ("", None, "cuda:1"),
        ("cpu", None, "cpu"),
        ("cuda", None, "cuda:1"),
        # Loading took the memory that made its GPU the choice.
        *[("", "cuda:0", "cuda:0"), ("auto", "cuda:0", "cuda:0"), ("cuda", "cuda:0", "cuda:0")],
        *[("cuda:0", "cuda:1", "cuda:0"), ("cpu", "cuda:0", "cpu"), ("cuda", "cpu", "cuda:1")],
    ],
)
async def test_a_model_stays_where_the_wish_allows_it(
    version: ModelVersion, wanted: str, current: str | None, expected: str
) -> None:
    """So that loading it again, with the same wish, changes nothing."""
    placement = Placement(TWO, FakeGpus(), "auto")
    assert expected == placement.device_for(version, wanted, current)


async def test_a_device_that_is_not_there_is_refused(version: ModelVersion) -> None:
    """Whatever the model is on now."""
    with pytest.raises(FailedPrecondition, match="there are 2 GPUs"):
        Placement(TWO, FakeGpus(), "auto").device_for(version, "cuda:2", "cuda:1")


@pytest.mark.parametrize("wanted", ["", "cpu"])
async def test_a_variant_for_gpus_is_not_run_on_the_cpu(tmp_path: Path, wanted: str) -> None:
    """It would be slower there than the graph that it was made of; the message says what to do."""
    tiny = make_tiny_model(tmp_path, serving={"precision": "fp16"})
    add_tiny_variant(tiny, "fp16")
    version = await Registry(ModelRepository(tmp_path), "tiny").resolve("tiny")
    assert Placement(TWO, FakeGpus(), "auto").device_for(version, "cuda:0") == "cuda:0"
    with pytest.raises(FailedPrecondition, match=r"tiny@1 .* fp16 .* ask for fp32 or int8"):
        Placement(TWO, FakeGpus(), "cpu").device_for(version, wanted)
