"""Show, Attend and Tell's decoder: an LSTM that looks at the patches anew before every word.

Shapes: B batch, N patches, D width of a patch, T tokens, W words in the vocabulary, E width of a word, H of the LSTM.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from framework.exam import Features
from framework.registry import register
from framework.registry.types import Fraction


@register("decoder", "lstm_attention")
class LstmAttention(nn.Module):
    """LSTM with soft attention to the patches.

    Before each word the LSTM's output scores every patch; their mean by these scores, times a gate, goes into the LSTM
    beside the last word. Memory and output start from the mean of the patches.

    The published penalty on patches that are looked at too much or too little (doubly stochastic attention, equation
    14) is left out: a decoder hands logits alone to the losses.

    Source:
        Xu et al. 2015, arXiv 1502.03044: the LSTM and its start, section 3.1.2; attention, equations 4 to 6 and 13; the
        gate, section 4.2.1; the words' scores, equation 7.

    Args:
        width: Width of the LSTM. [channels]
        word_width: Width of a word. [channels]
        attention_width: Width in which patches and the LSTM's output are compared. [channels]
        dropout: Share of units dropped before words are scored. [share]
    """

    needs = ("patches",)
    gives = ("logits",)

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_width: int,
        width: PositiveInt = 512,
        word_width: PositiveInt = 512,
        attention_width: PositiveInt = 512,
        dropout: Fraction = 0.5,
    ) -> None:
        super().__init__()
        self.first_hidden, self.first_cell = nn.Linear(feature_width, width), nn.Linear(feature_width, width)
        # Biases that others make superfluous are left out.
        self.compare_patch = nn.Linear(feature_width, attention_width)
        self.compare_hidden = nn.Linear(width, attention_width, bias=False)
        self.compare = nn.Linear(attention_width, 1, bias=False)
        self.gate = nn.Linear(width, 1)
        self.embed_tokens = nn.Embedding(vocabulary_size, word_width)
        self.lstm = nn.LSTMCell(word_width + feature_width, width)
        self.write_hidden = nn.Linear(width, word_width, bias=False)
        self.write_seen = nn.Linear(feature_width, word_width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.lm_head = nn.Linear(word_width, vocabulary_size)

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, W]: at t, of the word that follows `tokens_BT[:, : t + 1]`."""
        return self._run(tokens_BT, self.init_cache(features))[0]

    def init_cache(self, features: Features) -> dict[str, Any]:
        """The state before the first word."""
        there_BN1 = features.patch_mask_BN[..., None]
        mean_BD = (features.patches_BND * there_BN1).sum(1) / there_BN1.sum(1)
        return {
            "patches": features.patches_BND,
            "compared": self.compare_patch(features.patches_BND),
            "mask": features.patch_mask_BN,
            "hidden": torch.tanh(self.first_hidden(mean_BD)),
            "cell": torch.tanh(self.first_cell(mean_BD)),
        }

    def step(self, tokens_B: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, W] of the next word, and the state after this one."""
        logits_B1W, state = self._run(tokens_B[:, None], state)
        return logits_B1W[:, 0], state

    def _run(self, tokens_BT: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        words_BTE = self.embed_tokens(tokens_BT)
        hidden_BH, cell_BH = state["hidden"], state["cell"]
        seen, hidden = [], []
        for word_BE in words_BTE.unbind(1):
            seen_BD = self._attend(hidden_BH, state)
            hidden_BH, cell_BH = self.lstm(torch.cat([word_BE, seen_BD], dim=-1), (hidden_BH, cell_BH))
            seen.append(seen_BD)
            hidden.append(hidden_BH)
        # All words are scored at once: nothing here depends on the word before.
        deep_BTE = words_BTE + self.write_hidden(torch.stack(hidden, 1)) + self.write_seen(torch.stack(seen, 1))
        return self.lm_head(self.dropout(deep_BTE)), {**state, "hidden": hidden_BH, "cell": cell_BH}

    def _attend(self, hidden_BH: Tensor, state: dict[str, Any]) -> Tensor:
        """What the LSTM sees before its next word, [B, D]."""
        energy_BNA = torch.tanh(state["compared"] + self.compare_hidden(hidden_BH)[:, None])
        scores_BN = self.compare(energy_BNA)[..., 0].masked_fill(~state["mask"], float("-inf"))
        weights_B1N = scores_BN.softmax(-1)[:, None]
        return torch.sigmoid(self.gate(hidden_BH)) * (weights_B1N @ state["patches"])[:, 0]
