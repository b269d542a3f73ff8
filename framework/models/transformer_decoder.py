"""The transformer that three decoders share: encoder layers over the patches, decoder layers over the tokens.

Shapes: B batch, N patches, D width, T tokens, W words in the vocabulary, H heads, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.exam import Features
from framework.models.cache import BeamPast, KeyValues, LayerCache, PerExam
from framework.models.exporting import is_exporting
from framework.runtime.errors import UserError

FEW_QUERIES = 16  # at most the beams of an exam; `python -m benchmarks.decoding` measures


class BaseTransformerDecoder(nn.Module):
    """Pre-norm transformer over the patches. Subclasses override `init_cache` or `embed`.

    The patches are projected to `width` and pass `encoder_layers` of self-attention; `layers` decoder layers attend to
    them. Positions are sinusoidal. Generation caches keys and values of each layer.

    Args:
        norm: Makes a norm of the decoder layers from their width. It is called with the hidden states and with the
            condition that `embed` returns.

    Raises:
        UserError: `does-not-divide` if the width is no multiple of the heads.
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
        self.input_proj = nn.Sequential(nn.Linear(feature_width, width), nn.ReLU(), nn.Dropout(feature_dropout))
        self.encoder_layers = nn.ModuleList(
            TransformerLayer(width, heads, feedforward, dropout) for _ in range(encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.embed_tokens = nn.Embedding(vocabulary_size, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, feedforward, dropout, cross_attention=True, norm=norm) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.lm_head = nn.Linear(width, vocabulary_size)
        xavier_uniform_matrices_(self)
        # BOS, the tokens of the longest report, and EOS.
        self.register_buffer("positions_TD", sinusoidal_positions(max_length + 2, width), persistent=False)

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, W]; those at t are of the token that follows `tokens_BT[:, : t + 1]`."""
        cache = self.init_cache(features)
        x_BTD, cond, _ = self.embed(tokens_BT, cache)
        memory = {name: cache[name].value for name in ("memory", "memory_mask")}
        for layer in self.layers:
            x_BTD = layer(x_BTD, *cond, is_causal=True, **memory)
        return self.lm_head(self.norm(x_BTD))

    def attention(self, features: Features, tokens_BT: Tensor) -> Tensor:
        """Where the decoder looks for each logit of `forward`, [B, T, N].

        The mean of cross-attention over all layers and heads, passed on to the patches by attention rollout: in an
        encoder layer, each position is half itself and half what it attends to in the mean over heads.

        Source:
            Abnar and Zuidema 2020, arXiv 2005.00928, section 3 (rollout).
        """
        with (
            recorded_weights([layer.self_attn for layer in self.encoder_layers]) as encoder,
            recorded_weights([layer.cross_attn for layer in self.layers]) as cross,
        ):
            self(features, tokens_BT)
        weights_BTN = torch.stack(cross).mean((0, 2))
        for weights_BHNN in reversed(encoder):
            weights_BTN = 0.5 * weights_BTN + 0.5 * (weights_BTN @ weights_BHNN.mean(1))
        return weights_BTN

    def init_cache(self, features: Features) -> dict[str, Any]:
        """The cache before the first token."""
        return self.encode(self.input_proj(features.patches_BND), features.patch_mask_BN)

    def encode(self, x_BND: Tensor, patch_mask_BN: Tensor) -> dict[str, Any]:
        """Encodes projected patches into the memory that the decoder layers attend to, beside an empty cache."""
        mask = patch_mask_BN[:, None, None, :]
        for layer in self.encoder_layers:
            x_BND = layer(x_BND, mask=mask)
        return {
            "memory": PerExam(self.encoder_norm(x_BND)),
            "memory_mask": PerExam(mask),
            "past": BeamPast(len(self.positions_TD)),
            "layers": [LayerCache(len(self.positions_TD)) for _ in self.layers],
        }

    def step(self, tokens_R: Tensor, cache: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits [R, W] of the next token, and the cache with `tokens_R` in it."""
        x_R1D, cond, cache = self.embed(tokens_R[:, None], cache)
        memory = {name: cache[name].value for name in ("memory", "memory_mask")}
        # To its exam's memory and to the tokens so far, the beams of an exam attend as the queries of one sequence.
        batch = memory["memory"].shape[0]  # not `len`, which is a number in a program
        x_BKD, *cond_BKM = (rows[:, 0].unflatten(0, (batch, -1)) for rows in (x_R1D, *cond))
        mask = cache["past"].advance(batch, x_BKD.shape[1], x_BKD.device)
        for layer, layer_cache in zip(self.layers, cache["layers"], strict=True):
            x_BKD = layer(x_BKD, *cond_BKM, mask=mask, cache=layer_cache, **memory)
        return self.lm_head(self.norm(x_BKD)).flatten(0, 1), cache

    def embed(self, tokens_BT: Tensor, cache: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Any]]:
        """Embeddings with positions [B, T, D], the condition of the norms, and the cache after these tokens."""
        offset = cache["layers"][0].written
        x_BTD = self.embed_tokens(tokens_BT) * math.sqrt(self.embed_tokens.embedding_dim)
        positions_TD = self.positions_TD[offset : offset + tokens_BT.shape[1]]
        return self.dropout(x_BTD + positions_TD.to(x_BTD.dtype)), (), cache


class MultiHeadAttention(nn.Module):
    """Multi-head attention whose keys and values are computed apart, so that they can be cached.

    Args:
        key_bias: The bias of the keys shifts all scores of a query alike, which a softmax undoes; without it the scores
            keep more digits of the differences between keys.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, key_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise UserError(
                "does-not-divide",
                f"{heads} heads do not divide a width of {width}",
                place="model.decoder",
                hint="Change heads or width.",
            )
        self.heads, self.dropout = heads, dropout
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width, bias=key_bias)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x_BTD: Tensor) -> KeyValues:
        """Keys and values, [B, H, T, d] each."""
        return self._split_heads(self.k_proj(x_BTD)), self._split_heads(self.v_proj(x_BTD))

    def scores(self, x_BTD: Tensor, keys_BHNd: Tensor) -> Tensor:
        """Scaled dot products before the softmax, [B, H, T, N]."""
        queries_BHTd = self._split_heads(self.q_proj(x_BTD))
        return queries_BHTd @ keys_BHNd.transpose(-2, -1) / math.sqrt(queries_BHTd.shape[-1])

    def merge_heads(self, x_BHTd: Tensor) -> Tensor:
        """The output projection of all heads, [B, T, D]."""
        return self.out_proj(x_BHTd.transpose(1, 2).flatten(2))

    def forward(
        self, x_BTD: Tensor, keys_values: KeyValues, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        queries_BHTd, (keys_BHNd, values_BHNd) = self._split_heads(self.q_proj(x_BTD)), keys_values
        if not is_causal and not self.training and x_BTD.device.type == "cpu" and _are_few(x_BTD):
            attended_BHTd = _attend_by_matmul(queries_BHTd, keys_BHNd, values_BHNd, mask)
        else:
            attended_BHTd = F.scaled_dot_product_attention(
                queries_BHTd,
                keys_BHNd,
                values_BHNd,
                attn_mask=mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=is_causal,
            )
        return self.merge_heads(attended_BHTd)


def _are_few(queries_BTD: Tensor) -> bool:
    """Whether the fused kernel is slower. A program for any number of queries cannot depend on it."""
    return not is_exporting() and queries_BTD.shape[1] <= FEW_QUERIES


@contextmanager
def recorded_weights(attentions: Iterable[Any]) -> Iterator[list[Tensor]]:
    """Inside, each call of these modules adds its attention weights in float32, [B, H, T, N]; their results stay."""
    found: list[Tensor] = []

    def record(module: MultiHeadAttention, inputs: tuple[Any, ...], output: Tensor) -> None:
        x_BTD, (keys_BHNd, _), mask = inputs[:3]
        found.append(module.scores(x_BTD, keys_BHNd).float().masked_fill(~mask, float("-inf")).softmax(-1))

    hooks = [module.register_forward_hook(record) for module in attentions]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _attend_by_matmul(queries_BHTd: Tensor, keys_BHNd: Tensor, values_BHNd: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of few queries on a CPU, where the fused kernel reads the keys at less than the memory's speed."""
    scores_BHTN = queries_BHTd @ keys_BHNd.transpose(-2, -1) / math.sqrt(queries_BHTd.shape[-1])
    if mask is not None:
        scores_BHTN = scores_BHTN.masked_fill(~mask, float("-inf"))
    return scores_BHTN.softmax(-1) @ values_BHNd


class TransformerLayer(nn.Module):
    """Pre-norm self-attention, cross-attention to `memory` in a decoder, and a feed-forward network.

    All of its weights are used inside `forward`, the only place where FSDP and ZeRO-3 hold them whole.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        *,
        cross_attention: bool = False,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.self_attn, self.self_attn_norm = MultiHeadAttention(width, heads, dropout), norm(width)
        if cross_attention:
            self.cross_attn, self.cross_attn_norm = MultiHeadAttention(width, heads, dropout), norm(width)
        self.feedforward_norm = norm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward), nn.ReLU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        *cond: Tensor,
        is_causal: bool = False,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """The hidden states after this layer, [B, T, D].

        Args:
            cond: second input of the norms.
            mask: True where self-attention reads.
            memory: what a decoder layer attends to, [B, N, D].
            cache: keys and values of the tokens before, to which those of `x_BTD` are added.
        """
        normed_BTD = self.self_attn_norm(x_BTD, *cond)
        key_values = self.self_attn.keys_values(normed_BTD)
        if cache is not None:
            key_values = cache.append(key_values)
        x_BTD = x_BTD + self.dropout(self.self_attn(normed_BTD, key_values, mask, is_causal))
        if memory is not None:
            cross = None if cache is None else cache.cross_attn
            if cross is None:
                cross = self.cross_attn.keys_values(memory)
                if cache is not None:
                    cross = cache.store(cross)
            x_BTD = x_BTD + self.dropout(self.cross_attn(self.cross_attn_norm(x_BTD, *cond), cross, memory_mask))
        return x_BTD + self.dropout(self.feedforward(self.feedforward_norm(x_BTD, *cond)))


def xavier_uniform_matrices_(module: nn.Module) -> None:
    """Initializes all matrices of a module by Glorot and Bengio 2010, equation 16; leaves vectors alone."""
    for weight in module.parameters():
        if weight.dim() > 1:
            nn.init.xavier_uniform_(weight)


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Positional encodings [length, width] of Vaswani et al. 2017, section 3.5."""
    position = torch.arange(length).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate[: width // 2])
    return table
