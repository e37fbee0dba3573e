"""Reports are made of what was written, also when a run measured only a part."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from loadtests.goals import outcomes
from loadtests.management import CALLS, LOAD, SWITCH
from loadtests.plots import Bar, Line, bar_plot, line_plot
from loadtests.report import html_report, print_report
from loadtests.results import ManagementResult, Results

RECORDED = Path(__file__).with_name("recorded.json")


@pytest.fixture
def results() -> Results:
    return Results.read(RECORDED)


def test_what_is_written_is_read_back(results: Results, tmp_path: Path) -> None:
    """Nothing is lost on the way through JSON."""
    results.write(tmp_path / "again.json")
    assert Results.read(tmp_path / "again.json") == results


def test_the_terminal_shows_every_row_and_every_goal(results: Results) -> None:
    """A goal that this run did not measure is said to be so."""
    shown = io.StringIO()
    print_report(results, Console(file=shown, width=200))
    for closed in results.closed:
        assert str(closed.row) in shown.getvalue()
    for outcome in outcomes(results):
        assert outcome.name in shown.getvalue()
    assert "not measured" in shown.getvalue()


def test_the_page_needs_no_other_file(results: Results) -> None:
    """No script, no link, no image from elsewhere."""
    page = html_report(results)
    assert "<svg" in page
    for outside in ("<script", "<link", "<img", "@import"):
        assert outside not in page


def test_a_goal_is_judged_by_the_medians(results: Results) -> None:
    """The ratio of the recorded rows, against the goal of that row."""
    found = {outcome.name: outcome for outcome in outcomes(results)}
    cpu = found["CPU ÷ bare: short 64 × 1"]
    row = next(each for each in results.closed if str(each.row) == "short 64 × 1")
    assert cpu.measured == row.median(lambda window: window.cpu_ratio)
    assert cpu.met == (cpu.measured <= 1.12)


def test_managing_is_judged_by_the_medians_at_the_server(results: Results) -> None:
    """A row for each call, and a goal: a load 100 ms, a switch 50, others 1."""
    name = results.servers[0].name
    times_ms = {LOAD: [90.0, 99.0, 400.0], SWITCH: [51.0], **{call: [0.4, 0.6] for call in CALLS}}
    results.management.append(ManagementResult(name, times_ms))
    found = {each.name: each for each in outcomes(results) if each.server == name}
    assert found[f"at the server: {LOAD}"].measured == 99.0
    assert found[f"at the server: {LOAD}"].met is True
    assert found[f"at the server: {SWITCH}"].met is False
    for call in CALLS:
        assert (found[f"at the server: {call}"].goal, found[f"at the server: {call}"].met) == (1, 1)
        assert f"<td>at the server: {call}<" in html_report(results)


def test_a_run_without_measurements_still_reports(results: Results) -> None:
    """Every goal is then not measured."""
    empty = Results(results.made_at, "", {}, "model", "fp32", servers=results.servers[:1])
    assert "<table" in html_report(empty)
    assert all(outcome.met is None for outcome in outcomes(empty) if "CPU" in outcome.name)


def test_plots_are_well_formed() -> None:
    """Labels may hold anything."""
    plots = (
        bar_plot("a < b & c", [Bar("<x>", 1.5, 0, 1.2, 1.9, 1.0), Bar("y", 0.0)], reference=1),
        line_plot("t", [Line("p50", [(50, 3.0), (120, 900.0)])], x_label="load", y_label="ms"),
    )
    for plot in plots:
        assert ElementTree.fromstring(plot).tag.endswith("svg")
