"""Words for reports in English and Chinese: one segmentation, shared by training, topics and scores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from pydantic import PositiveInt

from framework.exam import SPECIAL_TOKENS, UNK
from framework.registry import register
from framework.text.segmentation import MASKED, is_cjk, key_of, language_of, segmentation_of, split
from framework.text.vocabulary import add_special_tokens, strip_special_tokens

FORMAT = "sonoscribe words 1"
SENTENCE_END = frozenset(".!?。！？")
# Where English leaves out the space: before these, after those.
CLOSING = frozenset(".,;:!?%)]}>°’”、，。；：！？）》】")
OPENING = frozenset("([{<‘“（《【、，。；：！？）》】")
BETWEEN = frozenset("-/_~～")


@register("tokenizer", "words")
class Words:
    """Words and punctuation; Chinese by rjieba with a dictionary of ultrasound terms.

    Masked measures (`_2DS_`, `_Loc_` ...), numbers such as 1.8, and BI-RADS are one word in every language. Unknown
    Chinese words fall apart into characters, so the words do not depend on statistics of other texts.

    Source:
        Sonoscribe; the cut of Chinese by rjieba.

    Args:
        min_count: how often a word must stand in the training reports to get an id of its own. [times]
        language: how words are put together again; `auto` takes Chinese where over half of the letters are.
        lowercase: hold `Mass` and `mass` for one word; `decode` writes sentence starts and BI-RADS in capitals again.
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
        """Takes the vocabulary from training reports: most frequent words first, equal counts by alphabet.

        Raises:
            ValueError: no report has a word.
        """
        if self._asked_language == "auto":
            self._language = language_of(reports)
        counts: Counter[str] = Counter()
        spellings: dict[str, Counter[str]] = {}
        for report in reports:
            starts = True
            for word in split(report):
                key = key_of(word, self.lowercase)
                counts[key] += 1
                # A capital at the start of a sentence says nothing; BI-RADS or CDFI does, wherever it stands.
                if not starts or word[1:] != word[1:].lower():
                    spellings.setdefault(key, Counter())[word] += 1
                starts = word in SENTENCE_END
        if not counts:
            raise ValueError(f"No words in the {len(reports)} training reports, so there is no vocabulary to fit")
        kept = sorted((word for word in counts if counts[word] >= self.min_count), key=lambda w: (-counts[w], w))
        if not kept:
            raise ValueError(
                f"min_count: {self.min_count} leaves no word: the most frequent of {len(reports)} training reports, "
                f"'{counts.most_common(1)[0][0]}', stands there {max(counts.values())} times"
            )
        surface = {}
        for key in kept:
            if key in spellings:
                usual = min(spellings[key].items(), key=lambda item: (-item[1], item[0]))[0]
                if usual != key:
                    surface[key] = usual
        self._adopt([*self.specials, *kept], surface)

    def _adopt(self, vocabulary: list[str], surface: dict[str, str]) -> None:
        self.vocabulary = vocabulary
        self._ids = {word: id for id, word in enumerate(vocabulary)}
        self._surface = surface

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def language(self) -> Literal["en", "zh"]:
        """Raises `RuntimeError` before `fit` where the recipe says `auto`."""
        if self._language is None:
            raise RuntimeError("The language is known only after fit(), since the recipe says language: auto")
        return self._language

    @property
    def segmentation(self) -> str:
        """What scores depend on; stored beside them, since scores of different words are not comparable."""
        return segmentation_of(self.language, self.lowercase)

    def segment(self, text: str) -> list[str]:
        """The words of a text, in order. Needs no `fit`."""
        return [key_of(word, self.lowercase) for word in split(text)]

    def encode(self, text: str, max_length: int | None = None) -> list[int]:
        """Ids from BOS to EOS; at most `max_length` of them, both included.

        Raises:
            RuntimeError: before `fit`.
            ValueError: `max_length` leaves no room for BOS and EOS.
        """
        if not self.vocabulary:
            raise RuntimeError("encode() needs a vocabulary: call fit() or load() first")
        return add_special_tokens([self._ids.get(word, UNK) for word in self.segment(text)], max_length)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first EOS; BOS, padding and unknown words are left out.

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
        known = {
            "format": FORMAT,
            "min_count": self.min_count,
            "asked_language": self._asked_language,
            "language": self.language,
            "lowercase": self.lowercase,
            "segmentation": self.segmentation,
            "vocabulary": self.vocabulary,
            "spelling": self._surface,
        }
        path.write_text(json.dumps(known, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Words:
        """What `save` wrote.

        Raises:
            ValueError: not such a file, or one that was changed by hand into something impossible.
        """
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from None
        problem = _problem(known)
        if problem:
            raise ValueError(f"{path}: not a vocabulary of the tokenizer 'words': {problem}")
        words = cls(min_count=known["min_count"], language=known["asked_language"], lowercase=known["lowercase"])
        words._language = cast(Literal["en", "zh"], known["language"])
        words._adopt(known["vocabulary"], known["spelling"])
        return words


def _problem(known: Any) -> str | None:
    """What is wrong with a loaded file, or None."""
    if not isinstance(known, dict) or known.get("format") != FORMAT:
        return f'expected "format": "{FORMAT}"'
    vocabulary, spelling, min_count = known.get("vocabulary"), known.get("spelling"), known.get("min_count")
    if not (isinstance(vocabulary, list) and all(isinstance(word, str) for word in vocabulary)):
        return "vocabulary is not a list of words"
    if tuple(vocabulary[:4]) != Words.specials:
        return f"vocabulary does not start with {', '.join(Words.specials)}"
    if len(set(vocabulary)) != len(vocabulary):
        twice = next(word for word, count in Counter(vocabulary).items() if count > 1)
        return f"vocabulary holds '{twice}' twice"
    if not (isinstance(spelling, dict) and all(isinstance(word, str) for word in spelling.values())):
        return "spelling is not a table of words"
    if known.get("language") not in ("en", "zh") or known.get("asked_language") not in ("auto", "en", "zh"):
        return f"language is {known.get('language')!r}; en or zh expected"
    if not isinstance(known.get("lowercase"), bool) or type(min_count) is not int or min_count < 1:
        return "lowercase must be true or false, and min_count a whole number from 1"
    return None


def _space_en(last: str, word: str) -> bool:
    return not (word in CLOSING or last in OPENING or word in BETWEEN or last in BETWEEN)


def _space_zh(last: str, word: str) -> bool:
    """A space only where two Latin words would run together: `BI-RADS 4A`, but `1.8cm`."""
    if MASKED.fullmatch(last) or MASKED.fullmatch(word):
        return False
    latin = last[-1].isalnum() and word[0].isalnum() and not is_cjk(last[-1]) and not is_cjk(word[0])
    return latin and not (last[-1].isdigit() and word[0].isalpha())
