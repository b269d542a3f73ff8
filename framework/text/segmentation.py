"""Word segmentation of English and Chinese reports, the same for training, topics and scores."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import rjieba

TERMS = Path(__file__).with_name("ultrasound_zh.txt")
CJK = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
LETTER = rf"[^\W\d_{CJK}]"
HAS_CJK = re.compile(f"[{CJK}]")

# Alternatives in order of precedence.
TOKEN = re.compile(
    rf"""
      _[A-Za-z0-9]+_                                   # a masked measure, such as _2DS_
    | (?:BI|TI|LI)-?RADS                               # without the category: BI-RADS4A is two words
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
    """Ultrasound terms for the segmentation of Chinese, in addition to the words of rjieba."""
    return tuple(dict.fromkeys(TERMS.read_text(encoding="utf-8").split()))


@cache
def _jieba() -> rjieba.Jieba:
    """One segmenter per process, because it does not pickle; built for Chinese only, in 0.1 s and 20 MB."""
    import rjieba

    jieba = rjieba.Jieba()
    for term in terms():
        jieba.add_word(term, None, None)
    return jieba


def is_cjk(character: str) -> bool:
    return HAS_CJK.match(character) is not None


def detect_language(texts: Iterable[str]) -> Literal["en", "zh"]:
    """Chinese if more than half of the letters are; masked measures do not count."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(MASKED.sub("", text))
    letters = {character: count for character, count in counts.items() if character.isalpha()}
    chinese = sum(count for character, count in letters.items() if is_cjk(character))
    return "zh" if chinese * 2 > sum(letters.values()) else "en"


def split_words(text: str) -> list[str]:
    """The words of a text in order, as spelled."""
    tokens: list[str] = TOKEN.findall(text)
    if not HAS_CJK.search(text):
        return tokens
    words: list[str] = []
    for token in tokens:
        if is_cjk(token[0]):
            words += _jieba().cut(token, hmm=False)
        else:
            words.append(token)
    return words


def normalize_word(word: str, lowercase: bool) -> str:
    """The word as it is counted: in lower case if asked, except masked measures."""
    return word.lower() if lowercase and not (word[0] == "_" and MASKED.fullmatch(word)) else word


@lru_cache(maxsize=2**17)  # tokens, topics, scores and baselines cut the same reports
def normalized_words(text: str, lowercase: bool) -> tuple[str, ...]:
    """The words of a text in order, as they are counted."""
    return tuple(sys.intern(normalize_word(word, lowercase)) for word in split_words(text))


def describe_segmentation(language: str, lowercase: bool) -> str:
    """Describes the segmentation; stored with scores, because scores of different words are not comparable."""
    case = ", lower case" if lowercase else ""
    if language == "zh":
        return f"words: rjieba {version('rjieba')} + {TERMS.stem} ({len(terms())} terms){case}"
    return f"words: words and punctuation{case}"
