"""A real server in a process of its own, for tests that go over a real channel."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import TracebackType

import onnxruntime
import pytest

MODELS = Path(__file__).resolve().parents[1] / "models"
DEFAULT_MODEL = "all-minilm-l6-v2"
without_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="the GPU build of ONNX Runtime is installed",
)
_READY = re.compile(r"shoal: ready grpc=(\S+) http=(\S+)")
_START_S = 60
_STOP_S = 60


def launch(module: str = "shoal_server", /, **settings: object) -> subprocess.Popen[str]:
    """`shoal serve` on free ports, as it starts; its output comes through a pipe."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    chosen = {"grpc_port": 0, "http_port": 0, "model_dir": MODELS, **settings}
    environment |= {f"SHOAL_{name.upper()}": str(value) for name, value in chosen.items()}
    return subprocess.Popen(
        [sys.executable, "-m", module, "serve"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def failed_start(**settings: object) -> tuple[int, str]:
    """Exit status and output of a `shoal serve` that ends by itself."""
    with launch(**settings) as process:
        try:
            output, _ = process.communicate(timeout=_START_S)
        finally:
            process.kill()
    return process.returncode, output


class RunningServer:
    """`shoal serve` on free ports, ready when made.

    Attributes:
        address: `HOST:PORT` of gRPC.
        http: `HOST:PORT` of HTTP.
        output: Lines of standard output and error so far.
    """

    def __init__(self, module: str = "shoal_server", /, **settings: object) -> None:
        self.output: list[str] = []
        self._found = threading.Event()
        self.process = launch(module, **settings)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._found.wait(_START_S) or not self._ready:
            self.process.kill()
            self.wait()
            raise RuntimeError("the server did not start:\n" + "".join(self.output))
        self.address, self.http = self._ready

    def _read(self) -> None:
        self._ready: tuple[str, str] | None = None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            match = _READY.search(line)
            if match:
                self._ready = (match[1], match[2])
                self._found.set()
        self._found.set()

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once it has ended."""
        status = self.process.wait(_STOP_S)
        self._reader.join(_STOP_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def stop(self) -> int:
        """SIGTERM and wait."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def get(self, path: str) -> str:
        """A page of the HTTP face."""
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10) as answer:
            body: bytes = answer.read()
        return body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 when there are none."""
        total = 0.0
        for line in self.get("/metrics").splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name:
                found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if labels.items() <= found.items():
                    total += float(match[3])
        return total

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
