"""What managing models takes at the server: loads, switches, and the calls that do neither.

A server of its own with two versions of the model, which share their packed form, nothing
else going on. A call's time is what the server itself counted for it
(`shoal_request_duration_seconds`: from receiving an RPC to its answer), read before and
after each; a switch's is what its answer says (`SwitchTimes.switch`: from the new version
being warm to the first request that gets it, the write to the disk included).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from loadtests.results import ManagementResult
from loadtests.servers import ServerConfig, ServerUnderTest
from shoal.v1 import (
    embed_pb2,
    embed_pb2_grpc,
    model_control_pb2_grpc,
    settings_pb2,
    statistics_pb2,
    versions_pb2,
)
from shoal.v1 import model_control_pb2 as pb

LOAD, SWITCH = "LoadModel, warm page cache", "SwitchModel, the switch"
CALLS: Mapping[str, Callable[[str], Message]] = {
    "GetModel": lambda key: pb.GetModelRequest(model=key),
    "ListModels": lambda _: pb.ListModelsRequest(),
    "PinModel": lambda key: pb.PinModelRequest(model=key),
    "UpdateTags": lambda key: versions_pb2.UpdateTagsRequest(model=key, add=["bench"]),
    "DeprecateModel": lambda key: versions_pb2.DeprecateModelRequest(model=key),
    "ListAliases": lambda _: versions_pb2.ListAliasesRequest(),
    "GetStatistics": lambda _: statistics_pb2.GetStatisticsRequest(),
    "UpdateSettings": lambda _: settings_pb2.UpdateSettingsRequest(settings={"max_wait_ms": "5"}),
    "GetServerInfo": lambda _: pb.GetServerInfoRequest(),
}
"""Those that neither load nor free anything, by method; a version's name gives the request."""

_TIMEOUT_S = 60.0
# What was written less than two seconds ago is read again (registry/verification.py).
_SETTLES_S = 2.1
_VERSIONS = ("1", "2")
_ALIAS = "bench"


def measure_management(
    config: ServerConfig, folder: Path, *, loads: int, calls: int
) -> ManagementResult:
    """Measure one server.

    Args:
        config: Code and settings.
        folder: Of the prepared version that is loaded.
        loads: How often it is loaded, and switched.
        calls: How often each other call is made.
    """
    found = ManagementResult(config.name)
    with _repository(folder) as root:
        settings = {**config.settings, "preload": "none", "default_model": folder.parent.name}
        with ServerUnderTest(ServerConfig(config.name, settings, config.root), root) as server:
            clock = _ServerClock(server, folder.parent.name)
            clock.prepare()
            found.times_ms[LOAD] = [clock.load_ms() for _ in range(loads)]
            found.times_ms[SWITCH] = clock.switches_ms(loads)
            for method, request_for in CALLS.items():
                request = request_for(f"{folder.parent.name}@{_VERSIONS[0]}")
                times_ms = [clock.call_ms(method, request) for _ in range(calls + 1)]
                # The first one also makes what is kept from then on.
                found.times_ms[method] = times_ms[1:]
            clock.close()
    return found


class _ServerClock:
    """Calls a server and reads from it what each call took."""

    def __init__(self, server: ServerUnderTest, model: str) -> None:
        self._server = server
        self._model = model
        self._channel = grpc.insecure_channel(server.address)
        self._embed = embed_pb2_grpc.EmbedServiceStub(self._channel)
        self._control: Any = model_control_pb2_grpc.ModelControlServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def prepare(self) -> None:
        """Have each version packed, and known to be whole."""
        for _ in range(2):
            for version in _VERSIONS:
                request = embed_pb2.EmbedRequest(model=f"{self._model}@{version}", texts=["a"])
                self._embed.Embed(request, timeout=_TIMEOUT_S)
                self._unload(version)
            time.sleep(_SETTLES_S)

    def load_ms(self) -> float:
        took_ms = self.call_ms("LoadModel", pb.LoadModelRequest(model=f"{self._model}@1"))
        self._unload("1")
        return took_ms

    def switches_ms(self, count: int) -> list[float]:
        """Back and forth; both versions stay in memory."""
        times_ms = []
        for number in range(count + 1):
            target = f"{self._model}@{_VERSIONS[number % 2]}"
            answer = self._control.SwitchModel(
                versions_pb2.SwitchModelRequest(
                    alias=_ALIAS,
                    targets=[versions_pb2.AliasTarget(model=target)],
                    keep_previous=True,
                ),
                timeout=_TIMEOUT_S,
            )
            times_ms.append(answer.times.switch.ToTimedelta().total_seconds() * 1e3)
        return times_ms[1:]

    def call_ms(self, method: str, request: Message) -> float:
        """What the server counted for one call."""
        before_s = self._counted_s(method)
        getattr(self._control, method)(request, timeout=_TIMEOUT_S)
        return (self._counted_s(method) - before_s) * 1e3

    def _unload(self, version: str) -> None:
        request = pb.UnloadModelRequest(model=f"{self._model}@{version}")
        self._control.UnloadModel(request, timeout=_TIMEOUT_S)

    def _counted_s(self, method: str) -> float:
        return sum(
            sample.value
            for sample in self._server.samples()
            if sample.name == "shoal_request_duration_seconds_sum"
            and sample.labels["method"] == method
        )


@contextmanager
def _repository(folder: Path) -> Iterator[Path]:
    """A repository with two versions of the same files, copied: a link would change their times."""
    with tempfile.TemporaryDirectory(prefix="shoal-manage-") as root:
        for version in _VERSIONS:
            shutil.copytree(folder, Path(root) / folder.parent.name / version)
        yield Path(root)
