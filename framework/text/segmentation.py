"""Cuts reports in English and Chinese into words: the same for training, topics and scores, whatever numbers them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import rjieba

TERMS = Path(__file__).with_name("ultrasound_zh.txt")
CJK = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
LETTER = rf"(?:(?![{CJK}])[^\W\d_])"

# Tried from top to bottom at each place of a text.
TOKEN = re.compile(
    rf"""
      _[A-Za-z0-9]+_                                   # a masked measure, such as _2DS_
    | (?:BI|TI|LI)-?RADS                               # without the category, so that BI-RADS4A is two words
    | \d+[A-Da-d](?!{LETTER}|\d)                       # 4A, 3D
    | \d+(?:st|nd|rd|th)(?!{LETTER})
    | \d+(?:[.:]\d+)*                                  # 1.8, 10:30
    | (?<=\d)[xX](?=\d)                                # 1.8x0.7
    | {LETTER}(?:{LETTER}|\d)*(?:[-'’](?:{LETTER}|\d)+)*   # well-defined, o'clock, T1
    | [{CJK}]+
    | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)
MASKED = re.compile(r"_[A-Za-z0-9]+_")


@cache
def terms() -> tuple[str, ...]:
    """Words of ultrasound that Chinese is cut by, beside those of rjieba."""
    return tuple(dict.fromkeys(TERMS.read_text(encoding="utf-8").split()))


@cache
def _jieba() -> rjieba.Jieba:
    """One segmenter a process: it does not pickle, takes 0.1 s to build and 20 MB, and is only needed for Chinese."""
    import rjieba

    jieba = rjieba.Jieba()
    for term in terms():
        jieba.add_word(term, None, None)
    return jieba


def is_cjk(character: str) -> bool:
    return re.match(f"[{CJK}]", character) is not None


def detect_language(texts: Iterable[str]) -> Literal["en", "zh"]:
    """Chinese where more than half of the letters are; masked measures have none."""
    letters = chinese = 0
    for text in texts:
        for character in MASKED.sub("", text):
            if character.isalpha():
                letters += 1
                chinese += is_cjk(character)
    return "zh" if chinese * 2 > letters else "en"


def split_words(text: str) -> list[str]:
    """The words of a text, in order, as they are spelled."""
    words: list[str] = []
    for token in TOKEN.findall(text):
        if is_cjk(token[0]):
            words += _jieba().cut(token, hmm=False)
        else:
            words.append(token)
    return words


def normalize_word(word: str, lowercase: bool) -> str:
    """What a word counts as."""
    return word.lower() if lowercase and not MASKED.fullmatch(word) else word


def describe_segmentation(language: str, lowercase: bool) -> str:
    """What scores depend on; stored beside them, since scores of different words are not comparable."""
    case = ", lower case" if lowercase else ""
    if language == "zh":
        return f"words: rjieba {version('rjieba')} + {TERMS.stem} ({len(terms())} terms){case}"
    return f"words: words and punctuation{case}"
