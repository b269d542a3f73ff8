"""Samples reports from a decoder and computes their log-probabilities, for losses on whole reports.

Shapes: B exams, T tokens, W words in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from framework.exam import BOS, EOS, PAD, Features
from framework.models.generation import next_token_logprobs


@torch.no_grad()
def sample(decoder: Any, features: Features, *, max_length: int) -> Tensor:
    """A sampled report of each exam, long [B, T]: tokens and EOS, then PAD. Uses torch's global generator.

    A report of `max_length` tokens is cut off and has no EOS.
    """
    per_exam = next(value for value in features if value is not None)
    cache = decoder.init_cache(features)
    last_B = torch.full((len(per_exam),), BOS, device=per_exam.device)
    finished_B = torch.zeros_like(last_B, dtype=torch.bool)
    tokens: list[Tensor] = []
    for _ in range(max_length):
        logits_BW, cache = decoder.step(last_B, cache)
        sampled_B = torch.multinomial(next_token_logprobs(logits_BW).exp(), 1)[:, 0]
        last_B = sampled_B.masked_fill(finished_B, PAD)
        tokens.append(last_B)
        finished_B = finished_B | (last_B == EOS)
        if bool(finished_B.all()):
            break
    return torch.stack(tokens, dim=1)


def report_logp(decoder: Any, features: Features, report_BT: Tensor) -> Tensor:
    """Log-probability [B] of reports as `sample` returns them, differentiable, in one forward pass."""
    bos_B1 = torch.full_like(report_BT[:, :1], BOS)
    # cuDNN has no backward pass of a recurrent layer in eval mode.
    recurrent = any(isinstance(part, nn.RNNBase) and not part.training for part in decoder.modules())
    with torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext():
        logits_BTW = decoder(features, torch.cat([bos_B1, report_BT[:, :-1]], dim=1))
    logprobs_BT = next_token_logprobs(logits_BTW).gather(2, report_BT[..., None])[..., 0]
    return logprobs_BT.masked_fill(report_BT == PAD, 0.0).sum(1)


def words_of(report_BT: Tensor) -> list[list[int]]:
    """The token ids of each report without EOS and PAD."""
    return [[token for token in row if token not in (EOS, PAD)] for row in report_BT.tolist()]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module in eval mode and restores the mode of each of its parts afterwards."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
