"""Threads that run models count denormal numbers as zero; others do not."""

from __future__ import annotations

import platform
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from shoal_server.inference.denormals import flush_denormals

KNOWN = sys.platform == "linux" and platform.machine() == "x86_64"


def smallest_product() -> float:
    """Below float32's normal range; zero where such numbers are flushed."""
    return float(np.multiply(np.float32(1e-30), np.float32(1e-10)))


@pytest.mark.skipif(not KNOWN, reason="left as it is on other machines")
def test_it_holds_for_the_thread_that_asked() -> None:
    """And for no other: Python's own numbers stay what they are."""
    with ThreadPoolExecutor(1, initializer=flush_denormals) as threads:
        assert threads.submit(smallest_product).result() == 0.0
    assert smallest_product() > 0.0


def test_ordinary_numbers_are_not_touched() -> None:
    """Sums and products round as before."""
    draw = np.random.default_rng(1)
    numbers = draw.standard_normal(1000).astype(np.float32)

    def work() -> bytes:
        return (np.outer(numbers, numbers) + numbers).tobytes()

    with ThreadPoolExecutor(1, initializer=flush_denormals) as threads:
        assert threads.submit(work).result() == work()
