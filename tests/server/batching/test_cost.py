"""What runs cost, learned from those that were timed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal_server.batching.cost import CostModel, RunCost, RunSample

# Items and length of runs.
SHAPES = ((1, 8), (4, 16), (8, 64), (2, 250))


def sample(cost: RunCost, items: int, length: int) -> RunSample:
    """A run of items of one length that follows the formula."""
    return RunSample(items, items * length, length, cost.seconds(items, items * length, length))


def test_cost_is_recovered_from_timed_runs() -> None:
    """Runs that follow the formula give back its three numbers, whatever the first guess."""
    truth = RunCost(fixed_s=1.1e-3, per_token_s=2.1e-4, per_square_s=2e-7)
    model = CostModel([sample(truth, *shape) for shape in SHAPES[:2]])
    for _ in range(200):
        for shape in SHAPES:
            model.observe(sample(truth, *shape))
    assert model.cost.fixed_s == pytest.approx(truth.fixed_s, rel=0.02)
    assert model.cost.per_token_s == pytest.approx(truth.per_token_s, rel=0.02)
    assert model.cost.per_square_s == pytest.approx(truth.per_square_s, rel=0.05)


def test_cost_follows_a_machine_that_slows_down() -> None:
    """After a few hundred runs at half the speed, predictions are of the slow machine."""
    fast, slow = RunCost(1e-3, 2e-4, 1e-7), RunCost(2e-3, 4e-4, 2e-7)
    model = CostModel([sample(fast, *shape) for shape in SHAPES])
    for _ in range(150):
        for shape in SHAPES:
            model.observe(sample(slow, *shape))
    for items, length in SHAPES:
        known = (items, items * length, length)
        assert model.cost.seconds(*known) == pytest.approx(slow.seconds(*known), rel=0.1)


@pytest.mark.parametrize(
    "seconds", [(5e-3, 6e-3, 30e-3), (5e-3, 4e-3, 3e-3), (1e-3, 100e-3, 101e-3), (0.0, 0.0, 1e-3)]
)
def test_cost_is_never_negative(seconds: tuple[float, float, float]) -> None:
    """Noise that a line fits best with a negative part does not make runs free."""
    runs = [RunSample(1, n, n, s) for n, s in zip((10, 100, 200), seconds, strict=True)]
    cost = CostModel(runs).cost
    assert min(cost.fixed_s, cost.per_token_s) > 0
    assert cost.per_square_s >= 0


def test_texts_of_one_length_leave_the_terms_plausible() -> None:
    """What such runs can not tell apart stays near the guess; long texts are not free."""
    truth = RunCost(fixed_s=3e-3, per_token_s=2e-4, per_square_s=3e-7)
    model = CostModel([sample(truth, 1, 8), sample(truth, 4, 16)])
    for _ in range(2000):
        model.observe(sample(truth, 8, 12))
    assert model.cost.seconds(1, 256, 256) == pytest.approx(truth.seconds(1, 256, 256), rel=0.5)
    assert model.cost.seconds(8, 96, 12) == pytest.approx(truth.seconds(8, 96, 12), rel=0.02)


def test_a_run_that_was_held_up_teaches_little() -> None:
    """A machine that slept in the middle of a run has not become slower."""
    truth = RunCost(1e-3, 2e-4, 1e-7)
    model = CostModel([sample(truth, *shape) for shape in SHAPES])
    for at in range(320):
        run = sample(truth, *SHAPES[at % len(SHAPES)])
        model.observe(replace(run, seconds=10.0) if at == 160 else run)
    for items, length in SHAPES:
        known = (items, items * length, length)
        assert model.cost.seconds(*known) == pytest.approx(truth.seconds(*known), rel=0.1)


@pytest.mark.parametrize("times", [5, 10])
def test_a_machine_that_became_much_slower_is_believed_in_the_end(times: int) -> None:
    """Runs far above what was expected count for less, not for nothing."""
    fast = RunCost(1e-3, 2e-4, 1e-7)
    slow = RunCost(1e-3 * times, 2e-4 * times, 1e-7 * times)
    model = CostModel([sample(fast, *shape) for shape in SHAPES])
    for at in range(3000):
        model.observe(sample(slow, *SHAPES[at % len(SHAPES)]))
    for items, length in SHAPES:
        known = (items, items * length, length)
        assert model.cost.seconds(*known) == pytest.approx(slow.seconds(*known), rel=0.2)


def test_padding_is_paid_for_unless_the_graph_is_free_of_it() -> None:
    """A padded run costs its rectangle; any other what is in it, and attention's part."""
    padded = RunCost(1e-3, 1e-4, 1e-7)
    model = CostModel([sample(padded, *shape) for shape in SHAPES])
    assert model.cost.paid_tokens(2, 110, 100) == 200
    model.set_padding_free(True)
    assert model.cost.paid_tokens(2, 110, 100) == pytest.approx(110 + 0.2 * 90)
    for _ in range(100):
        model.observe(sample(padded, 4, 16))
    assert model.cost.padding_free


def test_enough_is_where_the_fixed_part_is_a_small_share() -> None:
    """At `enough_tokens` the fixed cost is 3% of the run."""
    cost = RunCost(fixed_s=1.1e-3, per_token_s=2.1e-4)
    run_s = cost.fixed_s + cost.enough_tokens * cost.per_token_s
    assert cost.fixed_s / run_s == pytest.approx(0.03)
