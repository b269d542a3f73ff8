"""Caches follow their beams, and the exams that remain."""

from __future__ import annotations

import pytest
import torch

from framework.models.cache import (
    BeamPast,
    CacheLeaf,
    LayerCache,
    Moves,
    PerExam,
    expand_beams,
    move_exams,
    reorder_beams,
    tensors_of,
    with_tensors,
)


def test_every_tensor_of_a_nested_cache_follows_beams_and_exams() -> None:
    cache = {"rows": [(torch.arange(3), None)], "exams": PerExam(torch.arange(3)), "length": 4}
    cache = expand_beams(cache, 2)
    assert cache["rows"][0][0].tolist() == [0, 0, 1, 1, 2, 2]
    cache["rows"] = torch.arange(6)
    cache = reorder_beams(cache, torch.tensor([[1, 1], [0, 1], [1, 0]]))
    assert cache["rows"].tolist() == [1, 1, 2, 3, 5, 4]
    cache = move_exams(cache, Moves.closing_gaps(torch.tensor([True, False, False])), 2)
    assert cache["rows"].tolist() == [5, 4, 2, 3], "the last exam takes the place of the first"
    assert cache["exams"].value.tolist() == [2, 1] and cache["length"] == 4


def test_finished_exams_leave_and_no_other_exam_moves_but_into_a_gap() -> None:
    finished_B = torch.tensor([False, True, False, True, True, False])
    moves = Moves.closing_gaps(finished_B)
    assert moves.apply(torch.arange(6)).tolist() == [0, 5, 2]
    assert moves.rows(2).tolist() == [0, 1, 10, 11, 4, 5]


def test_the_features_of_a_caller_stay_as_they_are() -> None:
    features, cache = torch.arange(3), None
    cache = PerExam(features)
    cache.move(Moves.closing_gaps(torch.tensor([True, False, False])), 1)
    assert features.tolist() == [0, 1, 2] and cache.value.tolist() == [2, 1]


def test_a_beam_attends_to_the_tokens_of_its_own_past() -> None:
    """Each token's key is its number; the keys that a beam may attend to are those of its past, in order."""
    past, layer = BeamPast(4), LayerCache(4)
    leaves: list[CacheLeaf] = [past, layer]
    histories = [[[] for _ in range(2)] for _ in range(3)]
    draw, number, exams = torch.Generator().manual_seed(0), 0, [0, 1, 2]
    for step in range(4):
        keys = torch.arange(number, number + 2 * len(exams)).view(-1, 1, 2, 1).float()
        number += keys.numel()
        mask = past.advance(len(exams), 2, torch.device("cpu"))
        all_keys, _ = layer.append((keys, keys))
        for row, exam in enumerate(exams):
            for beam in range(2):
                histories[exam][beam] = [*histories[exam][beam], float(keys[row, 0, beam, 0])]
                assert all_keys[row, 0, mask[row, 0, beam], 0].tolist() == histories[exam][beam]
        parents = torch.randint(2, (len(exams), 2), generator=draw)
        for row, exam in enumerate(exams):
            histories[exam] = [histories[exam][parent] for parent in parents[row].tolist()]
        for leaf in leaves:
            leaf.reorder(parents)
        if step == 1:
            moves = Moves.closing_gaps(torch.tensor([False, True, False]))
            for leaf in leaves:
                leaf.move(moves, 2)
            exams = [0, 2]


def test_a_cache_is_rebuilt_from_its_tensors() -> None:
    layer = LayerCache(4)
    keys = torch.arange(4.0).view(2, 1, 2, 1)[:, :, :1]
    layer.append((keys, keys))
    layer.store((keys, keys))
    cache = {
        "rows": [torch.arange(2)],
        "exam": PerExam(torch.arange(2)),
        "past": BeamPast(4),
        "layers": (layer,),
        "n": 3,
    }
    tensors = tensors_of(cache)
    of_layer = [f"cache.layers.0.{name}" for name in ("keys", "values", "cross_keys", "cross_values")]
    assert list(tensors) == ["cache.rows.0", "cache.exam", *of_layer]
    other = with_tensors(cache, {name: tensor + 10 for name, tensor in tensors.items()})
    assert other["n"] == 3 and other["exam"].value.tolist() == [10, 11] and other["rows"][0].tolist() == [10, 11]
    after, _ = other["layers"][0].append((keys + 20, keys))
    assert after[0, 0, :, 0].tolist() == [10, 20] and other["layers"][0].written == 2
    assert tensors_of(cache)["cache.layers.0.keys"].shape == (2, 1, 1, 1), "the first cache stays"


def test_a_leaf_without_tensors_is_named() -> None:
    class Mine(CacheLeaf):
        pass

    with pytest.raises(NotImplementedError, match="Mine"):
        tensors_of({"mine": Mine()})
