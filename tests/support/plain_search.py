"""Beam search without a cache, written with lists: the reference for `generate`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from framework.exam import BOS, EOS, Features
from framework.models.generation import NEVER


@torch.no_grad()
def search_without_cache(
    decoder: Callable[[Features, torch.Tensor], torch.Tensor],
    features: Features,
    *,
    max_length: int,
    num_beams: int = 1,
    length_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
) -> list[int]:
    """The rules of generate's docstring for one exam, running the whole decoder for every token."""
    n = no_repeat_ngram_size
    hypotheses: list[tuple[float, list[int]]] = [(0.0, [])]
    score = lambda item: item[0] / max(1, len(item[1])) ** length_penalty  # noqa: E731
    for _ in range(max_length):
        extended = []
        for total, tokens in hypotheses:
            if tokens and tokens[-1] == EOS:
                extended.append((total, tokens))
                continue
            logits = decoder(features, torch.tensor([[BOS, *tokens]]))[0, -1]
            logits[list(NEVER)] = float("-inf")
            if n:
                known = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
                for token in range(len(logits)):
                    if tuple([*tokens, token][-n:]) in known:
                        logits[token] = float("-inf")
            logprobs = logits.log_softmax(-1).tolist()
            extended += [(total + p, [*tokens, t]) for t, p in enumerate(logprobs) if t not in NEVER]
        hypotheses = sorted(extended, key=score, reverse=True)[:num_beams]
        if all(tokens[-1] == EOS for _, tokens in hypotheses):
            break
    return [token for token in max(hypotheses, key=score)[1] if token != EOS]
