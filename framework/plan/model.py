"""The model without its numbers: parameters on the meta device, activations of a batch of fake tensors."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from framework.build import (
    build_distiller,
    build_losses,
    build_model,
    build_topics,
    build_weighting,
    freeze_parts,
)
from framework.exam import BOS, EOS, UNK, Batch
from framework.plan.material import Material, Tokens, Views
from framework.recipe import Recipe
from framework.registry import PluginError, find
from framework.runtime.errors import first_line
from framework.task import ReportTask
from framework.text.lsa import LSA_DIMENSIONS

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Part:
    """What a part of the task owns: numbers of parameters and buffers, and the bytes of each as they are stored."""

    name: str
    parameters: int
    trainable: int
    buffers: int
    parameter_bytes: int
    buffer_bytes: int


@dataclass(frozen=True)
class Activations:
    """What one micro-batch keeps for its backward; `bytes` is None where `unknown` says why.

    The batch is the largest that can come: every exam with the most views and the longest report.
    """

    bytes: int | None
    unknown: str
    exams: int
    views: int
    tokens: int
    precision: str


def count_topics(recipe: Recipe, material: Material) -> int | None:
    """How many topics a recipe's distiller is going to find.

    It is run only where the reports alone tell their number; a run of the same reports then finds the topics in the
    cache. With data.on_broken: skip a run may leave exams out, whose reports are counted here, and find others.
    """
    if not recipe.has_topics:
        return None
    count = getattr(build_distiller(recipe, material.tokenizer), "topic_count", "nothing")
    if count is None:
        texts = {split: [exam.report for exam in exams] for split, exams in material.splits.items()}
        topics, _ = build_topics(recipe, material.tokenizer, texts, None)
        assert topics is not None
        return topics.count
    if not isinstance(count, int):
        where = find("distiller", recipe.distiller.name, recipe.plugin_files).where
        raise PluginError(
            f"distiller '{recipe.distiller.name}' ({where}): found topic_count {count!r} before `fit`, expected a "
            "number, or None where only the reports tell: set self.topic_count in __init__"
        )
    return count


def build_meta_task(recipe: Recipe, material: Material, topic_count: int | None) -> ReportTask:
    """The whole task on the meta device: shapes without numbers, so a model of any size takes no memory."""
    with torch.device("meta"):
        # As for a trained model, since weights that are going to be loaded need not be fetched to be counted.
        encoder, decoder = build_model(recipe, material.tokenizer, trained=True)
    # Losses look at the values of what they are given, so these are real while they are built; as no space is
    # fitted, it is one of the usual size in which each word points somewhere.
    word_vectors_WD = torch.ones(len(material.tokenizer), LSA_DIMENSIONS)
    losses = build_losses(
        recipe, material.tokenizer, encoder.width, topic_count, word_vectors_WD, material.splits["train"]
    )
    task = ReportTask(encoder, decoder, losses, build_weighting(recipe, losses)).to("meta")
    freeze_parts(recipe, task)
    return task


def parts_of(task: ReportTask) -> tuple[Part, ...]:
    """Encoder, decoder, each loss, and all together. A weight that several share stands in each, and once in all."""
    rows = {"encoder": task.encoder, "decoder": task.decoder}
    rows |= {f"losses.{name}": loss for name, loss in task.losses.items()}
    rows |= {} if task.weighting is None else {"weighting": task.weighting}
    return tuple(_part(name, module) for name, module in {**rows, "together": task}.items())


def _part(name: str, module: nn.Module) -> Part:
    parameters, buffers = list(module.parameters()), list(module.buffers())
    return Part(
        name,
        parameters=sum(weight.numel() for weight in parameters),
        trainable=sum(weight.numel() for weight in parameters if weight.requires_grad),
        buffers=sum(buffer.numel() for buffer in buffers),
        parameter_bytes=sum(weight.nbytes for weight in parameters),
        buffer_bytes=sum(buffer.nbytes for buffer in buffers),
    )


def measure_activations(
    task: ReportTask,
    recipe: Recipe,
    micro_batch_size: int,
    views: Views,
    tokens: Tokens,
    topics: int | None,
    precision: str,
) -> Activations:
    """Runs the task on the largest micro-batch with fake tensors, which have shapes and types as on a CPU, no numbers.

    The meta device would not do, since it has no autocast. What decides about shapes stays real and small: which views
    are there, and the tokens.
    """
    writers = [f"losses.{name}" for name, loss in task.losses.items() if "decoder" in getattr(loss, "needs", ())]
    if writers:
        unknown = f"{', '.join(writers)} writes reports, and only a real model tells how long they get"
        return Activations(None, unknown, micro_batch_size, views.most, tokens.longest, precision)
    known, unknown = None, ""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    size = recipe.data.image_size
    try:
        copied = copy.deepcopy(task)
        with mode:
            fake = copied.to_empty(device="cpu").train()
            image_BVCHW = torch.empty(micro_batch_size, views.most, recipe.data.channels, size, size)
        batch = Batch(
            exam_ids=[str(number) for number in range(micro_batch_size)],
            image_BVCHW=image_BVCHW,
            view_mask_BV=torch.ones(micro_batch_size, views.most, dtype=torch.bool),
            report_BT=torch.tensor([[BOS, *[UNK] * (tokens.longest - 2), EOS]] * micro_batch_size),
            topic_B=torch.zeros(micro_batch_size, dtype=torch.long) if topics else None,
            topic_weights_BK=torch.full((micro_batch_size, topics), 1 / topics) if topics else None,
        )
        known = saved_bytes(fake, batch, HALF.get(precision))
    except Exception as error:  # whatever a plugin does that fake tensors cannot follow
        unknown = f"{type(error).__name__}: {first_line(error)}"
    return Activations(known, unknown, micro_batch_size, views.most, tokens.longest, precision)


def saved_bytes(task: nn.Module, batch: Batch, half: torch.dtype | None) -> int:
    """Bytes that autograd keeps from `task(batch)` for the backward, each storage once.

    Parameters, buffers and the batch do not count: they are there anyway. Copies of weights in half precision do.
    """
    inputs = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    there = {_storage(tensor) for tensor in [*task.parameters(), *task.buffers(), *inputs]}
    kept: dict[int, Tensor] = {}  # the tensors themselves, so that no storage's number is given again

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in there:
            kept[_storage(tensor)] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=half, enabled=half is not None):
        task(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
