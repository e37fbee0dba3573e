"""What the documentation says of settings, metrics and files is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from scripts.document_settings import PAGE, updated
from shoal_client.events import EVENT_KINDS
from shoal_server.cli.main import make_app
from shoal_server.settings import ENV_PREFIX, Settings
from shoal_server.settings_sources import load_settings
from shoal_server.telemetry.metrics import Metrics

ROOT = PAGE.parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMAND_PAGES = [*PAGES, ROOT / "client" / "README.md", ROOT / "CHANGELOG.md"]
# Besides the pages, where an operator meets names of variables.
OTHERS = [path for name in ("Makefile", "Dockerfile") if (path := ROOT / name).is_file()]

TABLE_ROW = re.compile(r"^\| `([a-z_]+)`(?: \[([a-z, ]*)\])? \|", re.MULTILINE)


def test_the_tables_of_settings_are_fresh() -> None:
    """docs/configuration.md has each setting with variable, default and sense; run `make docs`."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == updated(page)
    for name in Settings.model_fields:
        assert f"| `{name}` | `{ENV_PREFIX}{name.upper()}` |" in page


def test_every_metric_is_documented_with_its_labels() -> None:
    """docs/operations.md has a row for each metric, as it is scraped, and no other."""
    metrics = {
        family.name + ("_total" if family.type == "counter" else ""): list(family._labelnames)  # type: ignore[attr-defined]
        for family in families()
    }
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = {
        name: labels.split(", ") if labels else []
        for name, labels in TABLE_ROW.findall(page)
        if name.startswith("shoal_")
    }
    assert documented == metrics


def families() -> list[Metric]:
    """What each attribute of Metrics is collected as."""
    attributes = vars(Metrics()).values()
    collectors = [each for each in attributes if not isinstance(each, CollectorRegistry)]
    assert len(collectors) > 10
    return [family for each in collectors for family in each.describe()]


def test_every_kind_of_events_is_documented() -> None:
    """docs/operations.md has a row for each, as one asks for it, and no other."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.partition("## Events")[2].partition("\n## ")[0]
    assert sorted(name for name, _ in TABLE_ROW.findall(section)) == sorted(EVENT_KINDS)


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda path: path.name)
def test_every_variable_that_is_mentioned_exists(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `SHOAL_…` name in the docs is a setting, or one of the few that others read."""
    mentioned = set(re.findall(r"\bSHOAL_[A-Z][A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8")))
    for name in mentioned:
        monkeypatch.setenv(name, "")
    assert not mentioned & set(load_settings().unknown_variables)


@pytest.mark.parametrize("page", COMMAND_PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_shown_exists(page: Path) -> None:
    """What a page shows of `shoal` names commands that there are, with flags that they take."""
    root: Any = typer.main.get_command(make_app())
    for shown in re.findall(
        r"\bshoal ((?:models|settings|health|config|serve)\b[^`\n#;|]*)",
        page.read_text(encoding="utf-8"),
    ):
        command, words = root, shown.split()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        flags = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        assert set(re.findall(r"(?<![\w-])--[a-z-]+", " ".join(words))) <= {*flags, "--help"}, shown
        assert not words or not hasattr(command, "commands"), shown


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    """Links between pages and into the code name files that are there."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (page.parent / link).exists()] == []
