"""Profiling a model: the answers, up to the profile. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.v1.profile_pb2 import ModelProfile, ProfileModelResponse

Progress = Callable[[int, int], None]
"""Called with how many batches are done with, of how many."""


class ProfileAnswers:
    """The answers of one call, one after the other."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self._total = 0

    def take(self, answer: ProfileModelResponse) -> ModelProfile | None:
        """Note an answer; returns the profile if it is that."""
        match answer.WhichOneof("answer"):
            case "plan":
                self._total = answer.plan.cells
            case "cell" | "skipped":
                self._done += 1
            case "profile":
                return answer.profile
            case _:  # of a later server
                return None
        if self._progress is not None:
            self._progress(self._done, self._total)
        return None
