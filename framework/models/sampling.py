"""Draws reports from a decoder, and tells the log-probability of reports: what a loss on whole reports is made of.

Shapes: B exams, T tokens, W words in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from framework.exam import BOS, EOS, PAD, Features
from framework.models.generation import next_token_logprobs


@torch.no_grad()
def sample(decoder: Any, features: Features, *, max_length: int) -> Tensor:
    """A report of each exam, long [B, T]: words and EOS, then PAD, each word drawn by its probability after those
    before, by torch's global generator. After `max_length` words a report is cut off, without an EOS.
    """
    exams = next(value for value in features if value is not None)
    state = decoder.init_cache(features)
    last_B = torch.full((len(exams),), BOS, device=exams.device)
    ended_B = torch.zeros_like(last_B, dtype=torch.bool)
    words: list[Tensor] = []
    for _ in range(max_length):
        logits_BW, state = decoder.step(last_B, state)
        drawn_B = torch.multinomial(next_token_logprobs(logits_BW).exp(), 1)[:, 0]
        last_B = drawn_B.masked_fill(ended_B, PAD)
        words.append(last_B)
        ended_B = ended_B | (last_B == EOS)
        if bool(ended_B.all()):
            break
    return torch.stack(words, dim=1)


def report_logp(decoder: Any, features: Features, report_BT: Tensor) -> Tensor:
    """Log-probability of reports as `sample` gives them, [B], with its gradient: one pass over all words at once."""
    begin_B1 = torch.full_like(report_BT[:, :1], BOS)
    # cuDNN has no gradient of a recurrent layer that is not training.
    recurrent = any(isinstance(part, nn.RNNBase) and not part.training for part in decoder.modules())
    with torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext():
        logits_BTW = decoder(features, torch.cat([begin_B1, report_BT[:, :-1]], dim=1))
    each_BT = next_token_logprobs(logits_BTW).gather(2, report_BT[..., None])[..., 0]
    return each_BT.masked_fill(report_BT == PAD, 0.0).sum(1)


def words_of(report_BT: Tensor) -> list[list[int]]:
    """Each report's words, without EOS and PAD."""
    return [[word for word in row if word not in (EOS, PAD)] for row in report_BT.tolist()]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout in here; then every part is as it was, also one that is kept from training."""
    before: Sequence[tuple[nn.Module, bool]] = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
