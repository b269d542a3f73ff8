"""The tokenizer of a pretrained language model, with which the decoder `hf_causal` keeps its embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from framework.exam import SPECIAL_TOKENS, UNK
from framework.models.pretrained import load_tokenizer, weights_folder
from framework.registry import register
from framework.runtime.console import print0
from framework.runtime.errors import UserError
from framework.runtime.files import read_bounded
from framework.text.segmentation import describe_segmentation, detect_language, normalize_word, split_words
from framework.text.vocabulary import add_special_tokens, special_ids_of, strip_special_tokens, subwords_of

FORMAT = "sonoscribe hf 2"
LOWERCASE = True  # of scored words, as in the tokenizer `words`


@register("tokenizer", "hf")
class Hf:
    """Subwords of a transformers tokenizer, with its fixed vocabulary.

    Ids 0 to 3 are our special tokens; the subwords follow in the model's order, without the model's special tokens.
    Scores and topics use whole words, as with `words`: a masked measure such as `_2DS_` is one of them.

    Source:
        Sonoscribe; subwords by tokenizers.

    Args:
        weights: The model whose tokenizer is used: a folder, or a name on the model hub.
        language: Segmentation of words for scores; `auto` takes Chinese if over half of the letters are Chinese.
    """

    def __init__(self, *, weights: str, language: Literal["auto", "en", "zh"] = "auto") -> None:
        found = load_tokenizer(weights_folder(weights, "data.tokenizer.weights"), "data.tokenizer.weights")
        backend = getattr(found, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                "unsupported",
                f"the tokenizer of '{weights}' ({type(found).__name__}) has no tokenizer.json",
                place="data.tokenizer.weights",
                expected="one of the package tokenizers",
            )
        self._set(backend.to_str(), special_ids_of(found), language)

    def _set(self, tokenizer: str, model_special_ids: Sequence[int], language: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._model_special_ids = list(model_special_ids)  # no report has these
        self._asked_language = language
        self._language: Literal["en", "zh"] | None = None if language == "auto" else cast(Literal["en", "zh"], language)
        self.vocabulary, self._model_ids = subwords_of(self._tokenizer, model_special_ids)
        self._ids = {model_id: id for id, model_id in enumerate(self._model_ids, len(SPECIAL_TOKENS))}

    def fit(self, reports: Sequence[str]) -> None:
        """Detects the language for `auto`, and prints how many reports the subwords cannot reproduce."""
        if self._asked_language == "auto":
            self._language = detect_language(reports)
        lost = [report for report in reports if self.segment(self.decode(self.encode(report))) != self.segment(report)]
        if lost:
            print0(
                f"notice: the tokenizer changes words of {len(lost)} of {len(reports)} training reports, so no model "
                f"can generate them: {lost[0][:60]!r}"
            )

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
        """Identifies the segmentation of scored words; that of `words`, so scores are comparable."""
        return describe_segmentation(self.language, LOWERCASE)

    def segment(self, text: str) -> list[str]:
        """The words of a text, in order. Needs no `fit`."""
        return [normalize_word(word, LOWERCASE) for word in split_words(text)]

    def encode(self, text: str, max_length: int | None = None) -> list[int]:
        """Ids from BOS to EOS; at most `max_length` of them, both included.

        Raises:
            ValueError: `max_length` is below 2.
        """
        model_ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return add_special_tokens([self._ids.get(id, UNK) for id in model_ids], max_length)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first EOS, without special tokens.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        kept = strip_special_tokens(ids, len(self.vocabulary))
        model_ids = [self._model_ids[id - len(SPECIAL_TOKENS)] for id in kept]
        return str(self._tokenizer.decode(model_ids, skip_special_tokens=False))

    def save(self, path: Path) -> None:
        """Writes settings and the whole tokenizer as one JSON file."""
        saved = {
            "format": FORMAT,
            "asked_language": self._asked_language,
            "language": self.language,
            "segmentation": self.segmentation,
            "model_special_ids": self._model_special_ids,
            "tokenizer": json.loads(self._tokenizer.to_str()),
        }
        path.write_text(json.dumps(saved, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Hf:
        """Loads what `save` wrote; needs no folder of weights.

        Raises:
            UserError: `wrong-format` or `damaged-file`.
        """
        try:
            saved: Any = json.loads(read_bounded(path))
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError("wrong-format", f"not JSON: {error}", place=path) from None
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise UserError(
                "wrong-format", "not a file of the tokenizer 'hf'", place=path, expected=f'"format": "{FORMAT}"'
            )
        loaded = cls.__new__(cls)
        try:
            loaded._set(json.dumps(saved["tokenizer"]), saved["model_special_ids"], saved["asked_language"])
            loaded._language = saved["language"]
        except Exception as error:  # of tokenizers, which raises its own
            raise UserError(
                "damaged-file", f"does not load ({error})", place=path, hint="Copy the run's model/ again."
            ) from None
        return loaded
