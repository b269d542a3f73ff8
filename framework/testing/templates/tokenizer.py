"""Characters as tokens: no unknown words, but long reports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from framework.exam import BOS, EOS, SPECIAL_TOKENS, UNK
from framework.registry import register


@register("tokenizer", "my_tokenizer")
class MyTokenizer:
    """Every character is a token; scores use words between spaces.

    Args:
        min_count: Minimum count of a character in the training reports to enter the vocabulary. [times]
        language: Language of the reports.
    """

    def __init__(self, *, min_count: PositiveInt = 1, language: Literal["en", "zh"] = "en") -> None:
        self.min_count = min_count
        self.language = language
        self.vocabulary: list[str] = []

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def segmentation(self) -> str:
        """Identifies the words of scores."""
        return "my_tokenizer: words between spaces"

    def segment(self, text: str) -> list[str]:
        """The words of a text, for topics and scores. Needs no `fit`."""
        return text.split()

    def fit(self, reports: Sequence[str]) -> None:
        """Builds the vocabulary from training reports."""
        counts = Counter(character for report in reports for character in report)
        kept = sorted(character for character, count in counts.items() if count >= self.min_count)
        self._set([*SPECIAL_TOKENS, *kept])

    def _set(self, vocabulary: list[str]) -> None:
        self.vocabulary = vocabulary
        self._ids = {character: number for number, character in enumerate(vocabulary)}

    def encode(self, text: str, max_length: int | None = None) -> list[int]:
        """Ids from BOS to EOS; at most `max_length` of them, both included."""
        ids = [self._ids.get(character, UNK) for character in text]
        if max_length is not None:
            ids = ids[: max_length - 2]
        return [BOS, *ids, EOS]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first EOS, without padding and unknown characters."""
        characters = []
        for number in ids:
            if number == EOS:
                break
            if number >= len(SPECIAL_TOKENS):
                characters.append(self.vocabulary[number])
        return "".join(characters)

    def save(self, path: Path) -> None:
        saved = {"min_count": self.min_count, "language": self.language, "vocabulary": self.vocabulary}
        path.write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> MyTokenizer:
        """Loads what `save` wrote."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        tokenizer = cls(min_count=saved["min_count"], language=saved["language"])
        tokenizer._set(saved["vocabulary"])
        return tokenizer
