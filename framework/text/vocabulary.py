"""A report as token ids: what stands around its words, and which of the ids are words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from framework.exam import BOS, EOS, SPECIAL_TOKENS


def add_special_tokens(words: Sequence[int], max_length: int | None) -> list[int]:
    """Ids of words from BOS to EOS; at most `max_length` of them, both included.

    Raises:
        ValueError: `max_length` leaves no room for BOS and EOS.
    """
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length is {max_length}; BOS and EOS alone need 2")
    return [BOS, *(words if max_length is None else words[: max_length - 2]), EOS]


def strip_special_tokens(ids: Iterable[int], vocabulary_size: int) -> list[int]:
    """The ids of words up to the first EOS; BOS, padding and unknown words are left out.

    Raises:
        ValueError: an id outside the vocabulary.
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
    """Ids of a transformers tokenizer's own signs, which no report has: those with a role, and those kept for one."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return sorted({*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)})


def subwords_of(backend: Any, signs: Sequence[int]) -> tuple[list[str], list[int]]:
    """Our vocabulary, by id, and the model's id of each piece in it, from the first behind our signs.

    Args:
        backend: of the package tokenizers.
        signs: ids that are no pieces.
    """
    left_out = set(signs)
    pieces = sorted((id, piece) for piece, id in backend.get_vocab().items())
    kept = [(id, piece) for id, piece in pieces if id not in left_out and piece not in SPECIAL_TOKENS]
    return [*SPECIAL_TOKENS, *(piece for _, piece in kept)], [id for id, _ in kept]
