"""The published report decoder: a transformer over the patches that writes one word at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from framework.exam import Features
from framework.registry import register
from framework.values import Fraction


@register("decoder", "transformer")
class Transformer(nn.Module):
    """Pre-norm transformer over the patches.

    The patches are projected to `width`, pass `encoder_layers` of self-attention and are attended to by `layers` of
    decoder, with sinusoidal positions. Generation keeps each layer's keys and values.

    Source:
        Vaswani et al. 2017, arXiv 1706.03762, section 3; norms first: Xiong et al. 2020, arXiv 2002.04745; its
        place and sizes: Li et al. 2024, arXiv 2406.00644.

    Args:
        layers: Decoder layers. [layers]
        encoder_layers: Self-attention layers over the patches; 0 leaves the patches as they are. [layers]
        width: Width of every layer. [channels]
        heads: Attention heads; they divide the width. [heads]
        feedforward: Width inside the feed-forward layers. [channels]
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
        max_tokens: int,
        layers: PositiveInt = 3,
        encoder_layers: NonNegativeInt = 3,
        width: PositiveInt = 512,
        heads: PositiveInt = 8,
        feedforward: PositiveInt = 512,
        dropout: Fraction = 0.1,
        feature_dropout: Fraction = 0.5,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"model.decoder: {heads} heads do not divide a width of {width}")
        self.max_tokens = max_tokens
        self.project = nn.Sequential(nn.Linear(feature_width, width), nn.ReLU(), nn.Dropout(feature_dropout))
        self.encoder = nn.ModuleList(
            _Layer(width, heads, feedforward, dropout, cross=False) for _ in range(encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.embed = nn.Embedding(vocabulary_size, width)
        self.layers = nn.ModuleList(_Layer(width, heads, feedforward, dropout, cross=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.write = nn.Linear(width, vocabulary_size)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)
        # BOS and the words of the longest report, and one to spare for the word that ends it.
        self.register_buffer("positions_TD", sinusoids(max_tokens + 2, width), persistent=False)

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, W]: at t, of the word that follows `tokens_BT[:, : t + 1]`."""
        memory_BND = self._memory(features)
        mask = features.patch_mask_BN[:, None, None, :]
        x_BTD = self._embed(tokens_BT, 0)
        for layer in self.layers:
            x_BTD = layer(x_BTD, causal=True, memory=layer.cross.keys_values(memory_BND), memory_mask=mask)[0]
        return self.write(self.norm(x_BTD))

    def start(self, features: Features) -> dict[str, Any]:
        """The state before the first word: what the layers need of the patches, and an empty cache."""
        memory_BND = self._memory(features)
        return {
            "mask": features.patch_mask_BN[:, None, None, :],
            "memory": [layer.cross.keys_values(memory_BND) for layer in self.layers],
            "past": [None] * len(self.layers),
        }

    def step(self, tokens_B: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, W] of the next word, and the state with this one in its cache."""
        first = state["past"][0]
        x_B1D = self._embed(tokens_B[:, None], 0 if first is None else first[0].shape[2])
        grown = []
        for layer, memory, past in zip(self.layers, state["memory"], state["past"]):
            x_B1D, kept = layer(x_B1D, causal=False, past=past, memory=memory, memory_mask=state["mask"])
            grown.append(kept)
        return self.write(self.norm(x_B1D))[:, 0], {**state, "past": grown}

    def _memory(self, features: Features) -> Tensor:
        x_BND = self.project(features.patches_BND)
        mask = features.patch_mask_BN[:, None, None, :]
        for layer in self.encoder:
            x_BND = layer(x_BND, causal=False, mask=mask)[0]
        return self.encoder_norm(x_BND)

    def _embed(self, tokens_BT: Tensor, start: int) -> Tensor:
        end = start + tokens_BT.shape[1]
        x_BTD = self.embed(tokens_BT) * math.sqrt(self.embed.embedding_dim)
        return self.dropout(x_BTD + self.positions_TD[start:end].to(x_BTD.dtype))


class _Attention(nn.Module):
    """Multi-head attention in parts, so that keys and values can be kept. H heads, d width of a head."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.key(x_BTD)), self._split(self.value(x_BTD))

    def forward(
        self, x_BTD: Tensor, kept: tuple[Tensor, Tensor], mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        mixed_BHTd = F.scaled_dot_product_attention(
            self._split(self.query(x_BTD)),
            *kept,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        return self.out(mixed_BHTd.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, cross: bool) -> None:
        super().__init__()
        self.own, self.own_norm = _Attention(width, heads, dropout), nn.LayerNorm(width)
        if cross:
            self.cross, self.cross_norm = _Attention(width, heads, dropout), nn.LayerNorm(width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward), nn.ReLU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        causal: bool,
        mask: Tensor | None = None,
        past: tuple[Tensor, Tensor] | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_mask: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        normed = self.own_norm(x_BTD)
        keys, values = self.own.keys_values(normed)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        x_BTD = x_BTD + self.dropout(self.own(normed, (keys, values), mask, causal))
        if memory is not None:
            x_BTD = x_BTD + self.dropout(self.cross(self.cross_norm(x_BTD), memory, memory_mask))
        x_BTD = x_BTD + self.dropout(self.feedforward(self.feedforward_norm(x_BTD)))
        return x_BTD, (keys, values)


def sinusoids(length: int, width: int) -> Tensor:
    """Positions [length, width] of Vaswani et al. 2017, section 3.5."""
    position = torch.arange(length).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate[: width // 2])
    return table
