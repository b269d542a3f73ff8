"""The tokenizer of a pretrained language model, so that its embeddings keep their meaning (decoder `hf_causal`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from framework.exam import SPECIAL_TOKENS, UNK
from framework.models.pretrained import load_tokenizer, weights_folder
from framework.registry import register
from framework.runtime.console import print0
from framework.text.segmentation import key_of, language_of, segmentation_of, split
from framework.text.vocabulary import add_special_tokens, special_ids_of, strip_special_tokens, subwords_of

FORMAT = "sonoscribe hf 1"
LOWERCASE = True  # of words that are scored, as the tokenizer `words` has them


@register("tokenizer", "hf")
class Hf:
    """Pieces of words as a transformers tokenizer cuts them; its vocabulary is fixed, and fitting learns nothing.

    Ids 0 to 3 are our own signs; the pieces follow in the model's order, without the model's own signs. Scores and
    topics are found on whole words, as those of `words`: a masked measure such as `_2DS_` is one of them.

    Source:
        Sonoscribe; the cut into pieces by tokenizers.

    Args:
        weights: Where the tokenizer lies, beside the model's weights: a folder, or a name on the model hub.
        language: How words are segmented for scores; `auto` takes Chinese where over half of the letters are.
    """

    def __init__(self, *, weights: str, language: Literal["auto", "en", "zh"] = "auto") -> None:
        found = load_tokenizer(weights_folder(weights, "data.tokenizer.weights"), "data.tokenizer.weights")
        backend = getattr(found, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"data.tokenizer.weights: the tokenizer of '{weights}' ({type(found).__name__}) has no tokenizer.json; "
                "expected one of the package tokenizers"
            )
        self._adopt(backend.to_str(), special_ids_of(found), language)

    def _adopt(self, tokenizer: str, signs: Sequence[int], language: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._signs = list(signs)  # the model's own, which no report has
        self._asked_language = language
        self._language: Literal["en", "zh"] | None = None if language == "auto" else cast(Literal["en", "zh"], language)
        self.vocabulary, self._theirs = subwords_of(self._tokenizer, signs)
        self._ours = {id: place for place, id in enumerate(self._theirs, len(SPECIAL_TOKENS))}

    def fit(self, reports: Sequence[str]) -> None:
        """Learns the language where the recipe says `auto`, and tells how many reports the pieces cannot write."""
        if self._asked_language == "auto":
            self._language = language_of(reports)
        lost = [report for report in reports if self.segment(self.decode(self.encode(report))) != self.segment(report)]
        if lost:
            print0(
                f"notice: {len(lost)} of {len(reports)} training reports do not come back from the tokenizer word for "
                f"word, so no model can write them: {lost[0][:60]!r}"
            )

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
        """What scores depend on; the same as that of `words`, so that their scores are comparable."""
        return segmentation_of(self.language, LOWERCASE)

    def segment(self, text: str) -> list[str]:
        """The words of a text, in order. Needs no `fit`."""
        return [key_of(word, LOWERCASE) for word in split(text)]

    def encode(self, text: str, max_length: int | None = None) -> list[int]:
        """Ids from BOS to EOS; at most `max_length` of them, both included.

        Raises:
            ValueError: `max_length` leaves no room for BOS and EOS.
        """
        pieces = self._tokenizer.encode(text, add_special_tokens=False).ids
        return add_special_tokens([self._ours.get(id, UNK) for id in pieces], max_length)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first EOS; BOS, padding and unknown pieces are left out.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        pieces = [self._theirs[id - len(SPECIAL_TOKENS)] for id in strip_special_tokens(ids, len(self.vocabulary))]
        return str(self._tokenizer.decode(pieces, skip_special_tokens=False))

    def save(self, path: Path) -> None:
        """Writes settings and the whole tokenizer as one JSON file."""
        known = {
            "format": FORMAT,
            "asked_language": self._asked_language,
            "language": self.language,
            "segmentation": self.segmentation,
            "signs": self._signs,
            "tokenizer": json.loads(self._tokenizer.to_str()),
        }
        path.write_text(json.dumps(known, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Hf:
        """What `save` wrote; needs no folder of weights.

        Raises:
            ValueError: not such a file, or a damaged one.
        """
        try:
            known: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from None
        if not isinstance(known, dict) or known.get("format") != FORMAT:
            raise ValueError(f'{path}: not of the tokenizer \'hf\': expected "format": "{FORMAT}"')
        loaded = cls.__new__(cls)
        try:
            loaded._adopt(json.dumps(known["tokenizer"]), known["signs"], known["asked_language"])
            loaded._language = known["language"]
        except Exception as error:  # of tokenizers, which raises its own
            raise ValueError(f"{path}: damaged ({error}); copy the run's model/ again") from None
        return loaded
