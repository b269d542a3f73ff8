"""R2Gen's relational memory against its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from formulas import arrays, linear, randn, sigmoid, softmax
from torch import nn

from plugins.decoder.relational_memory import RelationalMemory

TRANSFORMER = {"layers": 1, "encoder_layers": 0, "width": 12, "heads": 3, "feedforward": 8}
SIZES = {"vocabulary_size": 11, "feature_width": 5, "max_length": 9}


@pytest.fixture(scope="module")
def relational() -> RelationalMemory:
    torch.manual_seed(0)
    return RelationalMemory(**SIZES, **TRANSFORMER, slots=2, memory_heads=2).eval()


def test_the_memory_equals_a_loop_over_slots_and_heads(relational: RelationalMemory) -> None:
    words, heads, slots, width = randn(1, 4, 12), 2, 2, 12
    w = arrays(relational.memory)

    def line(name: str, x: np.ndarray) -> np.ndarray:
        return linear(w, name, x)

    memory = [np.eye(slots, width)[s] for s in range(slots)]
    expected = []
    for word in words[0].double().numpy():
        rows, after = [*memory, word], []
        for slot in memory:
            query, size, mixed = line("attention.q_proj", slot), width // heads, np.zeros(width)
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                keys = [line("attention.k_proj", row)[part] for row in rows]
                attention = softmax(np.array([query[part] @ key / math.sqrt(size) for key in keys]))
                mixed[part] = sum(a * line("attention.v_proj", row)[part] for a, row in zip(attention, rows))
            new = slot + line("attention.out_proj", mixed)
            new = new + np.maximum(line("linear2", np.maximum(line("linear1", new), 0)), 0)
            gates = sigmoid(line("word_gates", word) + line("slot_gates", np.tanh(slot)))
            after.append(gates[:width] * np.tanh(new) + gates[width:] * slot)
        memory = after
        expected.append(memory)
    found = relational.memory(words, relational.memory.initial_SD[None])
    assert np.allclose(found[0].detach().numpy(), expected, atol=1e-6)


def test_the_memory_continues_from_a_cache(relational: RelationalMemory) -> None:
    words, first = randn(2, 5, 12), relational.memory.initial_SD.expand(2, -1, -1)
    whole = relational.memory(words, first)
    first_half = relational.memory(words[:, :3], first)
    assert torch.allclose(relational.memory(words[:, 3:], first_half[:, -1]), whole[:, 3:], atol=1e-6)


def test_a_norm_equals_that_of_torch_with_weight_and_bias_from_the_slots(relational: RelationalMemory) -> None:
    norm, x, slots = relational.layers[0].self_attn_norm, randn(2, 3, 12), randn(2, 3, 24, seed=1)
    found = norm(x, slots)
    for b in range(2):
        for t in range(3):
            plain = nn.LayerNorm(12)
            plain.weight.data = norm.weight + norm.weight_mlp(slots[b, t])
            plain.bias.data = norm.bias + norm.bias_mlp(slots[b, t])
            assert torch.allclose(found[b, t], plain(x[b, t]), atol=1e-6)


def test_the_memory_is_causal(relational: RelationalMemory) -> None:
    words = randn(1, 5, 12).requires_grad_()
    after = relational.memory(words, relational.memory.initial_SD[None])
    for t in range(5):
        (gradient,) = torch.autograd.grad(after[0, t].sum(), words, retain_graph=True)
        assert gradient[0].abs().sum(-1).gt(0).tolist() == [place <= t for place in range(5)]
