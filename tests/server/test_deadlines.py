"""What a cancelled call is counted as."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from shoal_server.deadlines import has_passed
from shoal_server.embed_request import EmbedRequest, RequestLimits
from shoal_server.embedder import Embedder
from shoal_server.registry.meanings import Meanings
from shoal_server.statistics.statistics import Statistics


def test_grpcs_clock_may_be_a_little_early() -> None:
    """By a hundredth of the time that the call had, and some milliseconds."""
    assert has_passed(110.0, began_s=100.0, now_s=110.0)
    assert has_passed(110.0, began_s=100.0, now_s=109.9)
    assert not has_passed(110.0, began_s=100.0, now_s=109.0)
    assert not has_passed(None, began_s=100.0, now_s=1e9)


class NeverResolves:
    """A registry that takes its time."""

    def __init__(self) -> None:
        self.meanings = Meanings("")

    async def resolve(self, name: str, key: str) -> None:
        """For ever."""
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("left_s", "reason"), [(0.0, "DEADLINE_EXCEEDED"), (1000.0, "CANCELLED"), (None, "CANCELLED")]
)
async def test_a_deadline_that_grpc_ended_is_counted_as_one(
    left_s: float | None, reason: str
) -> None:
    """The statistics tell callers that were late from those that left."""
    statistics = Statistics(window_s=60, max_callers=1, clock=time.monotonic)
    nothing = cast(Any, None)
    embedder = Embedder(
        registry=cast(Any, NeverResolves()),
        limits=RequestLimits(1, 100, 100, 100),
        statistics=statistics,
        admission=nothing,
        pool=nothing,
        placement=nothing,
        tokenize_executor=nothing,
        metrics=nothing,
        rate_limits=nothing,
        history=nothing,
        deprecations=nothing,
    )
    deadline_s = None if left_s is None else time.monotonic() + left_s
    request = EmbedRequest("", 1, texts=["a"], deadline_s=deadline_s)
    asking = asyncio.create_task(embedder.embed(request))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert dict(statistics.of_model(None).since_start.errors) == {reason: 1}
