"""The pieces of words that a pretrained tokenizer writes reports with, numbered behind our own signs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from framework.special_tokens import SIGNS


def signs_of(tokenizer: Any) -> list[int]:
    """Ids of a transformers tokenizer's own signs, which no report has: those with a role, and those kept for one."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return sorted({*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)})


def pieces_of(backend: Any, signs: Sequence[int]) -> tuple[list[str], list[int]]:
    """Our vocabulary, by id, and the model's id of each piece in it, from the first behind our signs.

    Args:
        backend: of the package tokenizers.
        signs: ids that are no pieces.
    """
    left_out = set(signs)
    pieces = sorted((id, piece) for piece, id in backend.get_vocab().items())
    kept = [(id, piece) for id, piece in pieces if id not in left_out and piece not in SIGNS]
    return [*SIGNS, *(piece for _, piece in kept)], [id for id, _ in kept]
