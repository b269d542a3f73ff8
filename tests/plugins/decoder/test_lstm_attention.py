"""Show, Attend and Tell's decoder against its formulas."""

from __future__ import annotations

import numpy as np
import torch
from formulas import arrays, linear, randn, sigmoid, softmax

from framework.exam import Features
from plugins.decoder.lstm_attention import LstmAttention

WORDS, FEATURES = 11, 5


@torch.no_grad()
def test_the_decoder_equals_the_formulas_of_the_paper_in_loops() -> None:
    torch.manual_seed(0)
    decoder = LstmAttention(
        vocabulary_size=WORDS, feature_width=FEATURES, width=4, word_width=3, attention_width=6
    ).eval()
    w = arrays(decoder)

    def line(name: str, x: np.ndarray) -> np.ndarray:
        return linear(w, name, x)

    patches, tokens = randn(1, 7, FEATURES), torch.tensor([[1, 5, 3, 9]])
    mask = torch.tensor([[True, False, True, True, False, True, True]])
    there = [patches[0, n].double().numpy() for n in range(7) if mask[0, n]]
    hidden, cell = (np.tanh(line(name, sum(there) / len(there))) for name in ("init_h", "init_c"))
    expected, weights = [], []
    for token in tokens[0]:
        energies = [
            line("attend_score", np.tanh(line("attend_features", patch) + line("attend_hidden", hidden)))[0]
            for patch in there
        ]
        weights.append(softmax(np.array(energies)))
        beta = sigmoid(line("f_beta", hidden))
        seen = beta * sum(share * patch for share, patch in zip(weights[-1], there))
        word = w["embed_tokens.weight"][token]
        sums = w["lstm.weight_ih"] @ [*word, *seen] + w["lstm.bias_ih"] + w["lstm.weight_hh"] @ hidden
        input_gate, forget_gate, new, output_gate = np.split(sums + w["lstm.bias_hh"], 4)  # in torch's order
        cell = sigmoid(forget_gate) * cell + sigmoid(input_gate) * np.tanh(new)
        hidden = sigmoid(output_gate) * np.tanh(cell)
        expected.append(line("lm_head", word + line("hidden_proj", hidden) + line("context_proj", seen)))
    features = Features(patches, mask, patches.mean(1))
    assert np.allclose(decoder(features, tokens)[0].numpy(), expected, atol=1e-6)
    attention = decoder.attention(features, tokens)[0]
    assert np.allclose(attention[:, mask[0]].numpy(), weights, atol=1e-6) and not attention[:, ~mask[0]].any()
