"""R2GenCMN's decoder: a transformer whose patches and words query one shared memory.

Shapes: B batch, N patches, T tokens, D width, S slots, H heads, d width of a head, R rows (all patches or all words).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from framework.exam import Features
from framework.models.transformer_decoder import (
    BaseTransformerDecoder,
    MultiHeadAttention,
    xavier_uniform_matrices_,
)
from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.errors import UserError


@register("decoder", "cross_modal_memory")
class CrossModalMemory(BaseTransformerDecoder):
    """The transformer of R2GenCMN, with its cross-modal memory network.

    Projected patches and embedded words query one learned matrix of slots by multi-head attention to the `top_k` slots
    with the highest scores in each head. The response is added to the query.

    Source:
        Chen et al. 2021, arXiv 2204.13258: "Cross-modal Memory Networks" (memory querying, memory responding), sizes of
        its experiments; adding the response, pre-norm and the initial values of the slots as in the published code,
        which also adds positions to the patches. They are left out here, as in `transformer`, since the number of
        patches differs between exams.

    Args:
        layers: Decoder layers. [layers]
        encoder_layers: Self-attention layers over the patches; 0 for none. [layers]
        width: Width of every layer and of a slot. [channels]
        heads: Attention heads, also of the memory; must divide the width. [heads]
        feedforward: Hidden width of the feed-forward layers. [channels]
        slots: Rows of the memory. [slots]
        top_k: Slots that each query attends to; at most `slots`. [slots]
        dropout: Dropout probability in every layer. [share]
        feature_dropout: Dropout probability of the projected patches. [share]
    """

    needs = ("patches",)
    gives = ("logits",)

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_width: int,
        max_length: int,
        layers: PositiveInt = 3,
        encoder_layers: NonNegativeInt = 3,
        width: PositiveInt = 512,
        heads: PositiveInt = 8,
        feedforward: PositiveInt = 512,
        slots: PositiveInt = 2048,
        top_k: PositiveInt = 32,
        dropout: Fraction = 0.1,
        feature_dropout: Fraction = 0.5,
    ) -> None:
        if top_k > slots:
            raise UserError(
                "out-of-range",
                f"found {top_k}",
                place="model.decoder.top_k",
                expected=f"at most slots, which is {slots}",
            )
        super().__init__(
            vocabulary_size=vocabulary_size,
            feature_width=feature_width,
            max_length=max_length,
            layers=layers,
            encoder_layers=encoder_layers,
            width=width,
            heads=heads,
            feedforward=feedforward,
            dropout=dropout,
            feature_dropout=feature_dropout,
        )
        self.memory = _Memory(slots, top_k, width, heads, dropout)

    def init_cache(self, features: Features) -> dict[str, Any]:
        """The cache before the first token, with keys and values of the slots."""
        x_BND = self.input_proj(features.patches_BND)
        response_BND, slots = self.memory(x_BND)
        return {**self.encode(x_BND + response_BND, features.patch_mask_BN), "slots": slots}

    def embed(self, tokens_BT: Tensor, cache: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Any]]:
        """Embeddings plus the response of the memory."""
        x_BTD, cond, cache = super().embed(tokens_BT, cache)
        return x_BTD + self.memory(x_BTD, cache["slots"])[0], cond, cache


@dataclass(frozen=True)
class _Slots:
    """Keys and values [1, H, S, d], the same for all exams; in an object, so that a search leaves them alone."""

    keys: Tensor
    values: Tensor


class _Memory(nn.Module):
    def __init__(self, slots: int, top_k: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.top_k = top_k
        self.attention = MultiHeadAttention(width, heads, dropout, key_bias=False)
        xavier_uniform_matrices_(self)
        self.slots_SD = nn.Parameter(torch.empty(slots, width).normal_(std=1 / width))

    def forward(self, x_BTD: Tensor, slots: _Slots | None = None) -> tuple[Tensor, _Slots]:
        """The response of the memory [B, T, D], and keys and values of the slots for the next call."""
        slots = slots or _Slots(*self.attention.keys_values(self.slots_SD[None]))
        x_1RD = x_BTD.flatten(0, 1)[None]  # all exams query the same slots
        scores_1HRS = self.attention.scores(x_1RD, slots.keys)
        top_1HRk, index_1HRk = scores_1HRS.topk(self.top_k)
        weights_1HRk = F.dropout(top_1HRk.softmax(-1), self.attention.dropout, self.training)
        # Scattered among zeros: the gradient of a product with all values is deterministic on a GPU, that of values
        # gathered for each query is not.
        weights_1HRS = torch.zeros_like(scores_1HRS, dtype=weights_1HRk.dtype).scatter(-1, index_1HRk, weights_1HRk)
        response_1RD = self.attention.merge_heads(weights_1HRS @ slots.values)
        return response_1RD[0].unflatten(0, x_BTD.shape[:2]), slots
