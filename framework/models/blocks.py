"""The repeated blocks of a model, which are cut, gathered and computed again one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

LISTS = (nn.ModuleList, nn.Sequential)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The items with weights of the outermost lists of two or more: a transformer's layers, a ResNet's stages."""
    found: list[nn.Module] = []
    for child in module.children():
        items = [item for item in child.children() if any(True for _ in item.parameters())]
        found += items if isinstance(child, LISTS) and len(items) > 1 else blocks_of(child)
    return found


def blocks_of_task(task: Any) -> list[nn.Module]:
    """Those of encoder and decoder; losses have none that are worth it."""
    return [*blocks_of(task.encoder), *blocks_of(task.decoder)]


def enable_activation_checkpointing(block: nn.Module) -> None:
    """Makes a block keep its input alone for the backward pass, which computes it a second time.

    The second pass draws the same dropout in the same mode, and batch normalization counts the batch once. A block that
    is frozen is computed again too: a gradient may go through it, as through a frozen language model.

    Source:
        Chen et al. 2016, arXiv 1604.06174.
    """
    first = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return first(*args, **kwargs)
        contexts = partial(_first_and_second, block)
        return checkpoint(first, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    block.forward = forward  # type: ignore[method-assign]


def disable_activation_checkpointing(block: nn.Module) -> None:
    """Takes `enable_activation_checkpointing` back."""
    del block.forward


def _first_and_second(block: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), _second(block, {part: part.training for part in block.modules()})


@contextmanager
def _second(block: nn.Module, modes: dict[nn.Module, bool]) -> Iterator[None]:
    """The modes are those of the first pass, and running statistics stay as they are: they have seen this batch."""
    now = {part: part.training for part in modes}
    norms = [part for part in block.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    counts = [norm.num_batches_tracked for norm in norms]
    before = [(norm.momentum, None if count is None else count.clone()) for norm, count in zip(norms, counts)]
    for norm in norms:
        norm.momentum = 0.0
    for part, training in modes.items():
        part.training = training
    try:
        yield
    finally:
        for part, training in now.items():
            part.training = training
        for norm, count, (momentum, kept) in zip(norms, counts, before):
            norm.momentum = momentum
            if count is not None and kept is not None:
                count.copy_(kept)


def stages_of(whole: nn.Module, backbone: nn.Module) -> list[list[nn.Parameter]]:
    """Every parameter of `whole` exactly once: the stem of its backbone, then each of its stages or layers.

    What stands behind the last stage, such as its norm and the parts of `whole` around the backbone, counts to it.
    """
    blocks = blocks_of(backbone)
    place = {id(weight): number for number, block in enumerate(blocks, 1) for weight in block.parameters()}
    found: list[list[nn.Parameter]] = [[] for _ in range(len(blocks) + 1)]
    current = 0
    for weight in backbone.parameters():
        current = place.get(id(weight), current)
        found[current].append(weight)
    known = {id(weight) for weight in backbone.parameters()}
    found[-1] += [weight for weight in whole.parameters() if id(weight) not in known]
    return found


def freeze_stages(backbone: nn.Module, count: int) -> None:
    """Freezes the stem and the first `count` stages of a backbone; 0 freezes nothing, not even the stem.

    Raises:
        ValueError: it has fewer stages.
    """
    stages = stages_of(backbone, backbone)
    if count > len(stages) - 1:
        raise ValueError(f"model.encoder.frozen_stages: found {count}, the encoder has {len(stages) - 1} stages")
    for stage in stages[: count + 1] if count else ():
        for weight in stage:
            weight.requires_grad_(False)


def eval_frozen_modules(module: nn.Module) -> None:
    """Evaluation mode for each part whose parameters are all frozen: no dropout, and statistics of batches stay."""
    for part in module.modules():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()
