"""Words of English and Chinese reports: one segmentation for training, topics and scores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from pydantic import PositiveInt

from framework.exam import SPECIAL_TOKENS, UNK
from framework.registry import register
from framework.runtime.errors import UserError
from framework.runtime.files import read_bounded
from framework.text.segmentation import (
    MASKED,
    describe_segmentation,
    detect_language,
    is_cjk,
    normalize_word,
    normalized_words,
    split_words,
)
from framework.text.vocabulary import add_special_tokens, strip_special_tokens

FORMAT = "sonoscribe words 1"
SENTENCE_END = frozenset(".!?。！？")
# English has no space before CLOSING, after OPENING, and around BETWEEN.
CLOSING = frozenset(".,;:!?%)]}>°’”、，。；：！？）》】")
OPENING = frozenset("([{<‘“（《【、，。；：！？）》】")
BETWEEN = frozenset("-/_~～")


@register("tokenizer", "words")
class Words:
    """Words and punctuation; Chinese by rjieba with a dictionary of ultrasound terms.

    Masked measures (`_2DS_`, `_Loc_` ...), numbers such as 1.8, and BI-RADS are one word in every language. Unknown
    Chinese words are split into characters, so the words do not depend on statistics of other texts.

    Source:
        Sonoscribe; Chinese word segmentation by rjieba.

    Args:
        min_count: Minimum count of a word in the training reports to enter the vocabulary. [times]
        language: How `decode` joins words; `auto` takes Chinese if over half of the letters are Chinese.
        lowercase: Makes `Mass` and `mass` one word; `decode` restores capitals at sentence starts and in BI-RADS.
    """

    specials: ClassVar[tuple[str, ...]] = SPECIAL_TOKENS

    def __init__(
        self, *, min_count: PositiveInt = 1, language: Literal["auto", "en", "zh"] = "auto", lowercase: bool = True
    ) -> None:
        self.min_count = min_count
        self._asked_language = language
        self._language: Literal["en", "zh"] | None = None if language == "auto" else language
        self.lowercase = lowercase
        self.vocabulary: list[str] = []  # by id, with the four specials first; empty before `fit`
        self._ids: dict[str, int] = {}
        self._surface: dict[str, str] = {}  # lower-case word to its usual spelling, where that differs

    def fit(self, reports: Sequence[str]) -> None:
        """Builds the vocabulary from training reports: by falling count, equal counts by alphabet.

        Raises:
            UserError: `empty-report` if no report has a word, `out-of-range` if `min_count` leaves none.
        """
        if self._asked_language == "auto":
            self._language = detect_language(reports)
        counts: Counter[str] = Counter()
        spellings: dict[str, Counter[str]] = {}
        # By word, and whether it starts a sentence.
        occurrences: Counter[tuple[str, bool]] = Counter()
        for report, times in Counter(reports).items():
            words = split_words(report)
            own = Counter(zip(words, chain((True,), (word in SENTENCE_END for word in words))))
            if times > 1:
                own = Counter({each: times * count for each, count in own.items()})
            occurrences.update(own)
        for (word, starts), count in occurrences.items():
            key = normalize_word(word, self.lowercase)
            counts[key] += count
            # A capital at the start of a sentence means nothing; one within BI-RADS or CDFI does.
            if not starts or word[1:] != word[1:].lower():
                spellings.setdefault(key, Counter())[word] += count
        if not counts:
            raise UserError(
                "empty-report", f"no words in the {len(reports)} training reports, so there is no vocabulary"
            )
        kept = sorted((word for word in counts if counts[word] >= self.min_count), key=lambda w: (-counts[w], w))
        if not kept:
            raise UserError(
                "out-of-range",
                f"{self.min_count} leaves no word",
                place="data.tokenizer.min_count",
                expected=f"at most {max(counts.values())}, the count of '{counts.most_common(1)[0][0]}'",
            )
        surface = {}
        for key in kept:
            if key in spellings:
                usual = min(spellings[key].items(), key=lambda item: (-item[1], item[0]))[0]
                if usual != key:
                    surface[key] = usual
        self._set([*self.specials, *kept], surface)

    def _set(self, vocabulary: list[str], surface: dict[str, str]) -> None:
        self.vocabulary = vocabulary
        self._ids = {word: id for id, word in enumerate(vocabulary)}
        self._surface = surface

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def language(self) -> Literal["en", "zh"]:
        """The language of the reports; raises `RuntimeError` before `fit` for `auto`."""
        if self._language is None:
            raise RuntimeError("language: auto is known only after fit()")
        return self._language

    @property
    def segmentation(self) -> str:
        """Identifies the segmentation; stored with scores, which are comparable only for equal segmentation."""
        return describe_segmentation(self.language, self.lowercase)

    def segment(self, text: str) -> list[str]:
        """The words of a text, in order. Needs no `fit`."""
        return list(normalized_words(text, self.lowercase))

    def encode(self, text: str, max_length: int | None = None) -> list[int]:
        """Ids from BOS to EOS; at most `max_length` of them, both included.

        Raises:
            RuntimeError: before `fit`.
            ValueError: `max_length` is below 2.
        """
        if not self.vocabulary:
            raise RuntimeError("encode() needs a vocabulary: call fit() or load() first")
        return add_special_tokens([self._ids.get(word, UNK) for word in self.segment(text)], max_length)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first EOS, without special tokens.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        return self.join([self.vocabulary[id] for id in strip_special_tokens(ids, len(self.vocabulary))])

    def join(self, words: Sequence[str]) -> str:
        """Words as running text: Chinese without spaces, English with the usual ones."""
        spaced = _space_zh if self.language == "zh" else _space_en
        text = ""
        last = ""
        for word in words:
            written = self._surface.get(word, word)
            if self.lowercase and (not last or last in SENTENCE_END) and written == written.lower():
                written = written[:1].upper() + written[1:] if not MASKED.fullmatch(written) else written
            text += f" {written}" if last and spaced(last, word) else written
            last = word
        return text

    def save(self, path: Path) -> None:
        """Writes settings and vocabulary as JSON."""
        saved = {
            "format": FORMAT,
            "min_count": self.min_count,
            "asked_language": self._asked_language,
            "language": self.language,
            "lowercase": self.lowercase,
            "segmentation": self.segmentation,
            "vocabulary": self.vocabulary,
            "spelling": self._surface,
        }
        path.write_text(json.dumps(saved, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Words:
        """Loads what `save` wrote.

        Raises:
            UserError: `wrong-format` if it is another file or its values are inconsistent.
        """
        try:
            saved = json.loads(read_bounded(path))
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError("wrong-format", f"not JSON: {error}", place=path) from None
        if problem := _problem(saved):
            raise UserError("wrong-format", f"not a vocabulary of the tokenizer 'words': {problem}", place=path)
        words = cls(min_count=saved["min_count"], language=saved["asked_language"], lowercase=saved["lowercase"])
        words._language = cast(Literal["en", "zh"], saved["language"])
        words._set(saved["vocabulary"], saved["spelling"])
        return words


def _problem(saved: Any) -> str | None:
    """The first inconsistency of a loaded file, or None."""
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        return f'expected "format": "{FORMAT}"'
    vocabulary, spelling, min_count = saved.get("vocabulary"), saved.get("spelling"), saved.get("min_count")
    if not (isinstance(vocabulary, list) and all(isinstance(word, str) for word in vocabulary)):
        return "vocabulary is not a list of words"
    if tuple(vocabulary[:4]) != Words.specials:
        return f"vocabulary does not start with {', '.join(Words.specials)}"
    if len(set(vocabulary)) != len(vocabulary):
        twice = next(word for word, count in Counter(vocabulary).items() if count > 1)
        return f"vocabulary has '{twice}' twice"
    if not (isinstance(spelling, dict) and all(isinstance(word, str) for word in spelling.values())):
        return "spelling is not a table of words"
    if saved.get("language") not in ("en", "zh") or saved.get("asked_language") not in ("auto", "en", "zh"):
        return f"language is {saved.get('language')!r}; en or zh expected"
    if not isinstance(saved.get("lowercase"), bool) or type(min_count) is not int or min_count < 1:
        return "lowercase must be true or false, and min_count a whole number from 1"
    return None


def _space_en(last: str, word: str) -> bool:
    return not (word in CLOSING or last in OPENING or word in BETWEEN or last in BETWEEN)


def _space_zh(last: str, word: str) -> bool:
    """A space only between two Latin words: `BI-RADS 4A`, but `1.8cm`."""
    if MASKED.fullmatch(last) or MASKED.fullmatch(word):
        return False
    latin = last[-1].isalnum() and word[0].isalnum() and not is_cjk(last[-1]) and not is_cjk(word[0])
    return latin and not (last[-1].isdigit() and word[0].isalpha())
