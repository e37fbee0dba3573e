"""What everybody counted on this side of the wire, and what should not have been."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from loadtests.soak.documented import Failure


@dataclass(slots=True)
class Ledger:
    """Of one soak, from the server's first request to its last."""

    rpcs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls, by method and gRPC code."""
    stream_requests: Counter[str] = field(default_factory=Counter)
    """Requests on EmbedStreams, by gRPC code."""
    answered: Counter[str] = field(default_factory=Counter)
    """Requests for vectors that were answered, by the version that the answer names."""
    items: Counter[str] = field(default_factory=Counter)
    """Vectors, by version."""
    tokens: Counter[str] = field(default_factory=Counter)
    """Tokens of their texts, by version."""
    failed: Counter[Failure] = field(default_factory=Counter)
    """Requests for vectors that were not answered."""
    updates: int = 0
    """UpdateModels that let a name mean another version."""
    problems: Counter[str] = field(default_factory=Counter)
    """What the API does not document, in words."""

    @property
    def asked(self) -> int:
        """Requests for vectors, whatever became of them."""
        return self.answered.total() + self.failed.total()
