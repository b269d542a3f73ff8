"""A report as token ids: what stands around its words, and which of the ids are words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from framework.special_tokens import BOS, EOS, SIGNS


def framed(words: Sequence[int], max_tokens: int | None) -> list[int]:
    """Ids of words from BOS to EOS; at most `max_tokens` of them, both included.

    Raises:
        ValueError: `max_tokens` leaves no room for BOS and EOS.
    """
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"max_tokens is {max_tokens}; BOS and EOS alone need 2")
    return [BOS, *(words if max_tokens is None else words[: max_tokens - 2]), EOS]


def written(ids: Iterable[int], vocabulary_size: int) -> list[int]:
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
        if id >= len(SIGNS):
            words.append(id)
    return words
