"""Servers under test: started from any checkout, with any settings, on free ports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
_READY = re.compile(rb"shoal: ready grpc=(\S+) http=(\S+)")
_START_S = 90.0
_STOP_S = 60.0
_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One way to run the server."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """By name, as in `shoal config`."""
    root: Path = ROOT
    """The checkout whose code runs."""

    def __str__(self) -> str:
        parts = [f"{key}={value}" for key, value in self.settings.items()]
        if self.root != ROOT:
            parts.append(f"root={self.root}")
        return f"{self.name} ({', '.join(parts)})" if parts else self.name


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of /metrics."""

    name: str
    labels: Mapping[str, str]
    value: float


class ServerStartError(RuntimeError):
    """The server did not get ready; the message has its output."""


class ServerUnderTest:
    """`shoal serve` in a process of its own, ready when entered, stopped when left.

    Attributes:
        address: `HOST:PORT` of gRPC.
        start_s: From starting the process to its ready line.
    """

    def __init__(
        self, config: ServerConfig, models: Path, python: Path = Path(sys.executable)
    ) -> None:
        """Set up; nothing runs yet.

        Args:
            config: Code and settings.
            models: The model repository.
            python: Of the environment that has the server's dependencies.
        """
        self.config = config
        self._python = python
        self.address = ""
        self.start_s = 0.0
        self._http = ""
        self._models = models
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the server)
        self._process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def __enter__(self) -> ServerUnderTest:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
        settings = {
            "grpc_port": "0",
            "http_port": "0",
            "model_dir": str(self._models),
            "restore_models": "false",  # what an earlier run had in memory is not this one's
            **self.config.settings,
        }
        environment |= {f"SHOAL_{name.upper()}": value for name, value in settings.items()}
        root = self.config.root
        environment["PYTHONPATH"] = os.pathsep.join(
            str(root / folder) for folder in ("server", "protos", "client")
        )
        began_s = time.perf_counter()
        self._process = subprocess.Popen(
            [self._python, "-m", "shoal_server", "serve"],
            env=environment,
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        try:
            self._await_ready(began_s)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not help in time."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def exit_status(self) -> int | None:
        """Of the process, once it has ended."""
        return self._process.poll()

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, summed over its labels, by name."""
        totals: dict[str, float] = {}
        for sample in self.samples():
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return totals

    def samples(self) -> list[Sample]:
        """Every sample of /metrics."""
        with urllib.request.urlopen(f"http://{self._http}/metrics", timeout=10) as answer:
            return list(read_samples(answer.read().decode()))

    def output(self) -> str:
        """What it has printed so far."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def _await_ready(self, began_s: float) -> None:
        # A file and not a pipe, which nobody would read while load runs.
        while time.perf_counter() < began_s + _START_S:
            match = _READY.search(self.output().encode())
            if match:
                self.start_s = time.perf_counter() - began_s
                self.address, self._http = match[1].decode(), match[2].decode()
                return
            if self._process.poll() is not None:
                break
            time.sleep(_POLL_S)
        raise ServerStartError(f"{self.config} did not get ready:\n{self.output()}")


def stop_on_sigterm() -> None:
    """Let SIGTERM leave through the context managers, so that no server stays behind."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def read_samples(text: str) -> Iterator[Sample]:
    """Samples of the Prometheus text format."""
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if match:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            yield Sample(match[1], labels, float(match[3]))
