"""A transformer that reads patches and writes a report, and its parts: what the decoders that are transformers share.

Shapes: B batch, N patches, D width, T tokens, W words in the vocabulary, H heads, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.exam import Features

Kept = tuple[Tensor, ...]  # keys and values of a layer's own words, and of what it attends to


class ReportTransformer(nn.Module):
    """Pre-norm transformer over the patches; a decoder that adds to it overrides `init_cache` or `embed`.

    The patches are projected to `width`, pass `encoder_layers` of self-attention and are attended to by `layers` of
    decoder, with sinusoidal positions. Generation keeps each layer's keys and values.

    Args:
        norm: Makes a norm of the decoder's layers from their width. It is called with what `embed` gives the norms.

    Raises:
        ValueError: the heads do not divide the width.
    """

    positions_TD: Tensor

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_width: int,
        max_length: int,
        layers: int,
        encoder_layers: int,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        feature_dropout: float,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(feature_width, width), nn.ReLU(), nn.Dropout(feature_dropout))
        self.encoder = nn.ModuleList(Layer(width, heads, feedforward, dropout) for _ in range(encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.embed_tokens = nn.Embedding(vocabulary_size, width)
        self.layers = nn.ModuleList(
            Layer(width, heads, feedforward, dropout, cross=True, norm=norm) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.lm_head = nn.Linear(width, vocabulary_size)
        draw_matrices(self)
        # BOS and the words of the longest report, and one to spare for the word that ends it.
        self.register_buffer("positions_TD", sinusoids(max_length + 2, width), persistent=False)

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, W]: at t, of the word that follows `tokens_BT[:, : t + 1]`."""
        state = self.init_cache(features)
        x_BTD, cond, _ = self.embed(tokens_BT, state)
        for layer in self.layers:
            x_BTD = layer(x_BTD, *cond, causal=True, memory=state["memory"], memory_mask=state["mask"])[0]
        return self.lm_head(self.norm(x_BTD))

    def init_cache(self, features: Features) -> dict[str, Any]:
        """The state before the first word."""
        return self.encode(self.project(features.patches_BND), features.patch_mask_BN)

    def encode(self, x_BND: Tensor, patch_mask_BN: Tensor) -> dict[str, Any]:
        """Of projected patches, what the layers see of them, and an empty cache."""
        mask = patch_mask_BN[:, None, None, :]
        for layer in self.encoder:
            x_BND = layer(x_BND, causal=False, mask=mask)[0]
        return {"mask": mask, "memory": self.encoder_norm(x_BND), "past": [None] * len(self.layers)}

    def step(self, tokens_B: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, W] of the next word, and the state with this one in its cache."""
        x_B1D, cond, state = self.embed(tokens_B[:, None], state)
        grown = []
        for layer, past in zip(self.layers, state["past"]):
            x_B1D, kept = layer(
                x_B1D, *cond, causal=False, past=past, memory=state["memory"], memory_mask=state["mask"]
            )
            grown.append(kept)
        return self.lm_head(self.norm(x_B1D))[:, 0], {**state, "past": grown}

    def embed(self, tokens_BT: Tensor, state: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Any]]:
        """The words as the layers get them [B, T, D], what their norms look at besides, and the state after them."""
        first = state["past"][0]
        begin = 0 if first is None else first[0].shape[2]
        x_BTD = self.embed_tokens(tokens_BT) * math.sqrt(self.embed_tokens.embedding_dim)
        places_TD = self.positions_TD[begin : begin + tokens_BT.shape[1]]
        return self.dropout(x_BTD + places_TD.to(x_BTD.dtype)), (), state


class Attention(nn.Module):
    """Multi-head attention in parts, so that keys and values can be kept.

    Args:
        key_bias: Moves all scores of a query alike, so that it counts for nothing after a softmax; without it scores
            keep more digits of what tells the keys apart.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, key_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"model.decoder: {heads} heads do not divide a width of {width}")
        self.heads, self.dropout = heads, dropout
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=key_bias)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, T, d] each."""
        return self._split(self.key(x_BTD)), self._split(self.value(x_BTD))

    def scores(self, x_BTD: Tensor, keys_BHNd: Tensor) -> Tensor:
        """How well keys answer queries, before the softmax, [B, H, T, N]."""
        queries_BHTd = self._split(self.query(x_BTD))
        return queries_BHTd @ keys_BHNd.transpose(-2, -1) / math.sqrt(queries_BHTd.shape[-1])

    def join(self, mixed_BHTd: Tensor) -> Tensor:
        """What all heads say together, [B, T, D]."""
        return self.out(mixed_BHTd.transpose(1, 2).flatten(2))

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
        return self.join(mixed_BHTd)


class Layer(nn.Module):
    """Self-attention, attention to `memory` where it is a decoder's, and a feed-forward network; norms come first.

    All of its weights are used inside `forward`, which is where a strategy that cuts them has them whole.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        *,
        cross: bool = False,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.self_attn, self.self_attn_norm = Attention(width, heads, dropout), norm(width)
        if cross:
            self.cross_attn, self.cross_attn_norm = Attention(width, heads, dropout), norm(width)
        self.feedforward_norm = norm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward), nn.ReLU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        *cond: Tensor,
        causal: bool,
        mask: Tensor | None = None,
        past: Kept | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> tuple[Tensor, Kept]:
        """What the layer makes of the words, and what it keeps for the words to come.

        Args:
            cond: what the norms look at besides.
            past: what it kept of the words before.
            memory: what a decoder's layer attends to, [B, N, D]; with `past`, its keys and values come from there.
        """
        normed_BTD = self.self_attn_norm(x_BTD, *cond)
        keys, values = self.self_attn.keys_values(normed_BTD)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        kept: Kept = (keys, values)
        x_BTD = x_BTD + self.dropout(self.self_attn(normed_BTD, (keys, values), mask, causal))
        if memory is not None:
            seen = self.cross_attn.keys_values(memory) if past is None else (past[2], past[3])
            kept += seen
            x_BTD = x_BTD + self.dropout(self.cross_attn(self.cross_attn_norm(x_BTD, *cond), seen, memory_mask))
        x_BTD = x_BTD + self.dropout(self.feedforward(self.feedforward_norm(x_BTD, *cond)))
        return x_BTD, kept


def draw_matrices(module: nn.Module) -> None:
    """First weights of all matrices of a module, by Glorot and Bengio 2010, equation 16; vectors stay as they are."""
    for weight in module.parameters():
        if weight.dim() > 1:
            nn.init.xavier_uniform_(weight)


def sinusoids(length: int, width: int) -> Tensor:
    """Positions [length, width] of Vaswani et al. 2017, section 3.5."""
    position = torch.arange(length).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate[: width // 2])
    return table
