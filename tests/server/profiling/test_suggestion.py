"""From cells to limits of a batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal_server.profiling.plan import Shape
from shoal_server.profiling.profile import Cell, NoSuggestion, Suggestion, make_cell
from shoal_server.profiling.suggestion import GOOD, suggest


def cell(items: int, length: int, items_per_s: float, memory_bytes: int | None = None) -> Cell:
    return make_cell(Shape(items, length), [items / items_per_s], memory_bytes)


def suggested(*cells: Cell, room_bytes: int | None = None, slots: int = 2) -> Suggestion:
    found = suggest(cells, slots=slots, room_bytes=room_bytes)
    assert isinstance(found, Suggestion)
    return found


def limits(found: Suggestion) -> tuple[int, int]:
    return found.max_batch_items, found.max_batch_tokens


def test_the_smallest_batch_that_is_as_good_as_the_best() -> None:
    """96% is, 94% is not."""
    found = suggested(cell(1, 10, 94), cell(2, 10, 96), cell(4, 10, 100), cell(8, 10, 99))
    assert limits(found) == (2, 20)


def test_batches_are_compared_by_their_fastest_runs() -> None:
    """Whatever held the others up."""
    held_up = make_cell(Shape(1, 10), [1.0, 1.0, 7.0, 7.0], None)
    assert limits(suggested(held_up, make_cell(Shape(2, 10), [2.0, 2.0, 2.0], None))) == (1, 10)


def noisy(items: int, items_per_s: float, noise: float, length: int = 10) -> Cell:
    fastest_s = items / items_per_s
    return make_cell(Shape(items, length), [fastest_s, fastest_s * (1 + noise)], None)


def test_a_difference_within_the_noise_is_none() -> None:
    """A batch that is 8% slower is as good as the best when both are known to 4.5%."""
    assert limits(suggested(noisy(1, 92, 0.045), noisy(2, 100, 0.045))) == (1, 10)
    assert limits(suggested(noisy(1, 92, 0.035), noisy(2, 100, 0.035))) == (2, 20)


def test_a_batch_that_is_all_noise_is_not_as_good() -> None:
    """Too low a limit would cost throughput."""
    assert limits(suggested(noisy(1, 92, 0.2), noisy(2, 100, 0.0))) == (2, 20)


def test_nothing_is_concluded_from_noise() -> None:
    """Neither for a length of which the best batch is noisy, nor where there are only such."""
    found = suggested(noisy(1, 90, 0.0), noisy(2, 10, 0.0), noisy(8, 100, 0.3, length=20))
    assert limits(found) == (1, 10)
    assert any(reason.startswith("At 20 tokens the noise") for reason in found.reasons)
    none = suggest([noisy(1, 90, 0.3)], slots=1, room_bytes=None)
    assert isinstance(none, NoSuggestion) and "noise" in none.reason


def test_a_reason_tells_of_one_batch_all_that_was_measured() -> None:
    """Throughput and time are of the same run, the fastest; beside it how far the others were."""
    chosen = make_cell(Shape(2, 10), [0.020, 0.021, 0.024, 0.030], None)
    best = make_cell(Shape(4, 10), [0.039, 0.039], None)
    reason = suggested(chosen, best).reasons[0]
    assert "2 x 10 tokens, whose fastest of 4 runs took 20 ms (100 items/s, noise 5.0%" in reason
    assert "median 22.5 ms, p95 30 ms)" in reason
    assert "98% of the items/s of 4 x 10 tokens" in reason


def test_short_texts_decide_the_items_and_long_ones_the_tokens() -> None:
    """Each length gets its batch."""
    found = suggested(
        *(cell(1, 8, 10), cell(8, 8, 70), cell(16, 8, 100)),
        *(cell(1, 100, 50), cell(2, 100, 100), cell(4, 100, 101)),
    )
    assert limits(found) == (16, 200)


MEASURED = st.dictionaries(
    st.tuples(st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([8, 32, 128])),
    st.floats(1.0, 1000.0),
    min_size=1,
)


@given(MEASURED)
def test_every_length_gets_a_good_batch(measured: dict[tuple[int, int], float]) -> None:
    """The limits let one in that has 95% of the best, and lower ones would not."""
    cells = [cell(*shape, items_per_s) for shape, items_per_s in measured.items()]
    max_items, max_tokens = limits(suggested(*cells))

    def all_get_one(most_items: int, most_tokens: int) -> bool:
        return all(
            any(
                each.shape.items <= most_items
                and each.shape.tokens <= most_tokens
                and each.items_per_s
                >= GOOD * max(other.items_per_s for other in cells if other.shape.length == length)
                for each in cells
                if each.shape.length == length
            )
            for length in {each.shape.length for each in cells}
        )

    assert all_get_one(max_items, max_tokens)
    assert not all_get_one(max_items - 1, max_tokens)
    assert not all_get_one(max_items, max_tokens - 1)


def test_what_does_not_fit_into_memory_is_not_suggested() -> None:
    """Every slot may hold such a batch at once."""
    cells = (cell(1, 10, 50, 10), cell(2, 10, 100, 20), cell(4, 10, 200, 40))
    assert limits(suggested(*cells, room_bytes=80, slots=2)) == (4, 40)
    assert limits(suggested(*cells, room_bytes=79, slots=2)) == (2, 20)
    assert limits(suggested(*cells, room_bytes=79, slots=1)) == (4, 40)
    assert isinstance(suggest(cells, slots=2, room_bytes=0), NoSuggestion)
    assert isinstance(suggest([], slots=2, room_bytes=None), NoSuggestion)


def test_limits_let_no_batch_in_that_does_not_fit() -> None:
    """Short texts need many items, of which long ones would take too much memory."""
    cells = (
        *(cell(1, 10, 10, 1), cell(8, 10, 100, 1)),
        *(cell(1, 70, 100, 10), cell(2, 70, 101, 10)),
    )
    found = suggest(cells, slots=1, room_bytes=20, too_much=[Shape(1, 80), Shape(4, 19)])
    assert isinstance(found, Suggestion)
    assert limits(found) == (8, 75)
    assert any("memory" in reason for reason in found.reasons)


def test_it_says_where_larger_batches_might_be_better() -> None:
    """At lengths whose largest batch that was measured is the one suggested."""
    cells = (cell(1, 10, 50), cell(2, 10, 100), cell(1, 20, 100), cell(2, 20, 100))
    assert any(reason.startswith("At 10 tokens") for reason in suggested(*cells).reasons)
    grown = (*cells, cell(4, 10, 100))
    assert not any("larger" in reason for reason in suggested(*grown).reasons)


def test_texts_that_run_alone() -> None:
    """There is nothing to choose, whatever the noise, and it says why."""
    found = suggest([noisy(1, 50, 3.0)], slots=1, room_bytes=None, alone=True)
    assert isinstance(found, Suggestion)
    assert any("alone" in reason for reason in found.reasons)
