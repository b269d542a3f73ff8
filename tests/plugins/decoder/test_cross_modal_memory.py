"""R2GenCMN's memory against torch's attention and its formulas."""

from __future__ import annotations

import numpy as np
import torch
from formulas import arrays, randn, softmax
from harness import problem
from torch import nn

from plugins.decoder.cross_modal_memory import CrossModalMemory

TRANSFORMER = {"layers": 1, "encoder_layers": 0, "width": 12, "heads": 3, "feedforward": 8}
SIZES = {"vocabulary_size": 11, "feature_width": 5, "max_length": 9}


def cross_modal(slots: int, top_k: int) -> CrossModalMemory:
    torch.manual_seed(0)
    decoder = CrossModalMemory(**SIZES, **TRANSFORMER, slots=slots, top_k=top_k).eval()
    decoder.memory.slots_SD.data.normal_()  # as after training: slots that differ
    return decoder


def test_top_k_of_all_slots_equals_attention_of_torch() -> None:
    memory = cross_modal(10, 10).memory
    ours, theirs = memory.attention, nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight])
    theirs.in_proj_bias.data = torch.cat([ours.q_proj.bias, randn(12), ours.v_proj.bias])  # any bias of keys
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x = randn(2, 4, 12)
    slots = memory.slots_SD.expand(2, -1, -1)
    assert torch.allclose(memory(x)[0], theirs(x, slots, slots)[0], atol=1e-6)


def test_each_head_attends_to_its_top_k_slots() -> None:
    memory, x = cross_modal(10, 3).memory, randn(1, 4, 12)
    w = arrays(memory)
    expected = []
    for query in x[0].double().numpy() @ w["attention.q_proj.weight"].T + w["attention.q_proj.bias"]:
        mixed = np.zeros(12)
        for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
            keys = w["slots_SD"] @ w["attention.k_proj.weight"][part].T
            scores = keys @ query[part] / 2
            best = sorted(range(10), key=lambda slot: -scores[slot])[:3]
            values = w["slots_SD"] @ w["attention.v_proj.weight"][part].T + w["attention.v_proj.bias"][part]
            mixed[part] = sum(share * values[slot] for share, slot in zip(softmax(scores[best]), best))
        expected.append(w["attention.out_proj.weight"] @ mixed + w["attention.out_proj.bias"])
    assert np.allclose(memory(x)[0][0].detach().numpy(), expected, atol=1e-6)


def test_only_attended_slots_get_a_gradient() -> None:
    memory, x = cross_modal(10, 2).memory, randn(1, 1, 12)
    answer, slots = memory(x)
    best = {slot for head in memory.attention.scores(x, slots.keys)[0, :, 0] for slot in head.topk(2).indices.tolist()}
    answer.sum().backward()
    assert set(memory.slots_SD.grad.abs().sum(1).nonzero().flatten().tolist()) == best
    assert 2 <= len(best) < 10


def test_top_k_is_at_most_the_number_of_slots() -> None:
    with problem("out-of-range", place="model.decoder.top_k"):
        cross_modal(6, 7)
