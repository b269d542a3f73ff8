"""R2GenCMN's decoder: a transformer whose patches and words look the same things up in one memory.

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
from framework.models.transformer_decoder import Attention, ReportTransformer, draw_matrices
from framework.registry import register
from framework.registry.types import Fraction


@register("decoder", "cross_modal_memory")
class CrossModalMemory(ReportTransformer):
    """The transformer of R2GenCMN, with its cross-modal memory network.

    Patches, before they are encoded, and words, before they are decoded, ask one learned matrix of slots. In every head
    the `top_k` slots that score highest answer, and the answer is added to what asked.

    Source:
        Chen et al. 2021, arXiv 2204.13258: "Cross-modal Memory Networks" (memory querying, memory responding), sizes of
        its experiments; answers added, norms first and the slots' first values as in the published code. It also gives
        the patches positions, which are left out here as in `transformer`: their number differs from exam to exam.

    Args:
        layers: Decoder layers. [layers]
        encoder_layers: Self-attention layers over the patches; 0 leaves the patches as they are. [layers]
        width: Width of every layer, and of a slot. [channels]
        heads: Attention heads, also of the memory; they divide the width. [heads]
        feedforward: Width inside the feed-forward layers. [channels]
        slots: Rows of the memory. [slots]
        top_k: Slots that answer a query; at most all. [slots]
        dropout: Share of units dropped in every layer. [share]
        feature_dropout: Share of units dropped from the projected patches. [share]
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
            raise ValueError(f"model.decoder: top_k={top_k} of {slots} slots; expected at most as many as there are")
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
        """The state before the first word, with keys and values of the slots."""
        x_BND = self.project(features.patches_BND)
        answers_BND, slots = self.memory(x_BND)
        return {**self.encode(x_BND + answers_BND, features.patch_mask_BN), "slots": slots}

    def embed(self, tokens_BT: Tensor, state: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Any]]:
        """The words and what the memory answers them."""
        x_BTD, cond, state = super().embed(tokens_BT, state)
        return x_BTD + self.memory(x_BTD, state["slots"])[0], cond, state


@dataclass(frozen=True)
class _Slots:
    """Keys and values [1, H, S, d], of all exams alike: no tensors of the state, of which beam search takes rows."""

    keys: Tensor
    values: Tensor


class _Memory(nn.Module):
    def __init__(self, slots: int, top_k: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.top_k = top_k
        self.attention = Attention(width, heads, dropout, key_bias=False)
        draw_matrices(self)
        self.matrix_SD = nn.Parameter(torch.empty(slots, width).normal_(std=1 / width))

    def forward(self, x_BTD: Tensor, slots: _Slots | None = None) -> tuple[Tensor, _Slots]:
        """What the memory answers [B, T, D], and keys and values of the slots, which need not be computed twice."""
        slots = slots or _Slots(*self.attention.keys_values(self.matrix_SD[None]))
        x_1RD = x_BTD.flatten(0, 1)[None]  # the slots are the same for all
        scores_1HRS = self.attention.scores(x_1RD, slots.keys)
        best_1HRk, which_1HRk = scores_1HRS.topk(self.top_k)
        shares_1HRk = F.dropout(best_1HRk.softmax(-1), self.attention.dropout, self.training)
        # Back among the slots that do not answer: the gradient of a product with all values adds up in the same order
        # each time, which that of values gathered for each query need not on a GPU.
        shares_1HRS = torch.zeros_like(scores_1HRS, dtype=shares_1HRk.dtype).scatter(-1, which_1HRk, shares_1HRk)
        answers_1RD = self.attention.join(shares_1HRS @ slots.values)
        return answers_1RD[0].unflatten(0, x_BTD.shape[:2]), slots
