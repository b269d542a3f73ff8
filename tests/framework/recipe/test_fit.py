"""Parts that do not fit are told at validate, with the part that would."""

from pathlib import Path

import pytest
import torch
from torch import nn

from framework.exam import Batch
from framework.recipe import RecipeError, load_recipe
from framework.task import ReportTask

PARTS = """
@register("encoder", "only_pooled")
class OnlyPooled:
    gives = ("pooled",)
    def __init__(self, *, channels: int): ...

@register("encoder", "only_patches")
class OnlyPatches:
    gives = ("patches",)
    def __init__(self, *, channels: int): ...

@register("decoder", "pooled_reader")
class PooledReader:
    needs = ("pooled",)
    def __init__(self, *, vocabulary_size: int, feature_width: int, max_length: int): ...

@register("decoder", "silent")
class Silent:
    gives = ()
    def __init__(self, *, vocabulary_size: int, feature_width: int, max_length: int): ...

@register("loss", "undeclared")
class Undeclared: ...
"""


@pytest.fixture
def told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("parts.py").write_text(PARTS)

    def lines(*overrides):
        try:
            load_recipe("smoke", ["plugins=parts.py", *overrides])
        except RecipeError as error:
            return [line.split(": ", 2)[-1] for line in error.lines]
        return []

    return lines


def test_what_fits_is_fine(told):
    assert told() == []
    assert told("model.encoder=only_pooled", "model.decoder=pooled_reader") == []


def test_a_decoder_that_needs_what_the_encoder_does_not_give_is_told_which_encoder_would_fit(told):
    (line,) = told("model.encoder=only_pooled")
    assert line == (
        "needs patches, which encoder 'only_pooled' does not give; encoder 'backbone' or 'only_patches' or 'resnet' or "
        "'tiny_cnn' would fit"
    )


def test_a_loss_that_needs_what_the_encoder_does_not_give_is_told_unless_it_counts_nothing(told):
    (line,) = told("model.encoder=only_patches")
    assert line.startswith(
        "needs pooled, which encoder 'only_patches' does not give; encoder 'backbone' or 'only_pooled' or 'resnet'"
    )
    assert told("model.encoder=only_patches", "losses.topic.weight=0") == []
    assert told("model.encoder=only_patches", "~losses.topic") == []


def test_every_loss_without_logits_is_told(told):
    lines = told("model.decoder=silent")
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("needs logits, which decoder 'silent' does not give; decoder ")
        assert "'pooled_reader' or" in line and line.endswith("or 'transformer' would fit")


def test_a_decoder_that_no_loss_needs_is_frozen_as_a_whole(told):
    """Else it has no gradient, which ddp waits for on several processes."""
    topic = ["~losses.next_token", "~losses.global_semantic"]
    assert told(*topic, "train.freeze=[decoder]") == told(*topic, "optimizer.group_lrs={decoder: 0}") == []
    half = [
        "train.freeze=[decoder.embed]",
        "optimizer.group_lrs={decoder: 0, decoder.embed: 1e-3}",
        "optimizer.group_lrs={encoder: 0}",
    ]
    for keys in ([], *([key] for key in half)):
        (line,) = told(*topic, *keys)
        assert line.startswith("none needs the decoder (topic), so it would learn nothing; set train.freeze=[decoder]")
    assert told("~losses.next_token", "~losses.topic") == []


def test_a_decoder_that_no_loss_looks_at_is_not_run():
    class Says(nn.Module):
        def __init__(self, *needs):
            super().__init__()
            self.needs = needs

        def forward(self, batch, outputs):
            return torch.zeros(()) if outputs.logits_BTW is None else outputs.logits_BTW.sum()

    class Part(nn.Module):
        def forward(self, *_):
            return torch.ones(2)

    batch = Batch([], torch.zeros(1, 1, 1, 8, 8), torch.ones(1, 1).bool(), torch.zeros(1, 3, dtype=torch.long))
    for losses, expected in (
        ([Says("pooled")], [0]),
        ([Says("pooled", "topics"), Says("pooled")], [0, 0]),
        ([Says("pooled"), Says("logits")], [2, 2]),
        ([Says("decoder")], [2]),
    ):
        task = ReportTask(Part(), Part(), {str(number): loss for number, loss in enumerate(losses)})
        assert task(batch)[0].tolist() == expected


def test_topics_without_a_distiller_are_told(told):
    assert told("distiller=none") == ["needs topics, but distiller is none; choose a distiller, or set its weight to 0"]


def test_a_loss_that_declares_nothing_is_told_where_it_stands(told):
    (line,) = told("+losses.undeclared={}")
    assert line.startswith(
        "losses.undeclared: parts.py:23: loss 'undeclared' does not say what it needs; put needs = (...)"
    )
