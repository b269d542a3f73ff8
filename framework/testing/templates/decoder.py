"""A recurrent decoder: a GRU that starts from the mean of the patches and sees it again at every word.

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
    """A GRU over the words, without attention.

    Args:
        width: Width of words and of the memory.
        dropout: Share of units dropped before the words are scored.
    """

    needs = ("patches",)
    gives = ("logits",)

    def __init__(
        self, *, vocabulary_size: int, feature_width: int, width: PositiveInt = 128, dropout: Fraction = 0.1
    ) -> None:
        super().__init__()
        self.look = nn.Linear(feature_width, width)
        self.embed_tokens = nn.Embedding(vocabulary_size, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.lm_head = nn.Linear(width, vocabulary_size)

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, W]: at t, of the word that follows `tokens_BT[:, : t + 1]`."""
        return self._run(tokens_BT, self.init_cache(features))[0]

    def init_cache(self, features: Features) -> dict[str, Any]:
        """The state before the first word. Beam search takes rows of it: tensors, the batch first."""
        there_BN1 = features.patch_mask_BN[..., None]
        seen_BD = (features.patches_BND * there_BN1).sum(1) / there_BN1.sum(1).clamp(min=1)
        image_BD = torch.tanh(self.look(seen_BD))
        return {"image": image_BD, "memory": image_BD}

    def step(self, tokens_B: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, W] of the next word, and the state after this one."""
        logits_B1W, state = self._run(tokens_B[:, None], state)
        return logits_B1W[:, 0], state

    def _run(self, tokens_BT: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        words_BTD = self.embed_tokens(tokens_BT) + state["image"][:, None]
        hidden_BTD, memory_1BD = self.gru(words_BTD, state["memory"][None].contiguous())
        return self.lm_head(self.dropout(hidden_BTD)), {**state, "memory": memory_1BD[0]}
