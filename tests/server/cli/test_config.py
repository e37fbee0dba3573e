"""`shoal config`: every setting, its value, and where that came from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shoal_server.settings import Settings, show

from .conftest import Shoal


def rows(output: str) -> dict[str, tuple[str, str]]:
    """Value and origin by setting; each row is one line."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in output.splitlines()]
    return {name: (value, origin) for name, value, origin in lines[1:]}


def test_every_setting_is_shown(shoal: Shoal) -> None:
    """One line each, all from the defaults when nothing is set."""
    result = shoal("config")
    assert result.exit_code == 0
    found = rows(result.stdout)
    assert list(found) == list(Settings.model_fields)
    assert {origin for _, origin in found.values()} == {"default"}


def test_each_origin_is_shown(
    shoal: Shoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, variable and command line, with the value that won."""
    file = tmp_path / "shoal.toml"
    file.write_text("cuda_slots = 3\nmax_wait_ms = 7\n")
    monkeypatch.setenv("SHOAL_MAX_WAIT_MS", "8")
    result = shoal("config", "--config-file", str(file), "--log-level", "debug", "--cuda-tf32")
    found = rows(result.stdout)
    assert found["cuda_slots"] == ("3", "shoal.toml")
    assert found["max_wait_ms"] == ("8.0", "SHOAL_MAX_WAIT_MS")
    assert found["log_level"] == ("debug", "command line")
    assert found["cuda_tf32"] == ("true", "command line")
    assert found["http_port"] == ("8080", "default")


def test_every_flag_is_heard(shoal: Shoal) -> None:
    """Each setting can be given on the command line; a default given there is told as given."""
    arguments = []
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(field.default, bool):
            arguments.append(flag if field.default else flag.replace("--", "--no-", 1))
        else:
            arguments += [flag, "12" if field.default is None else show(field.default).strip('"')]
    found = rows(shoal("config", *arguments).stdout)
    assert {name: origin for name, (_, origin) in found.items()} == dict.fromkeys(
        Settings.model_fields, "command line"
    )
    for name, field in Settings.model_fields.items():
        expected = "12" if field.default is None else show(field.default)
        assert found[name][0].removesuffix(".0") == expected.removesuffix(".0")


def test_values_are_shown_as_they_are(shoal: Shoal) -> None:
    """Brackets are no markup, and a long path stays on its line for programs to read."""
    path = "/data/[bold]models/" + "x" * 500
    assert rows(shoal("config", "--model-dir", path).stdout)["model_dir"][0] == path


def test_a_variable_that_is_no_setting_is_told(
    shoal: Shoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt variable would be ignored in silence."""
    monkeypatch.setenv("SHOAL_GRPC_PROT", "1")
    result = shoal("config")
    assert result.exit_code == 0
    assert result.stderr == "shoal: SHOAL_GRPC_PROT is no setting\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[(None, "unset"), (True, "true"), (False, "false"), (5, "5"), (0.5, "0.5"), ("x", "x")],
        *[(("a", "b"), "a,b"), (("",), '""'), ((), "none"), (Path("/x"), "/x")],
    ],
)
def test_values_in_words(value: object, expected: str) -> None:
    """As they would be written in a variable, or in words where there is nothing to write."""
    assert show(value) == expected
