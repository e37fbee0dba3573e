"""A profile: what was measured of a model, on what, and what follows. Values only."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from shoal_server.core import ModelKey
from shoal_server.profiling.plan import Shape

_P95 = 0.95


@dataclass(frozen=True, slots=True)
class Setup:
    """What a profile is true for, and for nothing else."""

    key: ModelKey
    precision: str
    device: str
    hardware: str
    """In words."""
    runtime: str
    """Version of ONNX Runtime."""
    threads: int
    """Of one run; 0 on a GPU."""
    graph: str
    """Of the files, the runtime and the CPU's features (`inference.packed.packed_key`)."""

    @property
    def id(self) -> str:
        """Another one for each setup."""
        return hashlib.sha256(repr(asdict(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Cell:
    """How long one kind of batch takes, in one slot."""

    shape: Shape
    runs: int
    least_s: float
    """Of the fastest run, which whatever else went on disturbed least."""
    p50_s: float
    p95_s: float
    memory_bytes: int | None = None
    """What a first run took beyond what was in use; None where the system does not tell."""
    noise: float = 0.0
    """By how much of it the fastest run would be another: so much slower is the fastest of one
    half of the runs, every other one, than that of the other half."""

    @property
    def items_per_s(self) -> float:
        """At the median, one run after the other."""
        return self.shape.items / self.p50_s

    @property
    def tokens_per_s(self) -> float:
        """At the median, one run after the other."""
        return self.shape.tokens / self.p50_s


@dataclass(frozen=True, slots=True)
class Skipped:
    """A batch that was to be measured and was not."""

    shape: Shape
    reason: str


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Limits of a batch with which the model is about as fast as it gets."""

    max_batch_items: int
    max_batch_tokens: int
    reasons: tuple[str, ...]
    """In sentences."""


@dataclass(frozen=True, slots=True)
class NoSuggestion:
    """Nothing follows from what was measured."""

    reason: str
    """In a sentence."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured of one version of a model on one machine."""

    setup: Setup
    slots: int
    measured_at_s: float
    """Seconds since the epoch."""
    duration_s: float
    running_s: float
    """The part of it in which a run of the sweep held a slot."""
    max_share: float
    batch_items_limit: int
    """What the server let into a batch then."""
    batch_tokens_limit: int
    cells: tuple[Cell, ...]
    """By length, then by items."""
    skipped: tuple[Skipped, ...]
    suggestion: Suggestion | None
    no_suggestion: str = ""
    """Why there is none."""


def make_cell(shape: Shape, seconds: Sequence[float], memory_bytes: int | None) -> Cell:
    """What the runs of one batch say.

    Args:
        shape: Of the batch.
        seconds: Of each run, in their order; at least one.
        memory_bytes: See `Cell`.
    """
    ranked = sorted(seconds)
    return Cell(
        shape=shape,
        runs=len(ranked),
        least_s=ranked[0],
        p50_s=statistics.median(ranked),
        p95_s=ranked[math.ceil(_P95 * len(ranked)) - 1],
        memory_bytes=memory_bytes,
        noise=_noise(seconds),
    )


def _noise(seconds: Sequence[float]) -> float:
    halves = [min(half) for half in (seconds[::2], seconds[1::2]) if half]
    return max(halves) / min(halves) - 1
