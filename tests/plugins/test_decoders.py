"""The transformer against torch's own; the contract of its kind is in test_contracts.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plugins.decoder.transformer import Transformer, sinusoids

WORDS = 11


def make(**keys) -> Transformer:
    torch.manual_seed(0)
    keys = {"layers": 2, "encoder_layers": 1, "width": 16, "heads": 4, "feedforward": 24, **keys}
    return Transformer(vocabulary_size=WORDS, feature_width=6, max_tokens=20, **keys)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide a width of 16"):
        make(heads=3)


def test_a_layer_equals_torchs_own_with_the_same_weights() -> None:
    ours = make(encoder_layers=0).eval().layers[0]
    theirs = nn.TransformerDecoderLayer(16, 4, 24, 0.0, batch_first=True, norm_first=True).eval()
    copy = {"norm1": ours.own_norm, "norm2": ours.cross_norm, "norm3": ours.feedforward_norm}
    copy |= {"linear1": ours.feedforward[0], "linear2": ours.feedforward[3]}
    copy |= {"self_attn.out_proj": ours.own.out, "multihead_attn.out_proj": ours.cross.out}
    weights = {f"{name}.{part}": getattr(module, part) for name, module in copy.items() for part in ("weight", "bias")}
    for name, attention in (("self_attn", ours.own), ("multihead_attn", ours.cross)):
        for part in ("weight", "bias"):
            rows = [getattr(m, part) for m in (attention.query, attention.key, attention.value)]
            weights[f"{name}.in_proj_{part}"] = torch.cat(rows)
    theirs.load_state_dict(weights)
    torch.manual_seed(2)
    x, memory = torch.randn(2, 6, 16), torch.randn(2, 5, 16)
    expected = theirs(x, memory, tgt_mask=nn.Transformer.generate_square_subsequent_mask(6), tgt_is_causal=True)
    found, _ = ours(x, causal=True, memory=ours.cross.keys_values(memory))
    assert torch.allclose(found, expected, atol=1e-5)


def test_positions_are_the_published_sinusoids() -> None:
    table = sinusoids(4, 6)
    assert torch.allclose(table[3, 2], torch.sin(torch.tensor(3 / 10000 ** (2 / 6))))
    assert torch.allclose(table[3, 5], torch.cos(torch.tensor(3 / 10000 ** (4 / 6))))
