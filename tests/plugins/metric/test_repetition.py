"""Repeated n-grams and sentences, counted by hand."""

from __future__ import annotations

from pairs import pair

from framework.exam import Pair
from framework.text.segmentation import split_words
from plugins.metric.repetition import Repetition


def test_repeated_4grams_and_sentences_are_counted() -> None:
    pairs = [
        pair(0, "no mass is seen and no mass is seen", "no mass is seen here"),  # a 4-gram twice
        pair(1, "A cyst. A  cyst. No mass. a cyst.", "A cyst. A cyst."),  # two of four sentences
        pair(2, "no mass is no mass is", "no mass"),  # only 3-grams repeat
        pair(3, "", "no mass"),
    ]
    values = Repetition()(pairs)
    assert values["repeated_4gram"] == 1 / 4 and values["repeated_4gram/references"] == 0
    assert values["repeated_sentence"] == 2 / 6 and values["repeated_sentence/references"] == 1 / 5


def test_repeated_chinese_sentences_are_found_and_a_decimal_point_ends_no_sentence() -> None:
    pairs = [pair(0, "左乳见结节，约1.2cm。左乳见结节，约1.2cm。右乳正常", "左乳见结节，约1.2cm。")]
    assert Repetition()(pairs)["repeated_sentence"] == 1 / 3


def test_repetition_counts_the_words_of_the_tokenizer() -> None:
    words = tuple(split_words("双乳未见明显结节。双乳未见明显结节。双乳未见明显结节。"))
    looping = Pair("0", "", "a", words, ("a",))
    assert Repetition()([looping])["repeated_4gram"] == 1
