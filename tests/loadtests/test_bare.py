"""How the bare limit cuts batches."""

from __future__ import annotations

from loadtests.bare import Layout, _batches


def lengths(batch_tokens: int, *sequences: int) -> list[list[int]]:
    """Lengths of the batches of sequences of these lengths."""
    made = _batches([[0] * length for length in sequences], batch_tokens)
    return [[len(sequence) for sequence in batch] for batch in made]


def test_batches_stay_within_their_tokens_padding_included() -> None:
    """Three of length 4 are 12 tokens; a fourth of 5 would make them 20."""
    assert lengths(16, 3, 4, 4, 5) == [[3, 4, 4], [5]]


def test_a_long_text_runs_alone() -> None:
    """Above the budget it still runs."""
    assert lengths(16, 3, 40, 41) == [[3], [40], [41]]


def test_a_layout_says_what_it_is() -> None:
    """As it stands in reports."""
    assert str(Layout(2, 1, 256)) == "2 × 1 thread, 256 tokens a batch"
