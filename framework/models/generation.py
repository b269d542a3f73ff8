"""Beam search on the decoder's cache; greedy search is beam search with one beam.

Shapes: B exams, K beams, R rows (the beams of all unfinished exams), T tokens so far, W words in the vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from framework.exam import BOS, EOS, PAD, UNK, Features
from framework.models.cache import Moves, expand_beams, move_exams, reorder_beams

NEVER = (PAD, BOS, UNK)  # tokens that no report contains


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


def steps_between_checks(device: torch.device) -> int:
    """Steps between looks at which exams are finished. A look at a GPU waits for it, and finished exams cost a CPU."""
    return 1 if device.type == "cpu" else 8


class Hypothesis(NamedTuple):
    """A report of the beam.

    Attributes:
        token_ids: without BOS and EOS.
        logprob: its log-probability, EOS included.
    """

    token_ids: list[int]
    logprob: float


class _Beams:
    """The hypotheses of all unfinished exams.

    Attributes:
        tokens_BKT: PAD after the tokens so far.
        scores_BK: log-probabilities.
        exams_B: the place of each exam in the batch that the search began with.
    """

    def __init__(self, batch: int, num_beams: int, max_length: int, device: torch.device) -> None:
        self.tokens_BKT = torch.full((batch, num_beams, max_length), PAD, device=device)
        # At the start only the first beam of an exam counts, or all of its beams would be the same.
        self.scores_BK = torch.full((batch, num_beams), float("-inf"), device=device)
        self.scores_BK[:, 0] = 0
        self.lengths_BK = torch.zeros(batch, num_beams, device=device)
        self.finished_BK = torch.zeros(batch, num_beams, dtype=torch.bool, device=device)
        self.exams_B = torch.arange(batch, device=device)

    def extend(self, logprobs_BKW: Tensor, length: int, length_penalty: float) -> Tensor:
        """Continues the best hypotheses by token number `length`. Returns the beams that they continue, [B, K].

        Args:
            logprobs_BKW: of the next token; it is changed.
        """
        beams, vocabulary_size = logprobs_BKW.shape[1:]
        # A finished hypothesis is continued by PAD only, at no cost.
        logprobs_BKW.masked_fill_(self.finished_BK[..., None], float("-inf"))
        logprobs_BKW[..., PAD] = torch.where(self.finished_BK, 0.0, logprobs_BKW[..., PAD])
        next_scores_BKW = self.scores_BK[..., None] + logprobs_BKW
        next_lengths_BK = torch.where(self.finished_BK, self.lengths_BK, length)
        penalized_BKW = next_scores_BKW / next_lengths_BK[..., None] ** length_penalty
        best_BK = penalized_BKW.flatten(1).topk(beams).indices
        parents_BK, tokens_BK = best_BK // vocabulary_size, best_BK % vocabulary_size
        self.scores_BK = next_scores_BKW.flatten(1).gather(1, best_BK)
        self.lengths_BK = next_lengths_BK.gather(1, parents_BK)
        self.finished_BK = self.finished_BK.gather(1, parents_BK) | (tokens_BK == EOS)
        if beams > 1:
            self.tokens_BKT = self.tokens_BKT.gather(1, parents_BK[..., None].expand_as(self.tokens_BKT))
        self.tokens_BKT[..., length - 1] = tokens_BK
        return parents_BK

    def ranked(self, exams_D: Tensor, length_penalty: float) -> dict[int, list[Hypothesis]]:
        """The hypotheses of each of these exams, the best first, by its place in the batch at the start."""
        penalized_DK = self.scores_BK[exams_D] / self.lengths_BK[exams_D] ** length_penalty
        order_DK = penalized_DK.sort(dim=1, descending=True, stable=True).indices
        scores_DK = self.scores_BK[exams_D].gather(1, order_DK)
        tokens_DKT = self.tokens_BKT[exams_D[:, None], order_DK]
        found = zip(self.exams_B[exams_D].tolist(), tokens_DKT.tolist(), scores_DK.tolist(), strict=True)
        return {exam: [Hypothesis(_words(row), score) for row, score in zip(rows, own)] for exam, rows, own in found}

    def move(self, moves: Moves) -> None:
        """Keeps the exams that remain."""
        for name, tensor in vars(self).items():
            setattr(self, name, moves.apply(tensor))


def generate(decoder: Any, features: Features, **search: Any) -> list[list[int]]:
    """The best report of each exam as token ids, without BOS and EOS. Takes the arguments of `beam_search`."""
    return [hypotheses[0].token_ids for hypotheses in beam_search(decoder, features, **search)]


@torch.no_grad()
def beam_search(
    decoder: Any,
    features: Features,
    *,
    max_length: int,
    num_beams: int = 1,
    length_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
) -> list[list[Hypothesis]]:
    """The `num_beams` best reports of each exam, the best first.

    The score of a hypothesis is its log-probability divided by its length (EOS included) to the power `length_penalty`
    (0: the sum; 1: the mean). Finished hypotheses stay in the beam and compete. An exam is finished when all of its
    hypotheses are, or after `max_length` tokens.

    Args:
        decoder: offers `init_cache(features) -> cache` and `step(tokens_R, cache) -> (logits_RW, cache)`, see
            models/cache.py. A cache that was handed to `step` is used up.
        no_repeat_ngram_size: no n-gram of this size occurs twice in a report; 0 allows repeats.
    """
    per_exam = features.patches_BND if features.pooled_BD is None else features.pooled_BD
    batch, device = per_exam.shape[0], per_exam.device
    check_every = steps_between_checks(device)
    cache = expand_beams(decoder.init_cache(features), num_beams)
    beams = _Beams(batch, num_beams, max_length, device)
    last_tokens_R = torch.full((batch * num_beams,), BOS, device=device)
    reports: dict[int, list[Hypothesis]] = {}
    for length in range(1, max_length + 1):
        logits_RW, cache = decoder.step(last_tokens_R, cache)
        if no_repeat_ngram_size:
            tokens_RT = beams.tokens_BKT[..., : length - 1].flatten(0, 1)
            logits_RW = forbid_repeats(logits_RW.float(), tokens_RT, no_repeat_ngram_size)
        logprobs_BKW = next_token_logprobs(logits_RW).unflatten(0, (-1, num_beams))
        parents_BK = beams.extend(logprobs_BKW, length, length_penalty)
        if num_beams > 1:
            cache = reorder_beams(cache, parents_BK)
        if length % check_every == 0 or length == max_length:
            done_B = beams.finished_BK.all(1) | (length == max_length)
            done = done_B.nonzero().flatten()
            reports |= beams.ranked(done, length_penalty)
            if len(reports) == batch:
                break
            if len(done):
                moves = Moves.closing_gaps(done_B)
                cache = move_exams(cache, moves, num_beams)
                beams.move(moves)
        last_tokens_R = beams.tokens_BKT[..., length - 1].flatten()
    return [reports[exam] for exam in range(batch)]


def _words(tokens: list[int]) -> list[int]:
    return [token for token in tokens if token not in (EOS, PAD)]
