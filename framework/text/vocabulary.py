"""Special tokens around the token ids of a report, and vocabularies of subword tokenizers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from framework.exam import BOS, EOS, SPECIAL_TOKENS
from framework.runtime.errors import UserError

# Marks of a continued word (WordPiece), or of a word's start (BPE, unigram).
PART_OF_WORD = re.compile(r"##\w|[Ġ▁]")


def require_whole_words(vocabulary: Sequence[str], place: str) -> None:
    """Raises UserError if a vocabulary has subwords, which a report space does not know.

    Args:
        place: the key of the loss that compares reports by words.
    """
    if part := next((word for word in vocabulary if PART_OF_WORD.match(word)), None):
        raise UserError(
            "does-not-fit", f"the tokenizer's vocabulary has subwords, such as '{part}'", place=place,
            expected="whole words", hint="Set data.tokenizer: words, or remove this loss.",
        )  # fmt: skip


def add_special_tokens(words: Sequence[int], max_length: int | None) -> list[int]:
    """Adds BOS and EOS; at most `max_length` ids in total.

    Raises:
        UserError: `max_length` is below 2.
    """
    if max_length is not None and max_length < 2:
        raise UserError("out-of-range", f"max_length is {max_length}", expected="at least 2, for BOS and EOS")
    return [BOS, *(words if max_length is None else words[: max_length - 2]), EOS]


def strip_special_tokens(ids: Iterable[int], vocabulary_size: int) -> list[int]:
    """The ids of words up to the first EOS, without BOS, padding and unknown words.

    Raises:
        ValueError: an id is outside the vocabulary.
    """
    words = []
    for id in map(int, ids):
        if id == EOS:
            break
        if not 0 <= id < vocabulary_size:
            raise ValueError(f"id {id} is outside the vocabulary of {vocabulary_size} words")
        if id >= len(SPECIAL_TOKENS):
            words.append(id)
    return words


def special_ids_of(tokenizer: Any) -> list[int]:
    """Ids of the special tokens of a transformers tokenizer, including reserved ones."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return sorted({*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)})


def subwords_of(backend: Any, special_ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """A vocabulary of `SPECIAL_TOKENS` and the subwords, and the tokenizer's id of each subword.

    Args:
        backend: a tokenizer of the package tokenizers.
        special_ids: ids that are not subwords.
    """
    left_out = set(special_ids)
    subwords = sorted((id, subword) for subword, id in backend.get_vocab().items())
    kept = [(id, subword) for id, subword in subwords if id not in left_out and subword not in SPECIAL_TOKENS]
    return [*SPECIAL_TOKENS, *(subword for _, subword in kept)], [id for id, _ in kept]
