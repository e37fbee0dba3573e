"""What the batching policy costs per item, with few and with many items waiting.

    python -m loadtests.policy_cost

Forming a batch and removing its items is counted. The queue is kept at its length: what a
decision takes out is put in again as newer items.
"""

from __future__ import annotations

import random
import time
from typing import cast

from loadtests.results import PolicyCost
from shoal_server.batching.cost import RunCost
from shoal_server.batching.load import Load
from shoal_server.batching.policy import BatchLimits, Layout, decide
from shoal_server.batching.queue import Item, WaitingItems
from shoal_server.batching.submission import Submission
from shoal_server.core import Priority

FEW, MANY = 100, 100_000
_ITEMS, _ROUNDS = 1_500, 5
_LIMITS = BatchLimits(max_items=32, max_tokens=8192, max_padding_waste=0.1, max_wait_s=0.005)
# About all-MiniLM-L6-v2 on one core (docs/performance.md).
_COST = RunCost(fixed_s=1e-3, per_token_s=220e-6, per_square_s=3.5e-7, padding_free=True)
_LOAD = Load(last_arrival_s=0.0, next_s=1e-3)
_LAYOUT = Layout(free_slots=1, slots=2)


def measure_policy_cost() -> PolicyCost:
    """CPU time per item at each length of the queue."""
    return PolicyCost(_us_per_item(FEW), _us_per_item(MANY), FEW, MANY)


def _us_per_item(waiting_items: int) -> float:
    """Best of some rounds over the same queue: noise only adds."""
    rng = random.Random(waiting_items)
    waiting = WaitingItems()
    now_s = 0.0

    def arrive(count: int) -> None:
        nonlocal now_s
        for _ in range(count):
            now_s += 1e-3
            ids = [0] * rng.randrange(6, 257)
            nobody = cast(Submission, None)
            waiting.add(Item(ids, 0, nobody, now_s, now_s, Priority.NORMAL))

    def round_us() -> float:
        done, spent_s = 0, 0.0
        while done < _ITEMS:
            began_s = time.thread_time()
            items = decide(waiting, now_s, _LIMITS, _COST, _LOAD, _LAYOUT).items
            for item in items:
                waiting.remove(item)
            spent_s += time.thread_time() - began_s
            done += len(items)
            arrive(len(items))
        return spent_s / done * 1e6

    arrive(waiting_items)
    return min(round_us() for _ in range(_ROUNDS))


if __name__ == "__main__":
    cost = measure_policy_cost()
    print(f"{cost.few} waiting: {cost.us_with_few_waiting:.2f} µs an item")
    print(f"{cost.many} waiting: {cost.us_with_many_waiting:.2f} µs an item")
    print(f"ratio {cost.us_with_many_waiting / cost.us_with_few_waiting:.2f}")
