"""What all who take part in a soak share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtests.bare import Float32
from loadtests.soak.ledger import Ledger
from loadtests.soak.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Means:
    """A fact of the timeline: a name stands for a version, maybe beside others."""

    name: str
    version: str


@dataclass(slots=True)
class Scene:
    """Of one soak. Belongs to the event loop's thread."""

    texts: Sequence[str]
    vectors: dict[str, Float32]
    """Of the texts, by version."""
    popular: Sequence[str]
    """Names that are asked for just now."""
    timeline: Timeline = field(default_factory=Timeline)
    ledger: Ledger = field(default_factory=Ledger)
