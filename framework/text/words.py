"""The words of a generated report: which tokens each comes from, how sure the model is of it, and where it looked.

Shapes: V views, h w cells of a view's map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from framework.text.segmentation import is_cjk

LEAST = 1e-9  # confidence of a word in the mean of a report


@dataclass(frozen=True, eq=False)
class Word:
    """A word of a generated report: what stands between two spaces or, in Chinese, a token.

    Attributes:
        start: its place in the report's text.
        confidence: probability of the word after those before it, 0 to 1: the product over its tokens. At the model's
            temperature, if it is calibrated.
        attention: what the model reads of each patch, float32 [V, h, w], with a sum of 1 over all views: the mean over
            its tokens. V is 1 if the encoder pools the views. None if the decoder has no attention to the patches.
    """

    text: str
    start: int
    confidence: float
    attention: np.ndarray | None


def report_confidence(words: Sequence[Word]) -> float:
    """How sure a model is of a whole report: the geometric mean of the confidence of its words; 0 without words.

    Source:
        Malinin and Gales 2021, arXiv 2002.07650, section 3 (length-normalized log-likelihood), here of words.
    """
    if not words:
        return 0.0
    return math.exp(sum(math.log(max(word.confidence, LEAST)) for word in words) / len(words))


class Piece(NamedTuple):
    """A part of a report's text, and the tokens that it comes from."""

    text: str
    tokens: range


def pieces_of(tokens: Sequence[int], tokenizer: Any) -> list[Piece]:
    """The report's text cut at its tokens. A token that has no text of its own, such as half of a character, joins the
    next one.
    """
    whole = tokenizer.decode(tokens)
    pieces: list[Piece] = []
    done, first = "", 0
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:end]) if end < len(tokens) else whole
        if whole.startswith(text) and len(text) > len(done):
            pieces.append(Piece(text[len(done) :], range(first, end)))
            done, first = text, end
    if pieces and first < len(tokens):  # special tokens at the end
        pieces[-1] = Piece(pieces[-1].text, range(pieces[-1].tokens.start, len(tokens)))
    return pieces


def whole_words(pieces: Sequence[Piece]) -> list[Piece]:
    """Joins the subwords of a word: letters to letters, and digits to digits."""
    words = list(pieces[:1])
    for before, piece in pairwise(pieces):
        if _within_word(before.text[-1], piece.text[0]):
            words[-1] = Piece(words[-1].text + piece.text, range(words[-1].tokens.start, piece.tokens.stop))
        else:
            words.append(piece)
    return words


def _within_word(last: str, first: str) -> bool:
    letters = last.isalpha() and first.isalpha() and not is_cjk(last) and not is_cjk(first)
    return letters or (last.isdigit() and first.isdigit())
