"""How short memory is on a device: one pure function, with hysteresis.

                use >= critical, at once              use >= critical, at once
        ┌───────────────────────────────────┐        ┌──────────────────┐
        │     use >= threshold for hold_s   v        │                  v
     NORMAL ─────────────────────────> ELEVATED ─────┘              CRITICAL
        ^                                 │  ^                          │
        └──────── use < lower ────────────┘  └─ use < critical - band ──┘

where the band is threshold - lower. Where the kernel says that the tasks stall for
memory, use counts as too much from `lower` on: then what is in use is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal_server.lifecycle import PressureLevel
from shoal_server.residency.probes import Memory


@dataclass(frozen=True, slots=True)
class PressureLimits:
    """When memory is short; shares of what the device has, 0 < lower < threshold < critical."""

    threshold: float
    lower: float
    critical: float
    hold_s: float
    """How long use must stay above the threshold, so that a peak releases nothing."""
    max_stalled: float = 0.1
    """Share of the time in which tasks may stall for memory; above, `lower` is the threshold."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What was seen of a device's memory."""

    limits: tuple[Memory, ...]
    """All that hold; at least one."""
    stalled: float = 0.0
    """Share of the time, lately, in which some task stalled for memory (Linux PSI)."""

    @property
    def used(self) -> float:
        """Share of the fullest limit."""
        return self.used_with(0)

    def used_with(self, more_bytes: int) -> float:
        """The same, if so much more (or less) were in use: another limit may be the fullest."""
        return max(
            (each.total_bytes - each.free_bytes + more_bytes) / max(1, each.total_bytes)
            for each in self.limits
        )


@dataclass(frozen=True, slots=True)
class Pressure:
    """Where a device stands."""

    level: PressureLevel = PressureLevel.NORMAL
    above_since_s: float | None = None
    """Since when, without a pause, use has been too much; None: it is not."""


def next_pressure(
    before: Pressure, seen: MemoryUse, now_s: float, limits: PressureLimits
) -> Pressure:
    """Where a device stands after one more look.

    Args:
        before: Where it stood.
        seen: What was seen now.
        now_s: When, monotonic.
        limits: When memory is short.
    """
    stalls = seen.stalled > limits.max_stalled
    too_much = seen.used >= (limits.lower if stalls else limits.threshold)
    since_s = None
    if too_much:
        since_s = now_s if before.above_since_s is None else before.above_since_s
    held = since_s is not None and now_s - since_s >= limits.hold_s
    return Pressure(_level(before.level, seen.used, held, limits), since_s)


def _level(before: PressureLevel, used: float, held: bool, limits: PressureLimits) -> PressureLevel:
    if used >= limits.critical:
        return PressureLevel.CRITICAL
    band = limits.threshold - limits.lower
    if before is PressureLevel.CRITICAL and used >= limits.critical - band:
        return PressureLevel.CRITICAL
    if before is PressureLevel.NORMAL:
        return PressureLevel.ELEVATED if held else PressureLevel.NORMAL
    return PressureLevel.ELEVATED if used >= limits.lower else PressureLevel.NORMAL
