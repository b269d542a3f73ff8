"""A recurrent decoder: a GRU that starts from the mean of the patches and reads it at every token.

Shapes: B batch, N patches, D width, T tokens, W words in the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from framework.exam import Features
from framework.registry import register
from framework.registry.types import Fraction


@register("decoder", "my_decoder")
class MyDecoder(nn.Module):
    """A GRU over the tokens, without attention.

    Args:
        width: Width of embeddings and hidden state. [channels]
        dropout: Dropout probability before the output layer. [share]
    """

    needs = ("patches",)
    gives = ("logits",)

    def __init__(
        self, *, vocabulary_size: int, feature_width: int, width: PositiveInt = 128, dropout: Fraction = 0.1
    ) -> None:
        super().__init__()
        self.input_proj = nn.Linear(feature_width, width)
        self.embed_tokens = nn.Embedding(vocabulary_size, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.lm_head = nn.Linear(width, vocabulary_size)

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, W]; those at t are of the token that follows `tokens_BT[:, : t + 1]`."""
        return self._run(tokens_BT, self.init_cache(features))[0]

    def init_cache(self, features: Features) -> dict[str, Any]:
        """The cache before the first token. Beam search reorders its rows: tensors with the batch first."""
        mask_BN1 = features.patch_mask_BN[..., None]
        mean_BD = (features.patches_BND * mask_BN1).sum(1) / mask_BN1.sum(1).clamp(min=1)
        image_BD = torch.tanh(self.input_proj(mean_BD))
        return {"image": image_BD, "hidden": image_BD}

    def step(self, tokens_B: Tensor, cache: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, W] of the next token, and the cache with `tokens_B` in it."""
        logits_B1W, cache = self._run(tokens_B[:, None], cache)
        return logits_B1W[:, 0], cache

    def _run(self, tokens_BT: Tensor, cache: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        words_BTD = self.embed_tokens(tokens_BT) + cache["image"][:, None]
        output_BTD, hidden_1BD = self.gru(words_BTD, cache["hidden"][None].contiguous())
        return self.lm_head(self.dropout(output_BTD)), {**cache, "hidden": hidden_1BD[0]}
