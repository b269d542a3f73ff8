"""What all decoders do alike beyond the contract of their kind, which test_contracts.py holds them to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import GPT2
from torch import nn

from framework.exam import BOS, EOS, Features
from framework.models.blocks import blocks_of
from framework.models.generation import NEVER, generate
from framework.registry import catalogue, load

WORDS, FEATURES, LONGEST = 13, 6, 8
TRANSFORMER = {"layers": 2, "encoder_layers": 2, "width": 32, "heads": 4, "feedforward": 48}
# What makes each small, with as many parts as there can be.
SMALL: dict[str, dict[str, Any]] = {
    "transformer": TRANSFORMER,
    "relational_memory": {**TRANSFORMER, "memory_heads": 2},
    "cross_modal_memory": {**TRANSFORMER, "slots": 64, "top_k": 8},
    "lstm_attention": {"width": 32, "word_width": 24, "attention_width": 16},
    "hf_causal": {"architecture": "gpt2", "config": {**GPT2, "n_embd": 32}},
}
# What makes each forget nothing.
CERTAIN: dict[str, dict[str, Any]] = {
    **{name: {"layers": 1, "encoder_layers": 0, "dropout": 0.0, "feature_dropout": 0.0} for name in SMALL},
    "lstm_attention": {"dropout": 0.0},
    "hf_causal": {"config": {**GPT2, "n_embd": 32, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}},
}
DECODERS = pytest.mark.parametrize("name", SMALL)


def make(name: str, seed: int = 0, **keys: Any) -> Any:
    torch.manual_seed(seed)
    decoder = load(catalogue()["decoder", name])
    given = {"vocabulary_size": WORDS, "feature_width": FEATURES, "max_length": LONGEST}
    given = {key: value for key, value in given.items() if name != "lstm_attention" or key != "max_length"}
    return decoder(**given, **{**SMALL[name], **keys})


def features(batch: int, seed: int = 0) -> Features:
    patches = torch.randn(batch, 5, FEATURES, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(batch, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return Features(patches, mask, patches.mean(1))


def search_anew(decoder: nn.Module, one: Features, num_beams: int) -> list[int]:
    """Beam search for one exam that runs the whole decoder for every word, with lists and no state."""
    hypotheses: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(LONGEST):
        grown = []
        for total, words in hypotheses:
            if EOS in words:
                grown.append((total, words))
                continue
            logits = decoder(one, torch.tensor([[BOS, *words]]))[0, -1]
            logits[list(NEVER)] = float("-inf")
            grown += [(total + float(p), [*words, w]) for w, p in enumerate(logits.log_softmax(-1)) if w not in NEVER]
        hypotheses = sorted(grown, reverse=True)[:num_beams]
    return [word for word in hypotheses[0][1] if word != EOS]


@pytest.mark.parametrize("num_beams", [1, 3])
@DECODERS
@torch.no_grad()
def test_reports_on_the_cache_are_those_that_decoding_anew_writes(name: str, num_beams: int) -> None:
    reports = []
    for seed in range(3):
        decoder, seen = make(name, seed).eval(), features(3, seed)
        for weight in decoder.parameters():
            weight *= 2.5  # at its first weights a decoder finds all words alike, which would test nothing
        found = generate(decoder, seen, max_length=LONGEST, num_beams=num_beams)
        assert found == [search_anew(decoder, Features(*(p[n : n + 1] for p in seen)), num_beams) for n in range(3)]
        reports += found
    assert len(set(map(tuple, reports))) > 3 and len(set(map(len, reports))) > 1, "all alike would not show much"


@DECODERS
def test_it_learns_to_write_four_reports_word_for_word(name: str) -> None:
    decoder = make(name, **CERTAIN[name])
    seen = features(4)
    reports = [[4, 5, 6, 7, 8], [4, 5, 9, 7], [10, 11, 12], [4, 12, 5, 5, 5, 7]]
    tokens = torch.tensor([[BOS, *words, EOS, *[0] * (6 - len(words))] for words in reports])
    optimizer = torch.optim.Adam(decoder.parameters(), lr=5e-3)
    for _ in range(80):
        logits = decoder(seen, tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for num_beams in (1, 3):
        assert generate(decoder.eval(), seen, max_length=LONGEST, num_beams=num_beams) == reports


@pytest.mark.parametrize("name", ["transformer", "relational_memory", "cross_modal_memory"])
def test_the_weights_of_a_block_are_used_inside_its_forward_alone(name: str) -> None:
    """Strategies that cut weights have those of a block whole only while it runs."""
    decoder = make(name)
    inside: list[nn.Module] = []
    strays = []

    def entered(block: nn.Module, *_: Any) -> None:
        inside.append(block)

    def used(block: nn.Module, part: str) -> Any:
        return lambda *_: None if block in inside else strays.append(part)

    blocks = blocks_of(decoder)
    assert blocks, "else nothing would be looked at"
    for place, block in enumerate(blocks):
        for part, module in block.named_modules():
            module.register_forward_pre_hook(used(block, f"{place}.{part}"))
        block.register_forward_pre_hook(entered, prepend=True)
        block.register_forward_hook(lambda *_: inside.pop() and None)
    decoder(features(2), torch.full((2, 4), BOS))
    assert strays == []


@pytest.mark.parametrize("name", ["transformer", "relational_memory", "cross_modal_memory"])
def test_heads_must_divide_the_width(name: str) -> None:
    with pytest.raises(ValueError, match="3 heads do not divide a width of 32"):
        make(name, heads=3)
