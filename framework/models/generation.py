"""Beam search on the decoder's cache; greedy search is beam search with one beam.

Shapes: B exams, K beams, R rows (the beams of all unfinished exams), T tokens so far, W words in the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from framework.exam import BOS, EOS, PAD, UNK, Features

NEVER = (PAD, BOS, UNK)  # tokens that no report contains


def reorder_cache(cache: Any, rows: Tensor) -> Any:
    """Selects rows of every tensor in a decoder's cache: any nest of dicts, lists and tuples, batch first."""
    if isinstance(cache, Tensor):
        return cache.index_select(0, rows)
    if isinstance(cache, dict):
        return {key: reorder_cache(value, rows) for key, value in cache.items()}
    if isinstance(cache, (list, tuple)):
        return type(cache)(reorder_cache(value, rows) for value in cache)
    return cache


def next_token_logprobs(logits_W: Tensor) -> Tensor:
    """Log-probabilities [..., W] of the next token in float32; minus infinity for tokens that no report contains."""
    masked_W = logits_W.to(torch.float32, copy=True)
    masked_W[..., NEVER] = float("-inf")
    return masked_W.log_softmax(-1)


def forbid_repeats(scores_RW: Tensor, tokens_RT: Tensor, ngram_size: int) -> Tensor:
    """Sets to minus infinity the score of each token that would repeat an n-gram of its row."""
    if tokens_RT.shape[1] < ngram_size:
        return scores_RW
    ngrams_RMn = tokens_RT.unfold(1, ngram_size, 1)
    prefix_Rn = tokens_RT[:, tokens_RT.shape[1] - ngram_size + 1 :]
    repeats_RM = (ngrams_RMn[..., :-1] == prefix_Rn[:, None]).all(-1)
    banned = torch.zeros_like(scores_RW).scatter_add_(1, ngrams_RMn[..., -1], repeats_RM.to(scores_RW.dtype))
    return scores_RW.masked_fill(banned > 0, float("-inf"))


@torch.no_grad()
def generate(
    decoder: Any,
    features: Features,
    *,
    max_length: int,
    num_beams: int = 1,
    length_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
) -> list[list[int]]:
    """The best report of each exam as token ids, without BOS and EOS.

    The score of a hypothesis is its log-probability divided by its length (EOS included) to the power `length_penalty`
    (0: the sum; 1: the mean). Finished hypotheses stay in the beam and compete. An exam is finished when all of its
    hypotheses are, or after `max_length` tokens.

    Args:
        decoder: offers `init_cache(features) -> cache` and `step(tokens_R, cache) -> (logits_RW, cache)`.
        no_repeat_ngram_size: no n-gram of this size occurs twice in a report; 0 allows repeats.
    """
    per_exam = features.patches_BND if features.pooled_BD is None else features.pooled_BD
    batch, device = per_exam.shape[0], per_exam.device
    cache = reorder_cache(decoder.init_cache(features), torch.arange(batch, device=device).repeat_interleave(num_beams))
    hypotheses_BKT = torch.empty(batch, num_beams, 0, dtype=torch.long, device=device)
    # At the start only the first beam of an exam counts, or all of its beams would be the same.
    beam_scores_BK = torch.full((batch, num_beams), float("-inf"), device=device)
    beam_scores_BK[:, 0] = 0
    lengths_BK = torch.zeros(batch, num_beams, device=device)
    finished_BK = torch.zeros(batch, num_beams, dtype=torch.bool, device=device)
    exams_B = torch.arange(batch, device=device)  # finished exams leave the batch
    last_tokens_R = torch.full((batch * num_beams,), BOS, device=device)
    reports: dict[int, list[int]] = {}
    for length in range(1, max_length + 1):
        logits_RW, cache = decoder.step(last_tokens_R, cache)
        if no_repeat_ngram_size:
            logits_RW = forbid_repeats(logits_RW.float(), hypotheses_BKT.flatten(0, 1), no_repeat_ngram_size)
        logprobs_BKW = next_token_logprobs(logits_RW).unflatten(0, (-1, num_beams))
        # A finished hypothesis is continued by PAD only, at no cost.
        logprobs_BKW = logprobs_BKW.masked_fill(finished_BK[..., None], float("-inf"))
        logprobs_BKW[..., PAD] = torch.where(finished_BK, 0.0, logprobs_BKW[..., PAD])
        next_scores_BKW = beam_scores_BK[..., None] + logprobs_BKW
        next_lengths_BK = torch.where(finished_BK, lengths_BK, length)
        penalized_BKW = next_scores_BKW / next_lengths_BK[..., None] ** length_penalty
        best_BK = penalized_BKW.flatten(1).topk(num_beams).indices
        vocabulary_size = logprobs_BKW.shape[-1]
        parents_BK, tokens_BK = best_BK // vocabulary_size, best_BK % vocabulary_size
        beam_scores_BK = next_scores_BKW.flatten(1).gather(1, best_BK)
        lengths_BK = next_lengths_BK.gather(1, parents_BK)
        hypotheses_BKT = torch.cat(
            [hypotheses_BKT.gather(1, parents_BK[..., None].expand(-1, -1, length - 1)), tokens_BK[..., None]], dim=-1
        )
        finished_BK = finished_BK.gather(1, parents_BK) | (tokens_BK == EOS)
        rows_BK = torch.arange(len(exams_B), device=device)[:, None] * num_beams + parents_BK
        done_B = finished_BK.all(1) if length < max_length else torch.ones_like(finished_BK[:, 0])
        for exam in done_B.nonzero().flatten().tolist():
            best = (beam_scores_BK[exam] / lengths_BK[exam] ** length_penalty).argmax()
            reports[int(exams_B[exam])] = [t for t in hypotheses_BKT[exam, best].tolist() if t not in (EOS, PAD)]
        unfinished = (~done_B).nonzero().flatten()
        if not len(unfinished):
            break
        cache = reorder_cache(cache, rows_BK[unfinished].flatten())
        exams_B, hypotheses_BKT = exams_B[unfinished], hypotheses_BKT[unfinished]
        beam_scores_BK, lengths_BK = beam_scores_BK[unfinished], lengths_BK[unfinished]
        finished_BK, last_tokens_R = finished_BK[unfinished], tokens_BK[unfinished].flatten()
    return [reports[exam] for exam in range(batch)]
