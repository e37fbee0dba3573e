"""The texts that are sent have the lengths they should, and are always the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from loadtests import workloads
from loadtests.workloads import BLOCK, SPECS, Workload, make_workload


def count_words(texts: Sequence[str]) -> list[int]:
    """A tokenizer that counts words, and two special tokens."""
    return [len(text.split()) + 2 for text in texts]


@pytest.fixture(scope="module", params=SPECS)
def workload(request: pytest.FixtureRequest) -> Workload:
    return make_workload(SPECS[request.param], count_words)


def test_every_text_has_a_length_of_its_workload(workload: Workload) -> None:
    """No text is shorter or longer than the workload says, special tokens counted."""
    spec = SPECS[workload.name]
    assert len(workload.texts) == spec.texts
    assert list(workload.token_counts) == count_words(workload.texts)
    assert min(workload.token_counts) >= spec.shortest
    assert max(workload.token_counts) <= spec.longest


def test_every_block_holds_the_whole_distribution(workload: Workload) -> None:
    """Two windows that saw different blocks saw about the same lengths."""
    counts = workload.token_counts
    means = [sum(counts[at : at + BLOCK]) / BLOCK for at in range(0, len(counts), BLOCK)]
    assert max(means) - min(means) < 0.25 * workload.mean_tokens


def test_the_same_texts_every_time() -> None:
    """Nothing depends on when or where the texts are made."""
    spec = SPECS["short"]
    assert make_workload(spec, count_words).fingerprint == (
        make_workload(spec, count_words).fingerprint
    )


def test_mixed_is_log_uniform() -> None:
    """Half of the texts are shorter than the geometric mean of the bounds."""
    spec = SPECS["mixed"]
    assert spec.length_at(0.5) == pytest.approx((6 * 257) ** 0.5, abs=1)
    assert spec.length_at(0.0) == 6
    assert spec.length_at(0.999999) == 256


def test_a_tokenizer_that_does_not_count_by_word_is_told() -> None:
    """Lengths that come out wrong are an error, not a workload of other lengths."""

    def count_more(texts: Sequence[str]) -> list[int]:
        return [2 * count if count > 12 else count for count in count_words(texts)]

    with pytest.raises(ValueError, match="word by word"):
        make_workload(SPECS["short"], count_more)


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("Return the number of items that wait in the queue.", True),
        ("Too short.", False),
        ("Return the number of items that wait in the queue", False),
        (">>> queue.size() returns the number of items that wait.", False),
        ("x = 1; y == 2 -> z[3] += f(4) # 5.", False),
    ],
)
def test_prose_is_told_from_code(text: str, prose: bool) -> None:
    """Code and fragments are left out."""
    assert workloads._is_prose(text) == prose
