"""Size of a model without weights: parameters on the meta device, activations with fake tensors."""

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
    loss_targets,
)
from framework.exam import BOS, EOS, UNK, Batch
from framework.plan.inputs import PlanInputs, Tokens, Views
from framework.recipe import Recipe
from framework.registry import PluginError, find
from framework.runtime.errors import first_line
from framework.task import ReportTask
from framework.text.lsa import LSA_DIMENSIONS

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Part:
    """Number and bytes of the parameters and buffers of a part of the task."""

    name: str
    parameters: int
    trainable: int
    buffers: int
    parameter_bytes: int
    buffer_bytes: int


@dataclass(frozen=True)
class Activations:
    """Memory that the largest micro-batch keeps for backward; if `bytes` is None, `unknown` is the reason.

    In the largest micro-batch, every exam has the most views and the longest report.
    """

    bytes: int | None
    unknown: str
    exams: int
    views: int
    tokens: int
    precision: str


def count_topics(recipe: Recipe, inputs: PlanInputs) -> int | None:
    """The number of topics that the recipe's distiller finds.

    The distiller runs only if the number depends on the reports; a later run finds the topics in the cache. A run with
    data.on_broken: skip may leave out exams that count here.
    """
    if not recipe.has_topics:
        return None
    count = getattr(build_distiller(recipe, inputs.tokenizer), "topic_count", "nothing")
    if count is None:
        texts = {split: [exam.report for exam in exams] for split, exams in inputs.splits.items()}
        topics, _ = build_topics(recipe, inputs.tokenizer, texts, None)
        assert topics is not None
        return topics.count
    if not isinstance(count, int):
        raise PluginError(
            "invalid-plugin",
            f"distiller '{recipe.distiller.name}' has topic_count {count!r} before `fit`",
            place=find("distiller", recipe.distiller.name, recipe.plugin_files).where,
            expected="a number, or None if it depends on the reports",
            hint="Set self.topic_count in __init__.",
        )
    return count


def build_meta_task(recipe: Recipe, inputs: PlanInputs, topic_count: int | None) -> ReportTask:
    """The task on the meta device, where a model of any size takes no memory."""
    with torch.device("meta"):
        # trained=True: pretrained weights need not be downloaded to be counted.
        encoder, decoder = build_model(recipe, inputs.tokenizer, trained=True)
    # Losses may read the values of their inputs, so they are built on the CPU, with placeholder word vectors.
    word_vectors_WD = torch.ones(len(inputs.tokenizer), LSA_DIMENSIONS)
    losses = build_losses(recipe, inputs.tokenizer, encoder.width, topic_count, word_vectors_WD, inputs.splits["train"])
    task = ReportTask(encoder, decoder, losses, build_weighting(recipe, losses)).to("meta")
    freeze_parts(recipe, task)
    return task


def parts_of(task: ReportTask) -> tuple[Part, ...]:
    """Encoder, decoder, each loss, and the total. Shared weights count in each part, and once in the total."""
    rows = {"encoder": task.encoder, "decoder": task.decoder}
    rows |= {f"losses.{name}": loss for name, loss in task.losses.items()}
    rows |= {} if task.weighting is None else {"weighting": task.weighting}
    return tuple(_part(name, module) for name, module in {**rows, "total": task}.items())


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


def estimate_activations(
    task: ReportTask,
    recipe: Recipe,
    micro_batch_size: int,
    views: Views,
    tokens: Tokens,
    topics: int | None,
    precision: str,
) -> Activations:
    """Runs the task on the largest micro-batch with fake tensors: shapes and types as on a CPU, without values.

    Fake tensors have autocast, which the meta device has not. The view mask and the tokens are real, since shapes
    depend on them.
    """
    generating = [f"losses.{name}" for name, loss in task.losses.items() if "decoder" in getattr(loss, "needs", ())]
    if generating:
        unknown = f"{', '.join(generating)} generates reports, whose length depends on the weights"
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
            targets={n: torch.from_numpy(rows) for n, rows in loss_targets(task, [""] * micro_batch_size).items()},
            copy_BVCHW=image_BVCHW if task.compares_copies else None,
        )
        known = saved_bytes(fake, batch, HALF.get(precision))
    except Exception as error:  # a plugin may do anything that fake tensors do not support
        unknown = f"{type(error).__name__}: {first_line(error)}"
    return Activations(known, unknown, micro_batch_size, views.most, tokens.longest, precision)


def saved_bytes(task: nn.Module, batch: Batch, half: torch.dtype | None) -> int:
    """Bytes that autograd saves in `task(batch)` for backward, each storage once.

    Parameters, buffers and the batch do not count, because they exist anyway; half-precision copies of weights do.
    """
    inputs = [value for value in (*vars(batch).values(), *batch.targets.values()) if isinstance(value, Tensor)]
    existing = {_storage(tensor) for tensor in [*task.parameters(), *task.buffers(), *inputs]}
    saved: dict[int, Tensor] = {}  # holds the tensors, so that no storage's address is reused

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in existing:
            saved[_storage(tensor)] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=half, enabled=half is not None):
        task(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
