"""The runs right after loading: no caller pays for the first of a kind, and costs are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from shoal_server.batching.cost import CostModel, RunSample
from shoal_server.inference.backend import Backend
from shoal_server.inference.buckets import Shape

# (items, tokens) on the CPU: the first warms up, the others are timed.
_ON_CPU = ((1, 8), (1, 8), (4, 16))
# A load takes as much longer at most. What was not met by then is when it first comes.
_WARM_UP_S = 2.0
_TIMED_TRIES = 2


def warm_up(backend: Backend, token_id: int, max_tokens: int) -> CostModel:
    """Run once so that the first caller does not pay for it, then learn the cost of runs.

    Args:
        backend: Freshly opened, on the CPU.
        token_id: A valid one.
        max_tokens: The model's maximum.
    """
    samples = [
        _run(backend, token_id, (items, min(length, max_tokens))) for items, length in _ON_CPU
    ]
    return CostModel(samples[1:])


def warm_up_shapes(
    backend: Backend,
    token_id: int,
    shapes: Sequence[Shape],
    *,
    runs_at_once: int,
    clock: Callable[[], float] = time.monotonic,
) -> CostModel:
    """Run batches of every shape, as many as there is time for, then learn the cost of runs.

    The largest goes first: memory then grows once. After it come shapes that are spread
    over all there are, then those between them: where time is short, whatever comes later
    has at least met its like.

    Args:
        backend: Freshly opened, on a GPU.
        token_id: A valid one.
        shapes: The largest first; at least one.
        runs_at_once: How many runs there will be; each shape is run so often, for each
            run has buffers of its own.
        clock: In seconds.
    """
    ends_s = clock() + _WARM_UP_S
    with ThreadPoolExecutor(runs_at_once, thread_name_prefix="shoal-warm-up") as threads:
        # At once, so that each has its stream.
        list(threads.map(lambda _: _run(backend, token_id, shapes[0]), range(runs_at_once)))
    for shape in _spread(shapes[1:]):
        if clock() >= ends_s:
            break
        for _ in range(runs_at_once):
            _run(backend, token_id, shape)
    timed = {shapes[0], shapes[len(shapes) // 4], shapes[len(shapes) // 2], shapes[-1]}
    return CostModel([_best(backend, token_id, shape) for shape in sorted(timed)])


def _spread(shapes: Sequence[Shape]) -> Iterator[Shape]:
    """All of them, ever closer ones: every 16th, then every 8th that is left, and so on."""
    left = list(shapes)
    for stride in (16, 8, 4, 2, 1):
        yield from left[::stride]
        left = [shape for place, shape in enumerate(left) if place % stride]


def _best(backend: Backend, token_id: int, shape: Shape) -> RunSample:
    tries = [_run(backend, token_id, shape) for _ in range(_TIMED_TRIES)]
    return min(tries, key=lambda sample: sample.seconds)


def _run(backend: Backend, token_id: int, shape: Shape) -> RunSample:
    items, length = shape
    result = backend.run([[token_id] * length] * items, [False] * items)
    return RunSample(items, result.computed_tokens, length, result.seconds)
