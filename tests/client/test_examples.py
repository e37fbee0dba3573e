"""The examples do what they say, as their readers would run them."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shoal_client
from shoal_client import Client
from tests.running import RunningServer

EXAMPLES = Path(shoal_client.__file__).parents[1] / "examples"


@pytest.fixture
def address(server: RunningServer) -> str:
    """Examples are for the real thing."""
    return server.address


def command(name: str, *arguments: str | Path) -> list[str | Path]:
    return [sys.executable, EXAMPLES / name, *arguments]


def run(name: str, *arguments: str | Path) -> list[str]:
    done = subprocess.run(
        command(name, *arguments), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_every_example_is_run() -> None:
    """An example without a test can not be added."""
    here = Path(__file__).read_text()
    assert all(path.name in here for path in EXAMPLES.glob("*.py"))


def test_quickstart(address: str) -> None:
    """Prints a symmetric table of similarities with ones on the diagonal."""
    *rows, usage = run("quickstart.py", address)
    table = np.array([row.split()[:3] for row in rows], dtype=float)
    np.testing.assert_array_equal(np.diag(table), 1)
    np.testing.assert_array_equal(table, table.T)
    assert "tokens" in usage


def test_bulk_to_npy(address: str, tmp_path: Path) -> None:
    """Row i of the array is the vector of line i."""
    lines = [f"line {number}" for number in range(200)]
    source, target = tmp_path / "lines.txt", tmp_path / "vectors.npy"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run("bulk_to_npy.py", source, target, address)
    with Client(address) as client:
        np.testing.assert_array_equal(client.embed(lines), np.load(target))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_wrong_arguments_get_the_usage(path: Path) -> None:
    """What an example does not take ends it with 2 and the usage, not a traceback."""
    too_many = () if path.name == "bulk_to_npy.py" else ("one", "two")
    done = subprocess.run(
        command(path.name, *too_many), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.startswith("usage: ")) == (2, True)


def test_raw_stubs(address: str) -> None:
    """Both calls are answered."""
    first, *answers = run("raw_stubs.py", address)
    assert "float32[2, " in first
    assert sorted(answers) == ["0: response", "1: response", "2: response"]


def test_async_service(address: str) -> None:
    """Answers a line with one of its documents."""
    with subprocess.Popen(
        command("async_service.py", address), stdout=subprocess.PIPE, text=True
    ) as service:
        try:
            assert service.stdout is not None
            host, port = service.stdout.readline().split()[-1].split(":")
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(b"violin music\n")
                answer = connection.makefile().readline().strip()
        finally:
            service.terminate()
    assert answer.endswith(".")
    assert answer in (EXAMPLES / "async_service.py").read_text()
