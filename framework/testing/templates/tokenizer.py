"""Characters as tokens: no word is unknown, and reports become long."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from framework.exam import BOS, EOS, UNK
from framework.registry import register

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")  # ids 0 to 3; no text segments into these


@register("tokenizer", "my_tokenizer")
class MyTokenizer:
    """Every character is a token; scores are of words between spaces.

    Args:
        min_count: How often a character must stand in the training reports to get an id of its own.
        language: Of the reports.
    """

    def __init__(self, *, min_count: PositiveInt = 1, language: Literal["en", "zh"] = "en") -> None:
        self.min_count = min_count
        self.language = language
        self.vocabulary: list[str] = []

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def segmentation(self) -> str:
        """What the words of scores are; it stands beside them."""
        return "my_tokenizer: words between spaces"

    def segment(self, text: str) -> list[str]:
        """The words of a text, for topics and scores. Needs no `fit`."""
        return text.split()

    def fit(self, reports: Sequence[str]) -> None:
        """Takes the vocabulary from training reports."""
        counts = Counter(character for report in reports for character in report)
        kept = sorted(character for character, count in counts.items() if count >= self.min_count)
        self._adopt([*SPECIALS, *kept])

    def _adopt(self, vocabulary: list[str]) -> None:
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
        written = []
        for number in ids:
            if number == EOS:
                break
            if number >= len(SPECIALS):
                written.append(self.vocabulary[number])
        return "".join(written)

    def save(self, path: Path) -> None:
        known = {"min_count": self.min_count, "language": self.language, "vocabulary": self.vocabulary}
        path.write_text(json.dumps(known, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> MyTokenizer:
        """What `save` wrote."""
        known = json.loads(path.read_text(encoding="utf-8"))
        tokenizer = cls(min_count=known["min_count"], language=known["language"])
        tokenizer._adopt(known["vocabulary"])
        return tokenizer
