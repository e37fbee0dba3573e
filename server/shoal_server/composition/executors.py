"""Threads for what would hold up the event loop."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

from shoal_server.inference.denormals import flush_denormals

_THREADS_START_S = 10.0


def open_executor(threads: int, name: str, exits: AsyncExitStack) -> ThreadPoolExecutor:
    """Start so many threads; `exits` ends them."""
    executor = ThreadPoolExecutor(
        threads, thread_name_prefix=f"shoal-{name}", initializer=flush_denormals
    )
    exits.callback(executor.shutdown, wait=False, cancel_futures=True)
    # Start them now: a limit on threads must end the start, not lose a batch later.
    started = threading.Barrier(threads + 1)
    for _ in range(threads):
        executor.submit(started.wait, _THREADS_START_S)
    started.wait(_THREADS_START_S)
    return executor
