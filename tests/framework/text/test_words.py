"""The words of a report and the tokens that each comes from."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tiny_models import of_bytes, save_llama

from framework.text.words import Word, pieces_of, report_confidence, whole_words
from plugins.tokenizer.hf import Hf
from plugins.tokenizer.words import Words

ENGLISH = "Left breast: an oval mass of 18 x 12 mm at 10 o'clock, BI-RADS 4A. No lesion."
CHINESE = "左乳10点钟方向见低回声结节，大小约1.8×1.2cm，BI-RADS 4A类。"


class Halves:
    """A tokenizer of which two tokens are one character, as bytes of a subword tokenizer are."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("节" if pair == (1, 2) else "\ufffd" for pair in zip(ids[::2], [*ids[1::2], 0]))


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_pieces_are_the_whole_text_and_hold_each_token_once(text: str) -> None:
    tokenizer = Words()
    tokenizer.fit([text])
    tokens = tokenizer.encode(text)[1:-1]
    pieces = pieces_of(tokens, tokenizer)
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(tokens)
    assert [place for piece in pieces for place in piece.tokens] == list(range(len(tokens)))
    assert len(pieces) == len(tokens)


def test_subwords_become_whole_words(tmp_path) -> None:
    tokenizer = Hf(weights=str(save_llama(tmp_path, of_bytes([ENGLISH]))))
    tokens = tokenizer.encode("No oval lesion. 18 mm")[1:-1]
    pieces = pieces_of(tokens, tokenizer)
    words = whole_words(pieces)
    assert len(pieces) > len(words)
    assert [word.text.strip() for word in words] == ["No", "oval", "lesion", ".", "18", "mm"]
    assert [place for word in words for place in word.tokens] == list(range(len(tokens)))


def test_tokens_of_one_character_are_one_piece() -> None:
    pieces = pieces_of([1, 2, 1, 2], Halves())
    assert [(piece.text, list(piece.tokens)) for piece in pieces] == [("节", [0, 1]), ("节", [2, 3])]


def test_a_report_without_words_has_none() -> None:
    assert pieces_of([], Halves()) == [] and whole_words([]) == []


def test_a_report_has_the_geometric_mean_of_the_confidence_of_its_words() -> None:
    words = [Word("a", 0, 0.5, None), Word("b", 2, 0.125, None)]
    assert report_confidence(words) == pytest.approx(0.25)
    assert report_confidence([Word("a", 0, 0.0, None)]) < 1e-6 and report_confidence([]) == 0
