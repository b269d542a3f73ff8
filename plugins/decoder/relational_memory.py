"""R2Gen's decoder: a transformer whose norms look at a memory of what has been written.

Shapes: B batch, T tokens, D width, S slots, M the slots side by side (S x D).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from framework.exam import Features
from framework.models.transformer_decoder import Attention, ReportTransformer, draw_matrices
from framework.registry import register
from framework.registry.types import Fraction


@register("decoder", "relational_memory")
class RelationalMemory(ReportTransformer):
    """The memory-driven transformer of R2Gen.

    A few slots remember how the report went so far. With every word they attend to one another and to that word, and
    gates let the new in and the old go. What they hold shifts and scales every norm of the decoder's layers. Memory is
    a recurrence over words: training passes through it word by word, and the rest of the decoder at once.

    Source:
        Chen et al. 2020, arXiv 2010.16056: sections "Relational Memory" (attention over memory and word, MLP, gates)
        and "Memory-driven Conditional Layer Normalization", sizes of its experiments; norms first, the MLPs' ReLUs,
        the first memory (rows of the unit matrix) and first weights as in the published code. There, the memory sees
        the words under another draw of dropout than the layers do; here, under the same.

    Args:
        layers: Decoder layers. [layers]
        encoder_layers: Self-attention layers over the patches; 0 leaves the patches as they are. [layers]
        width: Width of every layer, and of a slot. [channels]
        heads: Attention heads; they divide the width. [heads]
        feedforward: Width inside the feed-forward layers. [channels]
        slots: Rows of the memory. [slots]
        memory_heads: Attention heads of the memory; they divide the width. [heads]
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
        """The state before the first word, with the memory as it begins."""
        first_BSD = self.memory.first_SD.expand(len(features.patches_BND), -1, -1)
        return {**super().init_cache(features), "slots": first_BSD}

    def embed(self, tokens_BT: Tensor, state: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Any]]:
        """The words; for the norms, the memory after each of them; and the state, with the memory after the last."""
        x_BTD, _, state = super().embed(tokens_BT, state)
        slots_BTSD = self.memory(x_BTD, state["slots"])
        return x_BTD, (slots_BTSD.flatten(2),), {**state, "slots": slots_BTSD[:, -1]}


class _Memory(nn.Module):
    first_SD: Tensor

    def __init__(self, slots: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.word_gates, self.slot_gates = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        draw_matrices(self)
        self.register_buffer("first_SD", torch.eye(slots, width), persistent=False)

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
            new_BSD = new_BSD + F.relu(self.outer(F.relu(self.inner(new_BSD))))
            gates_BSG = word_gates[:, t : t + 1] + self.slot_gates(torch.tanh(slots_BSD))
            let_in, keep = torch.sigmoid(gates_BSG).chunk(2, dim=-1)
            slots_BSD = let_in * torch.tanh(new_BSD) + keep * slots_BSD
            after.append(slots_BSD)
        return torch.stack(after, dim=1)


class _ConditionalNorm(nn.Module):
    """Layer normalization whose scale and shift the memory changes."""

    def __init__(self, width: int, slots: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.scale_change, self.shift_change = (
            nn.Sequential(nn.Linear(slots * width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(2)
        )
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(parameter, 0.1)

    def forward(self, x_BTD: Tensor, slots_BTM: Tensor) -> Tensor:
        normed_BTD = F.layer_norm(x_BTD, x_BTD.shape[-1:])
        scale_BTD = self.scale + self.scale_change(slots_BTM)
        return scale_BTD * normed_BTD + self.shift + self.shift_change(slots_BTM)
