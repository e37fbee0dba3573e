"""The shapes that batches are padded to: few, and not much larger than what they hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal_server.inference.buckets import Buckets

LENGTHS = st.integers(1, 8192)
ITEMS = st.integers(1, 2048)


@given(ITEMS, LENGTHS, st.integers(0, 200))
def test_a_bucket_holds_its_batch(items: int, length: int, more: int) -> None:
    """And is no longer than the model takes, which may be what its position table holds."""
    max_length = length + more
    padded_items, padded_length = Buckets(max_length).of(items, length)
    assert padded_items >= items
    assert length <= padded_length <= max_length


@given(ITEMS, LENGTHS)
def test_a_bucket_is_its_own(items: int, length: int) -> None:
    """A batch that has a bucket's shape is not padded."""
    buckets = Buckets(10_000)
    shape = buckets.of(items, length)
    assert buckets.of(*shape) == shape


@given(st.integers(65, 2048), st.integers(65, 8192))
def test_large_batches_are_padded_by_an_eighth_at_most(items: int, length: int) -> None:
    """Each way; small ones may be padded more, for they cost what a run costs at least."""
    padded_items, padded_length = Buckets(10_000).of(items, length)
    assert padded_items - items < padded_items / 8
    assert padded_length - length < padded_length / 8


@given(ITEMS, LENGTHS)
def test_larger_batches_have_larger_buckets(items: int, length: int) -> None:
    """One more item or token never leads to a smaller shape."""
    buckets = Buckets(10_000)
    padded_items, padded_length = buckets.of(items, length)
    assert buckets.of(items + 1, length)[0] >= padded_items
    assert buckets.of(items, length + 1)[1] >= padded_length


@given(
    st.integers(1, 256),
    st.integers(1, 16384),
    st.integers(1, 512),
    st.data(),
)
def test_every_batch_has_one_of_all_shapes(
    max_items: int, max_tokens: int, max_length: int, data: st.DataObject
) -> None:
    """Whatever the policy may form; a single item may be above the budget of tokens."""
    length = data.draw(st.integers(1, max_length))
    items = data.draw(st.integers(1, min(max_items, max(1, max_tokens // length))))
    buckets = Buckets(max_length)
    assert buckets.of(items, length) in buckets.all(max_items, max_tokens)


def test_there_are_few_and_the_largest_comes_first() -> None:
    """So that they can be met at load, and memory grows once."""
    shapes = Buckets(256).all(max_items=32, max_tokens=8192)
    assert shapes[0] == (32, 256)
    assert len(shapes) == len(set(shapes)) <= 200
    sizes = [items * length for items, length in shapes]
    assert sizes == sorted(sizes, reverse=True)
