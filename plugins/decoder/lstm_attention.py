"""Show, Attend and Tell's decoder: an LSTM that attends to the patches before every word.

Shapes: B batch, N patches, D width of a patch, T tokens, W words in the vocabulary, E width of a word, H of the LSTM,
A of the attention,
K beams of an exam, R rows (B x K; in training the exams).
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from framework.exam import Features
from framework.models.cache import PerExam
from framework.registry import register
from framework.registry.types import Fraction


@register("decoder", "lstm_attention")
class LstmAttention(nn.Module):
    """LSTM with soft attention over the patches.

    Before each word the hidden state of the LSTM scores every patch. The context is the mean of the patches weighted by
    these scores, times a gate; the LSTM reads it beside the last word. Hidden state and cell start from the mean of the
    patches.

    The published doubly stochastic attention penalty (equation 14) is left out: a decoder returns only logits.

    Source:
        Xu et al. 2015, arXiv 1502.03044: the LSTM and its start, section 3.1.2; attention, equations 4 to 6 and 13; the
        gate, section 4.2.1; the words' scores, equation 7.

    Args:
        width: Width of the LSTM. [channels]
        word_width: Width of the word embeddings. [channels]
        attention_width: Width in which patches and hidden state are compared. [channels]
        dropout: Dropout probability before the output layer. [share]
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
        self.init_h, self.init_c = nn.Linear(feature_width, width), nn.Linear(feature_width, width)
        # Redundant biases are left out.
        self.attend_features = nn.Linear(feature_width, attention_width)
        self.attend_hidden = nn.Linear(width, attention_width, bias=False)
        self.attend_score = nn.Linear(attention_width, 1, bias=False)
        self.f_beta = nn.Linear(width, 1)
        self.embed_tokens = nn.Embedding(vocabulary_size, word_width)
        self.lstm = nn.LSTMCell(word_width + feature_width, width)
        self.hidden_proj = nn.Linear(width, word_width, bias=False)
        self.context_proj = nn.Linear(feature_width, word_width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.lm_head = nn.Linear(word_width, vocabulary_size)

    def forward(self, features: Features, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, W]; those at t are of the token that follows `tokens_BT[:, : t + 1]`."""
        return self._run(tokens_BT, self.init_cache(features))[0]

    def attention(self, features: Features, tokens_BT: Tensor) -> Tensor:
        """Where the decoder looks for each logit of `forward`, [B, T, N]: the weights of equation 5."""
        weights: list[Tensor] = []
        self._run(tokens_BT, self.init_cache(features), weights)
        return torch.cat(weights, 1)

    def init_cache(self, features: Features) -> dict[str, Any]:
        """The cache before the first token."""
        mask_BN1 = features.patch_mask_BN[..., None]
        mean_BD = (features.patches_BND * mask_BN1).sum(1) / mask_BN1.sum(1)
        return {
            "patches": PerExam(features.patches_BND),
            "patch_keys": PerExam(self.attend_features(features.patches_BND)),
            "mask": PerExam(features.patch_mask_BN),
            "h": torch.tanh(self.init_h(mean_BD)),
            "c": torch.tanh(self.init_c(mean_BD)),
        }

    def step(self, tokens_B: Tensor, cache: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits [B, W] of the next token, and the cache with `tokens_B` in it."""
        logits_B1W, cache = self._run(tokens_B[:, None], cache)
        return logits_B1W[:, 0], cache

    def _run(
        self, tokens_BT: Tensor, cache: dict[str, Any], weights: list[Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        words_BTE = self.embed_tokens(tokens_BT)
        h_BH, c_BH = cache["h"], cache["c"]
        contexts, hidden = [], []
        for word_BE in words_BTE.unbind(1):
            context_BD, weights_BKN = self._attend(h_BH, cache)
            if weights is not None:
                weights.append(weights_BKN)
            h_BH, c_BH = self.lstm(torch.cat([word_BE, context_BD], dim=-1), (h_BH, c_BH))
            contexts.append(context_BD)
            hidden.append(h_BH)
        # The output layer depends on no word before, so it runs once for all words.
        deep_BTE = words_BTE + self.hidden_proj(torch.stack(hidden, 1)) + self.context_proj(torch.stack(contexts, 1))
        return self.lm_head(self.dropout(deep_BTE)), {**cache, "h": h_BH, "c": c_BH}

    def _attend(self, h_RH: Tensor, cache: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The gated context vector, [R, D], and the weights of the patches, [B, K, N]."""
        patches_BND, patch_keys_BNA, mask_BN = (cache[name].value for name in ("patches", "patch_keys", "mask"))
        hidden_BKA = self.attend_hidden(h_RH).unflatten(0, (mask_BN.shape[0], -1))
        energy_BKNA = torch.tanh(patch_keys_BNA[:, None] + hidden_BKA[:, :, None])
        scores_BKN = self.attend_score(energy_BKNA)[..., 0].masked_fill(~mask_BN[:, None], float("-inf"))
        weights_BKN = scores_BKN.softmax(-1)
        context_RD = (weights_BKN @ patches_BND).flatten(0, 1)
        return torch.sigmoid(self.f_beta(h_RH)) * context_RD, weights_BKN
