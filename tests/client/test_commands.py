"""`shoal embed`, as a process would see it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from shoal_client import commands
from shoal_client.commands import embed
from tests.client import fake as fakes
from tests.client.fake import (
    DEPRECATED_MODEL,
    MODEL,
    VERSION,
    FakeServer,
    overloaded,
    vectors_of,
)

PROGRAM = "import typer; from shoal_client.commands import embed; typer.run(embed)"


@pytest.fixture
def app() -> typer.Typer:
    """The command on its own."""
    app = typer.Typer()
    app.command()(embed)
    return app


class Shell:
    """Runs the command against the fake server."""

    def __init__(self, app: typer.Typer, address: str) -> None:
        self._app = app
        self._environment = {"SHOAL_ADDRESS": address}

    def run(self, *arguments: str, stdin: str | bytes = "") -> Result:
        return CliRunner().invoke(self._app, arguments, input=stdin, env=self._environment)


@pytest.fixture
def shell(app: typer.Typer, fake: FakeServer) -> Shell:
    return Shell(app, fake.address)


def rows(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_arguments_as_jsonl(shell: Shell) -> None:
    """One object for each text, in order, whose numbers read back as the same float32."""
    lines = rows(shell.run("one", "two"))
    assert [(line["index"], line["tokens"], line["truncated"]) for line in lines] == [
        (0, 5, False),
        (1, 5, False),
    ]
    assert {line["model"] for line in lines} == {f"{MODEL}@{VERSION}"}
    vectors = np.array([line["embedding"] for line in lines], dtype=np.float32)
    np.testing.assert_array_equal(vectors_of(["one", "two"]), vectors)


def test_lines_of_standard_input(shell: Shell) -> None:
    """Without arguments each line is a text; empty lines too; line ends are not part of it."""
    texts = ["first", "", "drei ß", *(f"line {number}" for number in range(300))]
    lines = rows(shell.run(stdin="\n".join(texts[:2]) + "\r\n" + "\n".join(texts[2:])))
    vectors = np.array([line["embedding"] for line in lines], dtype=np.float32)
    np.testing.assert_array_equal(vectors_of(texts), vectors)


def test_a_deprecated_model_is_told_once(shell: Shell) -> None:
    """On standard error, whatever number of requests it is: vectors are as always."""
    result = shell.run("--model", DEPRECATED_MODEL, stdin="line\n" * 300)
    assert len(rows(result)) == 300
    assert result.stderr == f"shoal: use {MODEL}\n"


def test_a_wait_is_told_once(
    shell: Shell, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error, with the server's reason; then vectors come as always."""
    monkeypatch.setattr(commands, "_TOLD_WAIT_S", 0.0)
    fake.fail_requests(overloaded(), overloaded(), text="one")
    result = shell.run("one")
    assert len(rows(result)) == 1
    (told,) = result.stderr.splitlines()
    assert told.startswith(f"shoal: {overloaded().message}; trying again in 0.")


def test_no_input_is_no_output(shell: Shell) -> None:
    """An empty file has no vectors, and that is no error."""
    assert rows(shell.run()) == []


def test_npy_file(shell: Shell, tmp_path: Path) -> None:
    """The suffix says what is wanted; the array is whole and nothing else is left."""
    texts = [f"line {number}" for number in range(500)]
    output = tmp_path / "vectors.npy"
    assert shell.run("--output", str(output), stdin="\n".join(texts)).exit_code == 0
    np.testing.assert_array_equal(vectors_of(texts), np.load(output))
    assert list(tmp_path.iterdir()) == [output]


def test_npy_on_standard_output(shell: Shell) -> None:
    """What can not be rewound gets the same bytes."""
    result = shell.run("--format", "npy", "one", "two")
    np.testing.assert_array_equal(
        vectors_of(["one", "two"]), np.load(io.BytesIO(result.stdout_bytes))
    )


def test_npy_of_nothing(shell: Shell, tmp_path: Path) -> None:
    """No lines make an array without rows, of the width and dtype that rows would have."""
    output = tmp_path / "vectors.npy"
    assert shell.run("--output", str(output)).exit_code == 0
    nothing = np.load(output)
    assert (nothing.shape, nothing.dtype) == ((0, fakes.DIMENSIONS), np.dtype("<f4"))


def test_npy_of_nothing_where_models_are_not_shown(
    shell: Shell, fake: FakeServer, tmp_path: Path
) -> None:
    """A token that may only embed gets an array of no width, and no error."""
    output = tmp_path / "vectors.npy"
    fake.fail("GetModel", fakes.status(grpc.StatusCode.PERMISSION_DENIED))
    assert shell.run("--output", str(output)).exit_code == 0
    assert np.load(output).shape == (0, 0)


def test_format_wins_over_suffix(shell: Shell, tmp_path: Path) -> None:
    """What is said is done."""
    output = tmp_path / "vectors.npy"
    shell.run("--format", "jsonl", "-o", str(output), "one")
    assert json.loads(output.read_text())["index"] == 0


def test_options_reach_the_server(shell: Shell, fake: FakeServer) -> None:
    """Model, dimensions, encoding, truncation, prompt, routing key, keep-alive and timeout."""
    arguments = "--model m@2 --dimensions 4 --encoding int8 --no-truncate --prompt-name query"
    more = "--routing-key user-7 --keep-alive -1 --timeout 9"
    (line,) = rows(shell.run(*arguments.split(), *more.split(), "text"))
    sent = next(call.request for call in fake.calls if call.method == "StreamRequest")
    assert sent.timeout_ms == 9000
    request = sent.request
    assert (request.model, request.dimensions, request.encoding) == ("m@2", 4, 3)
    assert (request.truncate, request.prompt_name) == (False, "query")
    assert (request.keep_alive_s, request.routing_key) == (-1, "user-7")
    assert isinstance(line["scale"], float)


def test_error_is_one_line(shell: Shell, fake: FakeServer, tmp_path: Path) -> None:
    """Exit status 1, the reason on standard error, and no half-made file."""
    fake.fail_requests(fakes.invalid("texts[0]"))
    result = shell.run("--output", str(tmp_path / "vectors.npy"), "text")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("shoal: texts[0]: 612 tokens")
    assert list(tmp_path.iterdir()) == []


def test_line_that_is_not_utf8_is_named(shell: Shell) -> None:
    """Bytes that are no text are refused with the number of their line."""
    result = shell.run(stdin=b"fine\nbro\xffken\n")
    assert result.exit_code == 1
    assert result.stderr == "shoal: line 2 of standard input is not UTF-8\n"


def test_file_that_can_not_be_written_is_named_as_typed(shell: Shell, tmp_path: Path) -> None:
    """The error names the path that the user gave, not the one that is written first."""
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "vectors.npy"
    result = shell.run("--output", str(path), "text")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"'{path}'" in result.stderr


@pytest.mark.parametrize("arguments", [("--address", "nowhere"), ("-o", "/no/such/folder/x")])
def test_wrong_arguments_are_one_line(shell: Shell, arguments: tuple[str, str]) -> None:
    """No traceback for what the user typed."""
    result = shell.run(*arguments, "text")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("shoal: ")


def start(address: str, *arguments: str, stdin: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--address", address, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def interrupt(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Press Ctrl-C until it is seen: CPython misses one that comes just before a wait."""
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=5)
    process.kill()
    raise AssertionError("it does not end")


def test_interrupt(fake: FakeServer, tmp_path: Path) -> None:
    """Ctrl-C ends it with 130, without words and without a half-made file."""
    fake.stream_group = 99  # so that nothing is answered
    with start(fake.address, "--output", str(tmp_path / "vectors.jsonl"), "text") as process:
        fake.streamed.get(timeout=30)
        _, errors = interrupt(process)
    assert (process.returncode, errors) == (130, b"")
    assert list(tmp_path.iterdir()) == []


def test_broken_pipe(fake: FakeServer) -> None:
    """A reader that has enough ends it without words, as it ends other filters."""
    with start(fake.address) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"line\n" * 2000)
        process.stdin.close()
        errors = process.stderr.read()
        assert process.wait(timeout=30) == 141
    assert errors == b""


def test_conversation(fake: FakeServer) -> None:
    """On a terminal each line is answered when it is typed."""
    terminal, other_end = os.openpty()
    with start(fake.address, stdin=other_end) as process:
        os.close(other_end)
        assert process.stdout is not None
        for number in range(3):
            os.write(terminal, b"a line\n")
            assert json.loads(process.stdout.readline())["index"] == number
        os.write(terminal, b"\x04")  # end of file
        assert process.wait(timeout=30) == 0
    os.close(terminal)
