"""Computes how sure a model is of each word of its reports, and where it looks while it writes it.

Shapes: B exams, T tokens, N patches, V views, h w cells of a view's map, W words in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from framework.exam import BOS, PAD
from framework.models.ensemble import attention_of
from framework.models.generation import next_token_logprobs
from framework.models.views import view_maps
from framework.text.words import Word, pieces_of, whole_words


@torch.no_grad()
def words_of_reports(
    task: Any,
    features: Any,
    reports: Sequence[Sequence[int]],
    tokenizer: Any,
    view_counts: Sequence[int],
    temperature: float | None = None,
    *,
    attention: bool = True,
) -> list[list[Word]]:
    """The words of each report, by a pass of the decoder over it for confidence, and one for attention.

    Args:
        task: that generated the reports, in eval mode.
        reports: token ids without BOS and EOS.
        view_counts: views of each exam; the batch is padded to the largest.
        temperature: of the model's calibration; None for a model without one.
        attention: False leaves it out.
    """
    length = max(map(len, reports))
    if not length:
        return [[] for _ in reports]
    rows = [[BOS, *tokens, *[PAD] * (length - len(tokens))] for tokens in reports]
    tokens_BT = torch.tensor(rows, device=next(task.parameters()).device)
    logprobs_BTW = next_token_logprobs(task.decoder(features, tokens_BT[:, :-1]))
    if temperature is not None:
        logprobs_BTW = (logprobs_BTW / temperature).log_softmax(-1)
    confidence_BT = logprobs_BTW.gather(-1, tokens_BT[:, 1:, None])[..., 0].exp().cpu().numpy()
    weights_BTN = attention_of(task.decoder, features, tokens_BT[:, :-1]) if attention else None
    maps = None if weights_BTN is None else view_maps(weights_BTN.float(), max(view_counts), task.encoder)
    maps_BTVhw = None if maps is None else maps.cpu().numpy()
    found = []
    for exam, (tokens, views) in enumerate(zip(reports, view_counts, strict=True)):
        words, start = [], 0
        for text, places in whole_words(pieces_of(tokens, tokenizer)):
            own = slice(places.start, places.stop)
            words.append(
                Word(
                    text.strip(),
                    start + len(text) - len(text.lstrip()),
                    float(confidence_BT[exam, own].prod()),
                    None if maps_BTVhw is None else maps_BTVhw[exam, own, :views].mean(0),
                )
            )
            start += len(text)
        found.append(words)
    return found
