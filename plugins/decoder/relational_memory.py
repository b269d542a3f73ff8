"""R2Gen's decoder: a transformer whose norms are conditioned on a memory of the words so far.

Shapes: B batch, T tokens, D width, S slots, M concatenated slots (S x D).
"""

from __future__ import annotations

from functools import partial
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


@register("decoder", "relational_memory")
class RelationalMemory(BaseTransformerDecoder):
    """The memory-driven transformer of R2Gen.

    A few slots hold a memory of the report so far. At every word the slots attend to one another and to the word, and
    input and forget gates update them. The slots shift and scale every norm of the decoder layers. The memory is
    recurrent: training runs it word by word, and the rest of the decoder in parallel.

    Source:
        Chen et al. 2020, arXiv 2010.16056: sections "Relational Memory" (attention over memory and word, MLP, gates)
        and "Memory-driven Conditional Layer Normalization", sizes of its experiments; pre-norm, the MLPs' ReLUs,
        the initial memory (rows of the identity matrix) and initial weights as in the published code. There, the memory
        and the layers see the words with different dropout masks; here, with the same.

    Args:
        layers: Decoder layers. [layers]
        encoder_layers: Self-attention layers over the patches; 0 for none. [layers]
        width: Width of every layer and of a slot. [channels]
        heads: Attention heads; must divide the width. [heads]
        feedforward: Hidden width of the feed-forward layers. [channels]
        slots: Rows of the memory. [slots]
        memory_heads: Attention heads of the memory; must divide the width. [heads]
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
        slots: PositiveInt = 3,
        memory_heads: PositiveInt = 8,
        dropout: Fraction = 0.1,
        feature_dropout: Fraction = 0.5,
    ) -> None:
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
            norm=partial(_ConditionalNorm, slots=slots),
        )
        self.memory = _Memory(slots, width, memory_heads, dropout)

    def init_cache(self, features: Features) -> dict[str, Any]:
        """The cache before the first token, with the initial memory."""
        initial_BSD = self.memory.initial_SD.expand(features.patches_BND.shape[0], -1, -1)
        return {**super().init_cache(features), "slots": initial_BSD}

    def embed(self, tokens_BT: Tensor, cache: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Any]]:
        """Embeddings; the memory after each token, which conditions the norms; the cache with the last memory."""
        x_BTD, _, cache = super().embed(tokens_BT, cache)
        slots_BTSD = self.memory(x_BTD, cache["slots"])
        return x_BTD, (slots_BTSD.flatten(2),), {**cache, "slots": slots_BTSD[:, -1]}


class _Memory(nn.Module):
    initial_SD: Tensor

    def __init__(self, slots: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, width), nn.Linear(width, width)
        self.word_gates, self.slot_gates = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        xavier_uniform_matrices_(self)
        self.register_buffer("initial_SD", torch.eye(slots, width), persistent=False)

    def forward(self, words_BTD: Tensor, slots_BSD: Tensor) -> Tensor:
        """The memory after each word, [B, T, S, D]."""
        word_keys, word_values = self.attention.keys_values(words_BTD)
        word_gates = self.word_gates(words_BTD)
        after = []
        for t in range(words_BTD.shape[1]):
            keys, values = self.attention.keys_values(slots_BSD)
            keys = torch.cat([keys, word_keys[:, :, t : t + 1]], dim=2)
            values = torch.cat([values, word_values[:, :, t : t + 1]], dim=2)
            new_BSD = slots_BSD + self.attention(slots_BSD, (keys, values))
            new_BSD = new_BSD + F.relu(self.linear2(F.relu(self.linear1(new_BSD))))
            gates_BSG = word_gates[:, t : t + 1] + self.slot_gates(torch.tanh(slots_BSD))
            input_gate, forget_gate = torch.sigmoid(gates_BSG).chunk(2, dim=-1)
            slots_BSD = input_gate * torch.tanh(new_BSD) + forget_gate * slots_BSD
            after.append(slots_BSD)
        return torch.stack(after, dim=1)


class _ConditionalNorm(nn.Module):
    """Memory-driven conditional layer normalization: an MLP of the slots changes scale and shift."""

    def __init__(self, width: int, slots: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.weight_mlp, self.bias_mlp = (
            nn.Sequential(nn.Linear(slots * width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(2)
        )
        for linear in self.modules():
            if isinstance(linear, nn.Linear):
                nn.init.constant_(linear.bias, 0.1)

    def forward(self, x_BTD: Tensor, slots_BTM: Tensor) -> Tensor:
        normed_BTD = F.layer_norm(x_BTD, x_BTD.shape[-1:])
        weight_BTD = self.weight + self.weight_mlp(slots_BTM)
        return weight_BTD * normed_BTD + self.bias + self.bias_mlp(slots_BTM)
