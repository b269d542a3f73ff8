"""The contract of decoders, and the transformer against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from framework.exam import Features
from plugins.decoder.transformer import Transformer, sinusoids

WORDS = 11


def make(**keys) -> Transformer:
    torch.manual_seed(0)
    keys = {"layers": 2, "encoder_layers": 1, "width": 16, "heads": 4, "feedforward": 24, **keys}
    return Transformer(vocabulary_size=WORDS, feature_width=6, max_tokens=20, **keys)


def features() -> Features:
    torch.manual_seed(1)
    patches = torch.randn(3, 5, 6, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    return Features(patches, mask, patches.mean(1))


def test_steps_on_the_cache_equal_the_whole_at_once() -> None:
    decoder, seen = make().eval(), features()
    tokens = torch.randint(3, WORDS, (3, 7))
    whole = decoder(seen, tokens)
    state, steps = decoder.start(seen), []
    for t in range(7):
        logits, state = decoder.step(tokens[:, t], state)
        steps.append(logits)
    assert whole.shape == (3, 7, WORDS)
    assert torch.allclose(torch.stack(steps, 1), whole, atol=1e-5)


def test_no_word_sees_the_words_after_it() -> None:
    decoder, seen = make().eval(), features()
    tokens = torch.randint(3, WORDS, (3, 7))
    changed = tokens.clone()
    changed[:, 4:] = 3
    assert torch.allclose(decoder(seen, tokens)[:, :4], decoder(seen, changed)[:, :4], atol=1e-6)


def test_masked_patches_change_nothing() -> None:
    decoder, seen = make().eval(), features()
    other = seen.patches_BND.clone()
    other[1, 3:] = 9
    tokens = torch.randint(3, WORDS, (3, 4))
    assert torch.allclose(decoder(seen, tokens), decoder(seen._replace(patches_BND=other), tokens), atol=1e-6)


def test_every_parameter_and_the_features_get_a_gradient() -> None:
    decoder, seen = make(dropout=0.0, feature_dropout=0.0), features()
    decoder(seen, torch.randint(3, WORDS, (3, 7))).square().sum().backward()
    # A shift of all keys alike changes no softmax, so their biases have none.
    assert all(p.grad.abs().sum() > 0 for n, p in decoder.named_parameters() if not n.endswith("key.bias"))
    assert seen.patches_BND.grad is not None and seen.patches_BND.grad.abs().sum() > 0


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
