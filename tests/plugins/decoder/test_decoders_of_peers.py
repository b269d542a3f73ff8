"""The memories and the attention of published decoders against formulas written another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from framework.exam import Features
from plugins.decoder.cross_modal_memory import CrossModalMemory
from plugins.decoder.lstm_attention import LstmAttention
from plugins.decoder.relational_memory import RelationalMemory

WORDS, FEATURES = 11, 5
TRANSFORMER = {"layers": 1, "encoder_layers": 0, "width": 12, "heads": 3, "feedforward": 8}
GIVEN = {"vocabulary_size": WORDS, "feature_width": FEATURES, "max_length": 9}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


# Relational memory (R2Gen)


@pytest.fixture(scope="module")
def relational() -> RelationalMemory:
    torch.manual_seed(0)
    return RelationalMemory(**GIVEN, **TRANSFORMER, slots=2, memory_heads=2).eval()


def test_the_memory_is_what_a_loop_over_slots_and_heads_says(relational: RelationalMemory) -> None:
    words, heads, slots, width = drawn(1, 4, 12), 2, 2, 12
    w = arrays(relational.memory)

    def line(name: str, x: np.ndarray) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    memory = [np.eye(slots, width)[s] for s in range(slots)]
    expected = []
    for word in words[0].double().numpy():
        rows, after = [*memory, word], []
        for slot in memory:
            query, size, mixed = line("attention.query", slot), width // heads, np.zeros(width)
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                keys = [line("attention.key", row)[part] for row in rows]
                shares = softmax(np.array([query[part] @ key / math.sqrt(size) for key in keys]))
                mixed[part] = sum(a * line("attention.value", row)[part] for a, row in zip(shares, rows))
            new = slot + line("attention.out", mixed)
            new = new + np.maximum(line("outer", np.maximum(line("inner", new), 0)), 0)
            gates = sigmoid(line("word_gates", word) + line("slot_gates", np.tanh(slot)))
            after.append(gates[:width] * np.tanh(new) + gates[width:] * slot)
        memory = after
        expected.append(memory)
    found = relational.memory(words, relational.memory.first_SD[None])
    assert np.allclose(found[0].detach().numpy(), expected, atol=1e-6)


def test_the_memory_goes_on_where_it_stopped(relational: RelationalMemory) -> None:
    words, first = drawn(2, 5, 12), relational.memory.first_SD.expand(2, -1, -1)
    whole = relational.memory(words, first)
    begun = relational.memory(words[:, :3], first)
    assert torch.allclose(relational.memory(words[:, 3:], begun[:, -1]), whole[:, 3:], atol=1e-6)


def test_a_norm_is_torchs_with_scale_and_shift_from_the_slots(relational: RelationalMemory) -> None:
    norm, x, slots = relational.layers[0].own_norm, drawn(2, 3, 12), drawn(2, 3, 24, seed=1)
    found = norm(x, slots)
    for b in range(2):
        for t in range(3):
            plain = nn.LayerNorm(12)
            plain.weight.data = norm.scale + norm.scale_change(slots[b, t])
            plain.bias.data = norm.shift + norm.shift_change(slots[b, t])
            assert torch.allclose(found[b, t], plain(x[b, t]), atol=1e-6)


def test_a_word_changes_the_memory_of_all_words_after_it_and_none_before(relational: RelationalMemory) -> None:
    words = drawn(1, 5, 12).requires_grad_()
    after = relational.memory(words, relational.memory.first_SD[None])
    for t in range(5):
        (gradient,) = torch.autograd.grad(after[0, t].sum(), words, retain_graph=True)
        assert gradient[0].abs().sum(-1).gt(0).tolist() == [place <= t for place in range(5)]


# Cross-modal memory (R2GenCMN)


def cross_modal(slots: int, top_k: int) -> CrossModalMemory:
    torch.manual_seed(0)
    decoder = CrossModalMemory(**GIVEN, **TRANSFORMER, slots=slots, top_k=top_k).eval()
    decoder.memory.matrix_SD.data.normal_()  # as after training: slots that differ
    return decoder


def test_with_all_slots_chosen_it_is_torchs_attention_to_the_memory() -> None:
    memory = cross_modal(10, 10).memory
    ours, theirs = memory.attention, nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
    theirs.in_proj_bias.data = torch.cat([ours.query.bias, drawn(12), ours.value.bias])  # any bias of keys
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = drawn(2, 4, 12)
    slots = memory.matrix_SD.expand(2, -1, -1)
    assert torch.allclose(memory(x)[0], theirs(x, slots, slots)[0], atol=1e-6)


def test_the_best_slots_alone_answer_in_each_head() -> None:
    memory, x = cross_modal(10, 3).memory, drawn(1, 4, 12)
    w = arrays(memory)
    expected = []
    for query in x[0].double().numpy() @ w["attention.query.weight"].T + w["attention.query.bias"]:
        mixed = np.zeros(12)
        for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
            keys = w["matrix_SD"] @ w["attention.key.weight"][part].T
            scores = keys @ query[part] / 2
            best = sorted(range(10), key=lambda slot: -scores[slot])[:3]
            values = w["matrix_SD"] @ w["attention.value.weight"][part].T + w["attention.value.bias"][part]
            mixed[part] = sum(share * values[slot] for share, slot in zip(softmax(scores[best]), best))
        expected.append(w["attention.out.weight"] @ mixed + w["attention.out.bias"])
    assert np.allclose(memory(x)[0][0].detach().numpy(), expected, atol=1e-6)


def test_a_gradient_reaches_the_slots_that_answered_and_no_others() -> None:
    memory, x = cross_modal(10, 2).memory, drawn(1, 1, 12)
    answer, slots = memory(x)
    best = {slot for head in memory.attention.scores(x, slots.keys)[0, :, 0] for slot in head.topk(2).indices.tolist()}
    answer.sum().backward()
    assert set(memory.matrix_SD.grad.abs().sum(1).nonzero().flatten().tolist()) == best
    assert 2 <= len(best) < 10


def test_more_slots_cannot_answer_than_there_are() -> None:
    with pytest.raises(ValueError, match="top_k=7 of 6 slots; expected at most as many as there are"):
        cross_modal(6, 7)


# Attention of an LSTM (Show, Attend and Tell)


@torch.no_grad()
def test_the_lstm_attends_reads_and_writes_as_plain_loops_do() -> None:
    torch.manual_seed(0)
    decoder = LstmAttention(
        vocabulary_size=WORDS, feature_width=FEATURES, width=4, word_width=3, attention_width=6
    ).eval()
    w = arrays(decoder)

    def line(name: str, x: np.ndarray) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)

    patches, tokens = drawn(1, 7, FEATURES), torch.tensor([[1, 5, 3, 9]])
    mask = torch.tensor([[True, False, True, True, False, True, True]])
    there = [patches[0, n].double().numpy() for n in range(7) if mask[0, n]]
    hidden, cell = (np.tanh(line(name, sum(there) / len(there))) for name in ("first_hidden", "first_cell"))
    expected = []
    for token in tokens[0]:
        energies = [
            line("compare", np.tanh(line("compare_patch", patch) + line("compare_hidden", hidden)))[0]
            for patch in there
        ]
        beta = sigmoid(line("gate", hidden))
        seen = beta * sum(share * patch for share, patch in zip(softmax(np.array(energies)), there))
        word = w["embed.weight"][token]
        sums = w["read.weight_ih"] @ [*word, *seen] + w["read.bias_ih"] + w["read.weight_hh"] @ hidden
        let_in, forget, new, let_out = np.split(sums + w["read.bias_hh"], 4)  # in torch's order
        cell = sigmoid(forget) * cell + sigmoid(let_in) * np.tanh(new)
        hidden = sigmoid(let_out) * np.tanh(cell)
        expected.append(line("write", word + line("write_hidden", hidden) + line("write_seen", seen)))
    found = decoder(Features(patches, mask, patches.mean(1)), tokens)
    assert np.allclose(found[0].numpy(), expected, atol=1e-6)
