"""chrF and chrF++: agreement on runs of characters, so that a word in another form is not all wrong."""

from __future__ import annotations

import string
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from pydantic import NonNegativeInt

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import ngrams, share
from framework.scoring.scorer import CHARACTER

CHARACTERS = 6  # the longest run of characters
BETA = 2.0  # recall counts twice as much as precision
PUNCTUATION = frozenset(string.punctuation)

Ngram = tuple[str, ...]


@register("metric", "chrf")
class Chrf:
    """Agreement on runs of 1 to 6 characters (chrF), and of words beside them (chrF++), over the whole split.

    Precision and recall are the means over the lengths of runs that both texts have, of hits summed over the split;
    recall counts twice. Equal to sacrebleu's chrF divided by 100, but that a mask such as _2DS_ is one character and
    one word. It looks at the texts, not at a tokenizer's words; large and small letters differ. 0 to 1.

    Args:
        words: Longest run of words beside those of characters; 2 is chrF++. Words are what stands between spaces,
            without punctuation at one end, so that for Chinese it says nothing more.

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
        """Raises `ValueError` for no pairs, or an empty reference."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        empty = sum(not pair.prediction.strip() for pair in pairs)
        if empty:
            warnings.warn(
                f"chrF: {empty} of {len(pairs)} predictions are empty; they count, and lower the score", stacklevel=2
            )
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of each report, for each length of runs: runs of the prediction, of the reference, and those of both."""
        if not pairs:
            raise ValueError("chrF of no reports: the split is empty")
        rows_ELK = np.zeros((len(pairs), CHARACTERS + self.words, 3))
        for pair, row_LK in zip(pairs, rows_ELK):
            if not pair.reference.strip():
                raise ValueError(f"chrF: the reference of exam {pair.exam_id} is empty")
            told, true = _runs(pair.prediction, self.words), _runs(pair.reference, self.words)
            for counts_K, own, theirs in zip(row_LK, told, true):
                both = sum(min(count, theirs[run]) for run, count in own.items() if run in theirs)
                # Runs that a reference is too short for count in neither text.
                counts_K[:] = own.total() if theirs else 0, theirs.total(), both
        return rows_ELK.reshape(len(pairs), -1)

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The value of sums over exams, [..., 3 times the lengths of runs]."""
        told, true, both = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
        lengths = np.maximum(((told > 0) & (true > 0)).sum(-1), 1)
        precision, recall = (share(both, runs).sum(-1) / lengths for runs in (told, true))
        parts = BETA**2 * precision + recall
        return {"chrf": share((1 + BETA**2) * precision * recall, parts)}


@lru_cache(maxsize=4096)  # the references of a split come again for every text-only floor
def _runs(text: str, words: int) -> tuple[Counter[Ngram], ...]:
    """How often each run stands in a text, apart for each length: characters, then words."""
    characters = CHARACTER.findall(text)
    counted = [Counter(ngrams(characters, length)) for length in range(1, CHARACTERS + 1)]
    if words:
        split = [part for word in text.split() for part in _without_punctuation(word)]
        counted += [Counter(ngrams(split, length)) for length in range(1, words + 1)]
    return tuple(counted)


def _without_punctuation(word: str) -> tuple[str, ...]:
    """A word and the mark at its end, or else at its beginning."""
    if len(word) == 1 or CHARACTER.fullmatch(word):
        return (word,)
    if word[-1] in PUNCTUATION:
        return word[:-1], word[-1]
    return (word[0], word[1:]) if word[0] in PUNCTUATION else (word,)
