"""The transformer decoder against torch's layers with the same weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from framework.exam import Features
from framework.models.transformer_decoder import MultiHeadAttention, TransformerLayer, sinusoidal_positions
from plugins.decoder.transformer import Transformer

WIDTH, HEADS, INNER = 16, 4, 24


def named(module: nn.Module, name: str) -> dict[str, Tensor]:
    return {f"{name}.{part}": weight for part, weight in module.state_dict().items()}


def torchs_names(layer: TransformerLayer) -> dict[str, Tensor]:
    """Weights of a layer, called as in nn.TransformerEncoderLayer or nn.TransformerDecoderLayer."""
    attentions, norms = {"self_attn": layer.self_attn}, [layer.self_attn_norm]
    if hasattr(layer, "cross_attn"):
        attentions["multihead_attn"] = layer.cross_attn
        norms.append(layer.cross_attn_norm)
    names = named(layer.feedforward[0], "linear1") | named(layer.feedforward[3], "linear2")
    for number, norm in enumerate([*norms, layer.feedforward_norm], 1):
        names |= named(norm, f"norm{number}")
    for name, attention in attentions.items():
        names |= named(attention.out_proj, f"{name}.out_proj")
        for part in ("weight", "bias"):
            rows = [getattr(m, part) for m in (attention.q_proj, attention.k_proj, attention.v_proj)]
            names[f"{name}.in_proj_{part}"] = torch.cat(rows).detach()
    return names


def torchs(kind: type[nn.Module], layers: nn.ModuleList) -> list[nn.Module]:
    """torch's layers with our weights."""
    copies = []
    for layer in layers:
        copy = kind(WIDTH, HEADS, INNER, 0.0, batch_first=True, norm_first=True)
        copy.load_state_dict(torchs_names(layer))
        copies.append(copy)
    return copies


def test_the_whole_transformer_equals_torchs_layers_in_logits_and_gradients() -> None:
    torch.manual_seed(0)
    ours = Transformer(
        vocabulary_size=11, feature_width=6, max_length=20, layers=2, encoder_layers=2, width=WIDTH, heads=HEADS,
        feedforward=INNER, dropout=0.0, feature_dropout=0.0,
    )  # fmt: skip
    encoder = torchs(nn.TransformerEncoderLayer, ours.encoder_layers)
    decoder = torchs(nn.TransformerDecoderLayer, ours.layers)
    patches, tokens = torch.randn(3, 5, 6, requires_grad=True), torch.randint(0, 11, (3, 7))
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False

    memory = ours.input_proj(patches)
    for layer in encoder:
        memory = layer(memory, src_key_padding_mask=~mask)
    memory = ours.encoder_norm(memory)
    x = ours.embed_tokens(tokens) * math.sqrt(WIDTH) + sinusoidal_positions(7, WIDTH)
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    for layer in decoder:
        x = layer(x, memory, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=~mask)
    expected = ours.lm_head(ours.norm(x))

    found = ours(Features(patches, mask, patches.mean(1)), tokens)
    assert torch.allclose(found, expected, atol=1e-5)
    for got, wanted in zip(*(torch.autograd.grad(y.square().sum(), patches) for y in (found, expected))):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_attention_is_torchs_weights_passed_through_the_encoder_by_rollout() -> None:
    torch.manual_seed(0)
    ours = Transformer(
        vocabulary_size=11, feature_width=6, max_length=20, layers=2, encoder_layers=2, width=WIDTH, heads=HEADS,
        feedforward=INNER,
    ).eval()  # fmt: skip
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    features, tokens = Features(torch.randn(2, 5, 6), mask, torch.zeros(2, 6)), torch.randint(0, 11, (2, 7))
    memory, rollout = ours.input_proj(features.patches_BND), torch.eye(5)
    for layer in torchs(nn.TransformerEncoderLayer, ours.encoder_layers):
        normed = layer.eval().norm1(memory)  # type: ignore[operator]
        _, weights = layer.self_attn(normed, normed, normed, key_padding_mask=~mask)  # type: ignore[operator]
        rollout = (weights + torch.eye(5)) / 2 @ rollout
        memory = memory + layer._sa_block(normed, None, ~mask)  # type: ignore[operator]
        memory = memory + layer._ff_block(layer.norm2(memory))  # type: ignore[operator]
    memory = ours.encoder_norm(memory)
    x = ours.embed_tokens(tokens) * math.sqrt(WIDTH) + sinusoidal_positions(7, WIDTH)
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    expected = []
    for layer in torchs(nn.TransformerDecoderLayer, ours.layers):
        layer.eval()
        x = x + layer._sa_block(layer.norm1(x), causal, None, is_causal=True)  # type: ignore[operator]
        _, weights = layer.multihead_attn(layer.norm2(x), memory, memory, key_padding_mask=~mask)  # type: ignore[operator]
        expected.append(weights)
        x = x + layer._mha_block(layer.norm2(x), memory, None, ~mask)  # type: ignore[operator]
        x = x + layer._ff_block(layer.norm3(x))  # type: ignore[operator]
    torch.testing.assert_close(ours.attention(features, tokens), torch.stack(expected).mean(0) @ rollout)


def test_weights_are_computed_only_for_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Transformer(
        vocabulary_size=11, feature_width=6, max_length=20, layers=1, encoder_layers=1, width=WIDTH, heads=HEADS
    ).eval()
    features = Features(torch.randn(1, 5, 6), torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 6))
    asked: list[MultiHeadAttention] = []
    scores = MultiHeadAttention.scores
    monkeypatch.setattr(MultiHeadAttention, "scores", lambda self, *rest: asked.append(self) or scores(self, *rest))
    ours.attention(features, torch.tensor([[1, 4]]))
    assert len(asked) == 2
    ours(features, torch.tensor([[1, 4]]))
    ours.step(torch.tensor([1]), ours.init_cache(features))
    assert len(asked) == 2


def test_positions_are_the_published_sinusoidal_positions() -> None:
    table = sinusoidal_positions(4, 6)
    assert torch.allclose(table[3, 2], torch.sin(torch.tensor(3 / 10000 ** (2 / 6))))
    assert torch.allclose(table[3, 5], torch.cos(torch.tensor(3 / 10000 ** (4 / 6))))
