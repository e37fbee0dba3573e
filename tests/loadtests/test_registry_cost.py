"""The benchmark of the registry runs, on models that the server would serve but for weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.registry_cost import make_models, measure


async def test_every_operation_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each, with a number."""
    make_models(tmp_path, 100)
    await measure(tmp_path, 100)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split(" ")[0] for line in lines] == [
        *("first", "lookup", "registration", "registration", "deregistration,"),
        *("update", "update", "update"),
        *("ListModels,", "ListModels,"),
    ]
    assert all(" ms" in line or " µs" in line for line in lines)
