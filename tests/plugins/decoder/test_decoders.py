"""All decoders, beyond the contract of their kind in test_contracts.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import problem
from plain_search import search_without_cache
from tiny_models import GPT2
from torch import nn

from framework.exam import BOS, EOS, Features
from framework.models.blocks import blocks_of
from framework.models.generation import generate
from framework.registry import catalogue, load

WORDS, FEATURES, LONGEST = 13, 6, 8
TRANSFORMER = {"layers": 2, "encoder_layers": 2, "width": 32, "heads": 4, "feedforward": 48}
# Settings that make each small.
SMALL: dict[str, dict[str, Any]] = {
    "transformer": TRANSFORMER,
    "relational_memory": {**TRANSFORMER, "memory_heads": 2},
    "cross_modal_memory": {**TRANSFORMER, "slots": 64, "top_k": 8},
    "lstm_attention": {"width": 32, "word_width": 24, "attention_width": 16},
    "hf_causal": {"architecture": "gpt2", "config": {**GPT2, "n_embd": 32}},
}
# Settings without dropout.
WITHOUT_DROPOUT: dict[str, dict[str, Any]] = {
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


@pytest.mark.parametrize("num_beams", [1, 3])
@DECODERS
@torch.no_grad()
def test_cached_generation_equals_search_without_cache(name: str, num_beams: int) -> None:
    reports = []
    for seed in range(3):
        decoder, seen = make(name, seed).eval(), features(3, seed)
        for weight in decoder.parameters():
            weight *= 2.5  # initial weights give all tokens nearly equal probabilities
        found = generate(decoder, seen, max_length=LONGEST, num_beams=num_beams)
        exams = [Features(*(part[n : n + 1] for part in seen)) for n in range(3)]
        options: dict[str, Any] = {"max_length": LONGEST, "num_beams": num_beams}
        assert found == [search_without_cache(decoder, one, **options) for one in exams]
        reports += found
    assert len(set(map(tuple, reports))) > 3 and len(set(map(len, reports))) > 1, "equal reports would prove little"


@DECODERS
def test_a_decoder_overfits_four_reports(name: str) -> None:
    decoder = make(name, **WITHOUT_DROPOUT[name])
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
def test_the_weights_of_a_block_are_used_only_inside_its_forward(name: str) -> None:
    """FSDP and ZeRO-3 gather the weights of a block only while it runs."""
    decoder = make(name)
    inside: list[nn.Module] = []
    strays = []

    def entered(block: nn.Module, *_: Any) -> None:
        inside.append(block)

    def used(block: nn.Module, part: str) -> Any:
        return lambda *_: None if block in inside else strays.append(part)

    blocks = blocks_of(decoder)
    assert blocks
    for place, block in enumerate(blocks):
        for part, module in block.named_modules():
            module.register_forward_pre_hook(used(block, f"{place}.{part}"))
        block.register_forward_pre_hook(entered, prepend=True)
        block.register_forward_hook(lambda *_: inside.pop() and None)
    decoder(features(2), torch.full((2, 4), BOS))
    assert strays == []


@pytest.mark.parametrize("name", ["transformer", "relational_memory", "cross_modal_memory"])
def test_heads_must_divide_the_width(name: str) -> None:
    with problem("does-not-divide", place="model.decoder"):
        make(name, heads=3)
