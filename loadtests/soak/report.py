"""What a soak found, for people and for programs, and whether it is within its bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from loadtests.soak.documented import NO_ROOM
from loadtests.soak.ledger import Ledger
from loadtests.soak.run import Found, Plan

MIB = 1024 * 1024
# What is measured larger than it was foreseen leaves, when nobody uses it.
_MOST_OVER_S = 10.0
# Beside models: what requests on their way take.
_REQUESTS_BYTES = 64 * MIB
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is still well."""

    growth_bytes: int
    """Of the process without models, from the first round to the last."""
    idle_share: float
    """Of one core, for a server that nobody calls."""
    refused_share: float
    """Of requests, for want of room."""
    budget_bytes: int
    """Of models in memory."""
    model_bytes: int
    """Of one, as it is foreseen."""


class Report:
    """Of one soak."""

    def __init__(self, plan: Plan, ledger: Ledger, found: Found, bounds: Bounds) -> None:
        """Judge it.

        Attributes:
            problems: What is wrong, in words; empty when nothing is.
        """
        self._plan, self._ledger, self._found, self._bounds = plan, ledger, found, bounds
        self.problems = [
            *(f"{times} × {what}" for what, times in ledger.problems.most_common()),
            *(f"{times} × {what}" for what, times in found.memory.problems.most_common()),
            *found.problems,
            *self._out_of_bounds(),
        ]

    @property
    def growth_bytes(self) -> int:
        """Of the process without models."""
        return self._found.floors_bytes[-1] - self._found.floors_bytes[0]

    @property
    def refused_share(self) -> float:
        """Of the requests: those for which there was no room."""
        return self._ledger.failed[NO_ROOM] / max(1, self._ledger.asked)

    def text(self) -> str:
        """A few lines for people."""
        ledger, found = self._ledger, self._found
        memory = found.memory
        failed = ", ".join(f"{times} {failure}" for failure, times in sorted(ledger.failed.items()))
        operations = ", ".join(f"{name} {times}" for name, times in found.operations.most_common())
        floors = " – ".join(f"{each / MIB:.0f}" for each in found.floors_bytes)
        lines = [
            f"requests   {ledger.asked} ({ledger.asked / found.took_s:.0f}/s) for "
            f"{ledger.items.total()} vectors, {ledger.answered.total()} answered, all compared",
            f"not        {failed or 'none'}",
            f"operations {sum(found.operations.values())}: {operations}",
            f"events     {found.events.last}: {dict(found.events.kinds)}",
            f"left       {dict(found.events.unloads)}",
            f"took       a load {_middle(found.events.loads_ms)}, "
            f"a switch {_middle(found.events.switches_ms)}",
            f"models     {memory.most_models} at most; {max(memory.resident_bytes) / MIB:.0f} MiB "
            f"counted at most, budget {self._bounds.budget_bytes / MIB:.0f}, "
            f"above it for {memory.over_s:.1f} s at most",
            f"process    RSS {median(memory.rss_bytes) / MIB:.0f} MiB in the middle, "
            f"{max(memory.rss_bytes) / MIB:.0f} at most; without models {floors} "
            f"after each round",
            f"CPU        {found.cpu_s / found.took_s:.2f} cores"
            + ("" if found.idle_share is None else f", idle {found.idle_share:.2%} of one"),
        ]
        shown = [f"PROBLEM    {each}" for each in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            shown.append(f"           and {len(self.problems) - _SHOWN} more")
        return "\n".join(lines + shown)

    def json(self) -> str:
        """The same on one line."""
        ledger, found = self._ledger, self._found
        return json.dumps(
            {
                "ok": not self.problems,
                "problems": self.problems[:_SHOWN],
                "plan": asdict(self._plan),
                "seconds": round(found.took_s, 1),
                "requests": ledger.asked,
                "answered": ledger.answered.total(),
                "failed": {str(failure): times for failure, times in ledger.failed.items()},
                "vectors": ledger.items.total(),
                "operations": dict(found.operations),
                "events": found.events.last,
                "unloads": dict(found.events.unloads),
                "load_p50_ms": round(median(found.events.loads_ms or [0.0]), 1),
                "switch_p50_ms": round(median(found.events.switches_ms or [0.0]), 1),
                "most_models": found.memory.most_models,
                "most_counted_bytes": max(found.memory.resident_bytes),
                "budget_bytes": self._bounds.budget_bytes,
                "most_rss_bytes": max(found.memory.rss_bytes),
                "floors_bytes": found.floors_bytes,
                "growth_bytes": self.growth_bytes,
                "idle_share": found.idle_share,
            }
        )

    def _out_of_bounds(self) -> Iterator[str]:
        found, bounds = self._found, self._bounds
        if self._ledger.asked == 0:
            yield "nobody asked for anything"
        if self.growth_bytes > bounds.growth_bytes:
            yield f"without models the process grew by {self.growth_bytes / MIB:.0f} MiB"
        if found.memory.over_s > _MOST_OVER_S:
            yield f"above the memory budget for {found.memory.over_s:.1f} s"
        counted_bytes = max(found.memory.resident_bytes)
        if counted_bytes > bounds.budget_bytes + bounds.model_bytes:
            yield f"{counted_bytes / MIB:.0f} MiB counted, by more than a model above the budget"
        taken_bytes = max(found.memory.rss_bytes) - max(found.floors_bytes)
        if taken_bytes > bounds.budget_bytes + _REQUESTS_BYTES:
            yield f"the process takes {taken_bytes / MIB:.0f} MiB more than without models"
        if found.idle_share is not None and found.idle_share > bounds.idle_share:
            yield f"idle, the server takes {found.idle_share:.2%} of a core"
        if self.refused_share > bounds.refused_share:
            yield f"{self.refused_share:.1%} of the requests were refused for want of room"


def _middle(times_ms: Sequence[float]) -> str:
    if not times_ms:
        return "–"
    return f"{median(times_ms):.0f} ms in the middle, {max(times_ms):.0f} at most"
