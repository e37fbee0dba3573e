"""`shoal models` as typed at a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shoal_server.cli.models import models_app
from tests.server.preparation.authors import write_authors_model
from tests.server.preparation.fake_hub import FakeHub, FakeRepository, Request
from tests.server.preparation.fakes import fake_environment
from tests.server.preparation.graphs import dense_graph
from tests.tiny_model import add_tiny_variant, make_tiny_model


class Shell:
    """Runs `shoal models …` on one repository."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            "COLUMNS": "200",
            "SHOAL_MODEL_DIR": str(root),
            "SHOAL_EXPORT_ENV": str(root.parent / "export-env"),
        }

    def __call__(self, *arguments: str, typed: str = "") -> Result:
        return CliRunner().invoke(models_app, arguments, input=typed, env=self.environment)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "models")


def damage(root: Path) -> None:
    (root / "tiny" / "1" / "tokenizer.json").write_text("{}")


def test_pull_says_what_came(shell: Shell, tmp_path: Path) -> None:
    """The model, its version and what it is go to standard output in one line."""
    source = write_authors_model(tmp_path / "tiny")
    done = shell("pull", str(source))
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "tiny@1: prepared: 8 dimensions, at most 16 tokens, mean pooling, unit length\n"
    )


def test_pull_again_says_so(shell: Shell, tmp_path: Path) -> None:
    """A version that is there is not an error."""
    source = write_authors_model(tmp_path / "tiny")
    shell("pull", str(source))
    done = shell("pull", str(source))
    assert (done.exit_code, "already prepared" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["pull", "/no/such/folder"], 1, "there is no folder /no/such/folder"),
        (["pull", "/no/such", "--name", "../x"], 2, "'../x' is not a name"),
        (["pull", "--pooling", "max"], 2, "'mean', 'cls', 'last_token'"),
        (["show", "none"], 1, "there is no model 'none'"),
        (["show", "tiny@9"], 1, "no version '9'"),
        (["show", "../x"], 2, "is not a name"),
        (["remove", "none", "--yes"], 1, "there is no model 'none'"),
        (["remove", "tiny@1", "--manifest"], 2, "--manifest"),
        (["verify", "none"], 1, "there is no model 'none'"),
    ],
)
def test_errors_are_plain(shell: Shell, arguments: list[str], status: int, told: str) -> None:
    """An error is one line on standard error: 1 for what can not be, 2 for wrong usage."""
    make_tiny_model(shell.root)
    done = shell(*arguments)
    assert done.exit_code == status, done.output
    assert told in done.stderr
    assert "Traceback" not in done.output


def test_remove_export_env(shell: Shell, tmp_path: Path) -> None:
    """The export environment stays unless the user says otherwise."""
    environment = fake_environment(tmp_path)
    source = write_authors_model(tmp_path / "tiny", onnx_file=None)
    assert shell("pull", str(source)).exit_code == 0
    assert environment.is_complete()
    assert shell("pull", str(source), "--version", "2", "--remove-export-env").exit_code == 0
    assert not environment.folder.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_pull_leaves_nothing(
    shell: Shell, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """Ctrl-C, or being told to end, while exporting: nothing stays in the repository."""
    fake_environment(tmp_path, "hang")
    source = write_authors_model(tmp_path / "tiny", onnx_file=None)
    with subprocess.Popen(
        [sys.executable, "-m", "shoal_server", "models", "pull", str(source)],
        env={**os.environ, **shell.environment},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "exporting" in line)
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == status, said
    assert list(shell.root.iterdir()) == []


def test_an_interrupted_download_is_waited_for_by_nobody(shell: Shell, tmp_path: Path) -> None:
    """The hub is silent in the middle of a file, and the command ends all the same."""
    source = write_authors_model(tmp_path / "authors")
    files = {
        str(path.relative_to(source)): path.read_bytes()
        for path in source.rglob("*")
        if path.is_file()
    }
    asked, ended = threading.Event(), threading.Event()

    def hold(request: Request) -> None:
        if "model.onnx" in request.path:
            asked.set()
            ended.wait()

    with FakeHub({"org/tiny": FakeRepository({"main": files})}) as hub:
        hub.on_request = hold
        with subprocess.Popen(
            [sys.executable, "-m", "shoal_server", "models", "pull", "org/tiny"],
            env={
                **os.environ,
                **shell.environment,
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path / "hf"),
            },
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert asked.wait(60)
            process.send_signal(signal.SIGINT)
            try:
                _, said = process.communicate(timeout=30)
            finally:
                ended.set()
    assert (process.returncode, "Traceback" in said) == (130, False)
    assert said.endswith("shoal: interrupted\n")
    assert list(shell.root.iterdir()) == []


def test_list(shell: Shell) -> None:
    """Every version has a line, and a star marks the one that the bare name means."""
    make_tiny_model(shell.root)
    make_tiny_model(shell.root, version="2")
    (shell.root / "other").mkdir()
    (shell.root / "other" / "model.toml").touch()
    lines = shell("list").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["model", "version"],
        ["other", "not"],
        ["tiny", "1"],
        ["tiny", "2*"],
    ]


def test_list_of_nothing(shell: Shell) -> None:
    """An empty repository says how to fill it."""
    done = shell("list")
    assert (done.exit_code, "shoal models pull" in done.stdout) == (0, True)


def test_list_shows_what_is_broken(shell: Shell) -> None:
    """A manifest that can not be read costs its own line only."""
    make_tiny_model(shell.root)
    make_tiny_model(shell.root, "broken")
    (shell.root / "broken" / "1" / "version.toml").write_text("dimensions = 'many'")
    rows = {row["name"]: row for row in json.loads(shell("list", "--json").stdout)}
    assert rows["broken"]["state"] == "broken"
    assert "version.toml" in rows["broken"]["error"]
    assert rows["tiny"] | {"size_bytes": 0} == {
        "name": "tiny",
        "version": "1",
        "is_default": True,
        "state": "prepared",
        "dimensions": 8,
        "max_tokens": 16,
        "size_bytes": 0,
        "license": "",
        "source": "local:tests",
        "languages": [],
        "precisions": ["fp32"],
        "error": "",
    }


def test_a_missing_file_is_told(shell: Shell) -> None:
    """By the list and by what is shown of the version: it can not be loaded."""
    make_tiny_model(shell.root)
    (shell.root / "tiny" / "1" / "tokenizer.json").unlink()
    (row,) = json.loads(shell("list", "--json").stdout)
    shown = json.loads(shell("show", "tiny", "--json").stdout)
    assert row["state"] == "broken"
    for problem in (row["error"], shown["problem"]):
        assert "tokenizer.json is missing" in problem


def break_manifest(root: Path, name: str) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "model.toml").write_text("source = [")


def test_list_is_never_folded(shell: Shell) -> None:
    """Names stay whole on a narrow screen, and a broken model's state is one word."""
    name = "a-name-that-is-longer-than-the-screen-is-wide"
    make_tiny_model(shell.root, name)
    break_manifest(shell.root, "broken")
    shell.environment["COLUMNS"] = "30"
    lines = [line.split() for line in shell("list").stdout.splitlines()]
    assert lines[1][0] == name
    assert lines[2] == ["broken", "broken"]


def test_show_in_a_pipe_is_not_folded(shell: Shell) -> None:
    """What is no terminal gets a field on each line, however long."""
    make_tiny_model(shell.root)
    shell.environment["COLUMNS"] = "30"
    lines = shell("show", "tiny").stdout.splitlines()
    assert str(shell.root / "tiny" / "1") in next(line for line in lines if "folder" in line)


def test_verify_tells_what_can_not_be_served(shell: Shell) -> None:
    """Whole files do not help a model whose model.toml is broken."""
    make_tiny_model(shell.root)
    break_manifest(shell.root, "tiny")
    done = shell("verify")
    assert (done.exit_code, "can not be served" in done.stderr) == (1, True)


@pytest.mark.parametrize("is_prepared", [True, False])
def test_remove_a_model_whose_manifest_is_broken(shell: Shell, is_prepared: bool) -> None:
    """A broken model.toml is no reason to keep the model."""
    if is_prepared:
        make_tiny_model(shell.root, "bad")
    break_manifest(shell.root, "bad")
    done = shell("remove", "bad", "--manifest", "--yes")
    assert (done.exit_code, list(shell.root.iterdir())) == (0, []), done.output


def test_help_shows_optional_once(shell: Shell) -> None:
    """An argument that may be left out stands in one pair of brackets."""
    usage = shell("verify", "--help").stdout
    assert "[NAME[@VERSION]]" in usage
    assert "[[" not in usage
    assert "Default: every version." in usage


def test_show(shell: Shell) -> None:
    """Both manifests are shown, to people and to programs."""
    make_tiny_model(shell.root)
    assert "files.pooling" in shell("show", "tiny").stdout
    shown = json.loads(shell("show", "tiny@1", "--json").stdout)
    assert (shown["version"], shown["files"]["dimensions"]) == ("1", 8)


def test_verify(shell: Shell) -> None:
    """Without a name all are verified; a damaged file is named and the status is 1."""
    make_tiny_model(shell.root)
    make_tiny_model(shell.root, "other")
    assert shell("verify").exit_code == 0
    damage(shell.root)
    done = shell("verify")
    assert (done.exit_code, "tokenizer.json" in done.stderr) == (1, True)
    assert "other@1" in done.stdout
    assert shell("verify", "other").exit_code == 0


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_quantize(shell: Shell, tmp_path: Path, precision: str) -> None:
    """The variant and how close it came go to standard output in one line; twice is no error."""
    graph = dense_graph().SerializeToString()
    source = write_authors_model(tmp_path / "dense", files={"onnx/model.onnx": graph})
    assert shell("pull", str(source)).exit_code == 0
    quantize = ("quantize", "dense", "--precision", precision)
    done = shell(*quantize)
    assert done.exit_code == 0, done.output
    told = f"dense@1 {precision}: made: cosine to the version's own vectors 0.99"
    assert done.stdout.startswith(told)
    assert done.stdout.count("\n") == 1
    again = shell(*quantize)
    assert (again.exit_code, "already made, and whole" in again.stdout) == (0, True)
    assert f"{precision}: made" in shell(*quantize, "--again").stdout


def test_quantize_makes_int8_unless_told_otherwise(shell: Shell, tmp_path: Path) -> None:
    """What CPUs have use for."""
    graph = dense_graph().SerializeToString()
    source = write_authors_model(tmp_path / "dense", files={"onnx/model.onnx": graph})
    assert shell("pull", str(source)).exit_code == 0
    assert shell("quantize", "dense").stdout.startswith("dense@1 int8: made")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["quantize", "none"], 1, "there is no model 'none'"),
        (["quantize", "tiny"], 1, "no matrix product"),
        (["quantize", "tiny", "--precision", "fp16"], 1, "does not end as"),
        (["quantize", "tiny", "--precision", "int4"], 2, "int4"),
    ],
)
def test_quantize_refuses_plainly(
    shell: Shell, arguments: list[str], status: int, told: str
) -> None:
    """One line on standard error says what is in the way."""
    make_tiny_model(shell.root)
    done = shell(*arguments)
    assert (done.exit_code, told in done.stderr) == (status, True), done.output
    assert "Traceback" not in done.output


def test_show_tells_of_variants(shell: Shell) -> None:
    """Each with its size and how close it is to the version."""
    add_tiny_variant(make_tiny_model(shell.root))
    assert "variants.int8.cosine.least" in shell("show", "tiny").stdout
    shown = json.loads(shell("show", "tiny", "--json").stdout)["variants"]["int8"]
    assert (shown["cosine"]["mean"], shown["batch_invariant"]) == (0.99, True)
    assert shown["size_bytes"] > 1000


def test_verify_checks_variants(shell: Shell) -> None:
    """A damaged variant is named, and the status is 1 though the version is whole."""
    tiny = make_tiny_model(shell.root)
    add_tiny_variant(tiny)
    done = shell("verify")
    assert (done.exit_code, "tiny@1 int8: 1 files are" in done.stdout) == (0, True)
    (tiny.folder / "variants" / "int8" / "model.onnx").write_bytes(b"other")
    done = shell("verify", "tiny")
    assert (done.exit_code, "variants/int8/model.onnx" in done.stderr) == (1, True)
    assert "tiny@1: 2 files are" in done.stdout


def test_remove_asks(shell: Shell) -> None:
    """Nothing is removed unless the answer is yes."""
    make_tiny_model(shell.root)
    assert shell("remove", "tiny", typed="n\n").exit_code == 1
    assert (shell.root / "tiny" / "1").exists()
    assert shell("remove", "tiny", typed="y\n").exit_code == 0
    assert not (shell.root / "tiny" / "1").exists()


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["tiny@1"], ["2", "model.toml"]),
        (["tiny"], ["model.toml"]),
    ],
)
def test_remove_keeps_the_operators_manifest(
    shell: Shell, arguments: list[str], left: list[str]
) -> None:
    """One version or all of them go; model.toml stays."""
    make_tiny_model(shell.root)
    make_tiny_model(shell.root, version="2")
    assert shell("remove", *arguments, "--yes").exit_code == 0
    assert sorted(path.name for path in (shell.root / "tiny").iterdir()) == left


def test_remove_with_the_manifest(shell: Shell) -> None:
    """Nothing of the model stays when the user says so."""
    make_tiny_model(shell.root)
    assert shell("remove", "tiny", "--manifest", "--yes").exit_code == 0
    assert list(shell.root.iterdir()) == []
