"""A part that needs what no other part provides is refused, with the plugins that would provide it."""

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
def problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("parts.py").write_text(PARTS)

    def load(*overrides):
        try:
            load_recipe("smoke", ["plugins=parts.py", *overrides])
        except RecipeError as error:
            return list(error.problems)
        return []

    return load


def test_parts_that_fit_are_accepted(problems):
    assert problems() == []
    assert problems("model.encoder=only_pooled", "model.decoder=pooled_reader") == []


def test_an_error_of_a_decoder_names_the_encoders_that_fit(problems):
    (found,) = problems("model.encoder=only_pooled")
    assert (found.code, found.place.split(": ")[-1]) == ("missing-input", "model.decoder")
    assert found.hint == "Choose encoder 'backbone' or 'efficientnet_lite' or 'only_patches' or 'resnet' or 'tiny_cnn'."


def test_a_loss_needs_the_encoders_outputs_unless_it_has_no_weight(problems):
    (found,) = problems("model.encoder=only_patches")
    assert found.code == "missing-input" and "pooled" in found.found
    assert problems("model.encoder=only_patches", "losses.topic.weight=0") == []
    assert problems("model.encoder=only_patches", "~losses.topic") == []


def test_every_loss_without_logits_is_reported(problems):
    found = problems("model.decoder=silent")
    assert [each.code for each in found] == ["missing-input"] * 2 and "'pooled_reader' or" in found[0].hint


def test_a_decoder_that_no_loss_trains_is_frozen_completely(problems):
    """Else it has no gradient, for which DDP waits on several processes."""
    topic = ["~losses.next_token", "~losses.global_semantic"]
    assert problems(*topic, "train.freeze=[decoder]") == problems(*topic, "optimizer.group_lrs={decoder: 0}") == []
    half = [
        "train.freeze=[decoder.embed]",
        "optimizer.group_lrs={decoder: 0, decoder.embed: 1e-3}",
        "optimizer.group_lrs={encoder: 0}",
    ]
    for keys in ([], *([key] for key in half)):
        assert [found.code for found in problems(*topic, *keys)] == ["nothing-to-train"]
    assert problems("~losses.next_token", "~losses.topic") == []


def test_a_decoder_that_no_loss_needs_is_not_run():
    class Needs(nn.Module):
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
        ([Needs("pooled")], [0]),
        ([Needs("pooled", "topics"), Needs("pooled")], [0, 0]),
        ([Needs("pooled"), Needs("logits")], [2, 2]),
        ([Needs("decoder")], [2]),
    ):
        task = ReportTask(Part(), Part(), {str(number): loss for number, loss in enumerate(losses)})
        assert task(batch)[0].tolist() == expected


def test_a_loss_that_compares_augmentations_needs_pooled_features_and_an_augmentation(problems):
    only = ["losses={_delete_: true, vicreg: {}}", "train.freeze=[decoder]"]
    assert problems(*only, "data.augment=jitter") == []
    (found,) = problems(*only)
    assert (found.code, found.place.split(": ")[-1]) == ("missing-input", "losses.vicreg")
    (found,) = problems(*only, "data.augment=jitter", "model.encoder=only_patches")
    assert found.code == "missing-input" and "needs pooled" in found.found


def test_only_a_loss_can_need_copies(problems):
    text = Path("parts.py").read_text()
    Path("parts.py").write_text(
        text
        + """
@register("decoder", "compares")
class Compares:
    needs = ("copies",)
    def __init__(self, *, vocabulary_size: int, feature_width: int, max_length: int): ...
"""
    )
    assert [found.code for found in problems("model.decoder=compares")] == ["unknown-name"]


def test_a_loss_without_declared_needs_is_refused(problems):
    (found,) = problems("+losses.undeclared={}")
    assert found.code == "invalid-plugin" and "parts.py:23" in found.found
