"""Pools for tests, closed and checked when the test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from .fakes import Bench

MakeBench = Callable[..., Bench]


@pytest.fixture
async def make_bench() -> AsyncIterator[MakeBench]:
    """Makes benches (same arguments); after the test their books must balance."""
    benches: list[Bench] = []

    def make(**options: object) -> Bench:
        benches.append(Bench(**options))  # type: ignore[arg-type]
        return benches[-1]

    yield make
    for bench in benches:
        await bench.shut_down()
