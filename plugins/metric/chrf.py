"""chrF and chrF++: F-score of character n-grams, which gives credit for words in another form."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from pydantic import NonNegativeInt

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import ngrams, safe_divide
from framework.scoring.pairs import require_references, warn_empty_predictions
from framework.scoring.scorer import CHARACTER

CHARACTERS = 6  # largest character n-gram
BETA = 2.0  # recall counts twice as much as precision
PUNCTUATION = frozenset(string.punctuation)

Ngram = tuple[str, ...]


@register("metric", "chrf")
class Chrf:
    """F-score of character n-grams of 1 to 6 (chrF), and of word n-grams beside them (chrF++). 0 to 1.

    Hits are summed over the split; precision and recall are means over the orders that both texts have; recall counts
    twice. Equal to sacrebleu's chrF divided by 100, except that a mask such as _2DS_ is one character and one word.
    It scores the texts, not a tokenizer's words, and is case-sensitive.

    Args:
        words: Largest word n-gram beside the character n-grams; 2 is chrF++. Words are separated by spaces and lose
            punctuation at one end, so this adds nothing for Chinese.

    Source:
        Popović 2015, WMT, "chrF: character n-gram F-score"; Popović 2017, WMT, "chrF++: words helping character
        n-grams".
    """

    names = ("chrf",)
    by_words = False
    higher_is_better = True

    def __init__(self, *, words: NonNegativeInt = 0) -> None:
        self.words = words

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split` or `empty-report`."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        warn_empty_predictions("chrF", pairs, by_words=False)
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report and n-gram order: n-grams of the prediction, of the reference, and matches."""
        require_references("chrF", pairs, by_words=False)
        rows_ELK = np.zeros((len(pairs), CHARACTERS + self.words, 3))
        for pair, row_LK in zip(pairs, rows_ELK):
            predicted, reference = _ngrams(pair.prediction, self.words), _ngrams(pair.reference, self.words)
            for counts_K, own, theirs in zip(row_LK, predicted, reference):
                matches = sum(min(count, theirs[ngram]) for ngram, count in own.items() if ngram in theirs)
                # An order for which the reference is too short counts in neither text.
                counts_K[:] = own.total() if theirs else 0, theirs.total(), matches
        return rows_ELK.reshape(len(pairs), -1)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """chrF from sums over exams, [..., 3 times the orders]."""
        predicted, reference, matches = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
        orders = np.maximum(((predicted > 0) & (reference > 0)).sum(-1), 1)
        precision, recall = (safe_divide(matches, ngrams).sum(-1) / orders for ngrams in (predicted, reference))
        return {"chrf": safe_divide((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)}


@lru_cache(maxsize=4096)  # text-only baselines score the same references again
def _ngrams(text: str, words: int) -> tuple[Counter[Ngram], ...]:
    """Counts of the n-grams of each order: characters, then words."""
    characters = CHARACTER.findall(text)
    counted = [Counter(ngrams(characters, length)) for length in range(1, CHARACTERS + 1)]
    if words:
        split = [part for word in text.split() for part in _without_punctuation(word)]
        counted += [Counter(ngrams(split, length)) for length in range(1, words + 1)]
    return tuple(counted)


def _without_punctuation(word: str) -> tuple[str, ...]:
    """Splits off a punctuation mark at the end of a word, or else at its start."""
    if len(word) == 1 or CHARACTER.fullmatch(word):
        return (word,)
    if word[-1] in PUNCTUATION:
        return word[:-1], word[-1]
    return (word[0], word[1:]) if word[0] in PUNCTUATION else (word,)
