"""Writes reports word by word on the decoder's cache: beam search, which with one beam is greedy.

Shapes: B exams, K beams, R rows (the beams of all exams still being written), T words so far, W vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from framework.exam import BOS, EOS, PAD, UNK, Features

NEVER = (PAD, BOS, UNK)  # a report has none of these


def select(state: Any, rows: Tensor) -> Any:
    """Takes rows of every tensor in a decoder's state: any nest of dicts, lists and tuples, batch first."""
    if isinstance(state, Tensor):
        return state.index_select(0, rows)
    if isinstance(state, dict):
        return {key: select(value, rows) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(select(value, rows) for value in state)
    return state


def next_token_logprobs(logits_W: Tensor) -> Tensor:
    """Log-probabilities [..., W] of the next word that is written, in float32; what no report has, has none."""
    able_W = logits_W.to(torch.float32, copy=True)
    able_W[..., NEVER] = float("-inf")
    return able_W.log_softmax(-1)


def forbid_repeats(scores_RW: Tensor, words_RT: Tensor, ngram: int) -> Tensor:
    """Minus infinity for each word that would complete an n-gram that its row already has."""
    if words_RT.shape[1] < ngram:
        return scores_RW
    windows_RMn = words_RT.unfold(1, ngram, 1)
    ending_Rn = words_RT[:, words_RT.shape[1] - ngram + 1 :]
    repeats_RM = (windows_RMn[..., :-1] == ending_Rn[:, None]).all(-1)
    barred = torch.zeros_like(scores_RW).scatter_add_(1, windows_RMn[..., -1], repeats_RM.to(scores_RW.dtype))
    return scores_RW.masked_fill(barred > 0, float("-inf"))


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

    A hypothesis is ranked by its log-probability over its length (EOS counted) to the power `length_penalty`
    (0: the plain sum; 1: the mean). Finished hypotheses stay in the beam and compete; an exam ends when its whole beam
    has finished, or after `max_length` words.

    Args:
        no_repeat_ngram_size: no n-gram of this many words occurs twice in a report; 0 lets them.
    """
    given = features.patches_BND if features.pooled_BD is None else features.pooled_BD
    batch, device = given.shape[0], given.device
    state = select(decoder.init_cache(features), torch.arange(batch, device=device).repeat_interleave(num_beams))
    words_BKT = torch.empty(batch, num_beams, 0, dtype=torch.long, device=device)
    # Only the first beam of each exam counts at the start, or all beams would be the same.
    sums_BK = torch.full((batch, num_beams), float("-inf"), device=device)
    sums_BK[:, 0] = 0
    lengths_BK = torch.zeros(batch, num_beams, device=device)
    ended_BK = torch.zeros(batch, num_beams, dtype=torch.bool, device=device)
    exams = torch.arange(batch, device=device)  # which exam each line of these tensors is
    last_R = torch.full((batch * num_beams,), BOS, device=device)
    reports: dict[int, list[int]] = {}
    for length in range(1, max_length + 1):
        logits_RW, state = decoder.step(last_R, state)
        if no_repeat_ngram_size:
            logits_RW = forbid_repeats(logits_RW.float(), words_BKT.flatten(0, 1), no_repeat_ngram_size)
        steps_BKW = next_token_logprobs(logits_RW).unflatten(0, (-1, num_beams))
        # A finished hypothesis goes on with PAD alone, at no cost.
        steps_BKW = steps_BKW.masked_fill(ended_BK[..., None], float("-inf"))
        steps_BKW[..., PAD] = torch.where(ended_BK, 0.0, steps_BKW[..., PAD])
        sums_BKW = sums_BK[..., None] + steps_BKW
        grown_BK = torch.where(ended_BK, lengths_BK, length)
        ranked_BKW = sums_BKW / grown_BK[..., None] ** length_penalty
        best_BK = ranked_BKW.flatten(1).topk(num_beams).indices
        vocabulary = steps_BKW.shape[-1]
        parent_BK, word_BK = best_BK // vocabulary, best_BK % vocabulary
        sums_BK = sums_BKW.flatten(1).gather(1, best_BK)
        lengths_BK = grown_BK.gather(1, parent_BK)
        words_BKT = torch.cat(
            [words_BKT.gather(1, parent_BK[..., None].expand(-1, -1, length - 1)), word_BK[..., None]], dim=-1
        )
        ended_BK = ended_BK.gather(1, parent_BK) | (word_BK == EOS)
        lines = torch.arange(len(exams), device=device)
        rows_BK = lines[:, None] * num_beams + parent_BK
        done_B = ended_BK.all(1) if length < max_length else torch.ones_like(ended_BK[:, 0])
        for line in done_B.nonzero().flatten().tolist():
            first = (sums_BK[line] / lengths_BK[line] ** length_penalty).argmax()
            reports[int(exams[line])] = [w for w in words_BKT[line, first].tolist() if w not in (EOS, PAD)]
        going = (~done_B).nonzero().flatten()
        if not len(going):
            break
        state = select(state, rows_BK[going].flatten())
        exams, words_BKT, sums_BK = exams[going], words_BKT[going], sums_BK[going]
        lengths_BK, ended_BK, last_R = lengths_BK[going], ended_BK[going], word_BK[going].flatten()
    return [reports[exam] for exam in range(batch)]
