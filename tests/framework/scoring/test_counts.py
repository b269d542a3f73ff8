"""N-grams counted in arrays equal those counted one by one."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np

from framework.scoring.counts import NgramCounter, clipped, ngrams


def texts(count: int, words: str, seed: int) -> list[tuple[str, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.choices(words, k=draw.randrange(9))) for _ in range(count)]


def test_counts_and_clipped_counts_equal_those_of_python() -> None:
    references, predictions = texts(40, "abc", 1), texts(40, "abcde", 2)
    counter = NgramCounter(references, 4)
    both = zip(counter.count(predictions), counter.references, strict=True)
    for order, (written, expected) in enumerate(both, 1):
        minimum = np.asarray(clipped(written, expected).sum(1)).ravel()
        for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            own, theirs = Counter(ngrams(prediction, order)), Counter(ngrams(reference, order))
            assert sorted(written[row].data) == sorted(own.values())
            assert minimum[row] == sum((own & theirs).values())


def test_an_ngram_that_no_reference_has_is_the_same_in_every_text() -> None:
    counter = NgramCounter([("a", "b")], 2)
    first, second = counter.count([("a", "x", "y", "x", "y"), ("x", "y")])
    assert first.toarray().tolist() == [[1, 0, 2, 2], [0, 0, 1, 1]]
    assert sorted(second[0].data) == [1, 1, 2] and second[1].nnz == 1
    assert second[0, second[1].indices[0]] == 2, "x y"
