"""A model's profile as a plot. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from shoal.v1 import profile_pb2 as pb

_SIZE_INCHES = (12, 5)
_DPI = 120


def draw(found: pb.ModelProfile, path: Path) -> None:
    """Throughput and latency against the batch size, a line for each length.

    Args:
        found: The profile.
        path: Its suffix says in which format.

    Raises:
        OSError: The file can not be written.
    """
    # Without pyplot: no window, and nothing that outlasts this call.
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    throughput, latency = figure.subplots(1, 2)
    _lines(throughput, found, lambda cell: cell.tokens_per_s)
    throughput.set_ylabel("tokens/s")
    throughput.set_ylim(bottom=0)
    _lines(latency, found, lambda cell: cell.p50_us / 1000)
    _spread(latency, found)
    latency.set_ylabel("ms, median; shaded: up to p95")
    latency.set_yscale("log")
    for axes, title in ((throughput, "throughput of one slot"), (latency, "latency of a run")):
        _batch_axis(axes, found)
        axes.set_title(title)
    throughput.legend(title="tokens of an item")
    figure.suptitle(
        f"{found.model}@{found.version}, {found.precision} on {found.device} ({found.hardware})"
    )
    figure.savefig(path, dpi=_DPI)


def _lines(axes: Axes, found: pb.ModelProfile, value: Callable[[pb.ProfileCell], float]) -> None:
    for length, cells in _by_length(found).items():
        axes.plot(
            [cell.items for cell in cells],
            [value(cell) for cell in cells],
            marker="o",
            label=str(length),
        )


def _spread(axes: Axes, found: pb.ModelProfile) -> None:
    for number, cells in enumerate(_by_length(found).values()):
        axes.fill_between(
            [cell.items for cell in cells],
            [cell.p50_us / 1000 for cell in cells],
            [cell.p95_us / 1000 for cell in cells],
            color=f"C{number}",
            alpha=0.2,
        )


def _batch_axis(axes: Axes, found: pb.ModelProfile) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({cell.items for cell in found.cells}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("items in a batch")
    axes.grid(visible=True, alpha=0.3)
    if found.HasField("suggestion"):
        suggested = found.suggestion.max_batch_items
        axes.axvline(suggested, color="black", linestyle=":", label=f"suggested: {suggested} items")


def _by_length(found: pb.ModelProfile) -> dict[int, list[pb.ProfileCell]]:
    lines: dict[int, list[pb.ProfileCell]] = {}
    for cell in found.cells:
        lines.setdefault(cell.tokens_per_item, []).append(cell)
    return lines
