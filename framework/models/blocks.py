"""The repeated blocks of a model: the units of sharding, activation checkpointing, freezing and layer-wise decay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from framework.runtime.errors import UserError

LISTS = (nn.ModuleList, nn.Sequential)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Modules with weights in the outermost lists of two or more: a transformer's layers, a ResNet's stages."""
    found: list[nn.Module] = []
    for child in module.children():
        items = [item for item in child.children() if any(True for _ in item.parameters())]
        found += items if isinstance(child, LISTS) and len(items) > 1 else blocks_of(child)
    return found


def blocks_of_task(task: Any) -> list[nn.Module]:
    """The blocks of encoder and decoder; losses are too small to shard."""
    return [*blocks_of(task.encoder), *blocks_of(task.decoder)]


def enable_activation_checkpointing(block: nn.Module) -> None:
    """Makes a block store only its input and recompute the rest in the backward pass.

    The recomputation draws the same dropout in the same mode and leaves the running statistics of batch normalization
    alone. Frozen blocks are recomputed too, since a gradient may pass through them, as through a frozen language model.

    Source:
        Chen et al. 2016, arXiv 1604.06174.
    """
    original = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        contexts = partial(_contexts, block)
        return checkpoint(original, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    block.forward = forward  # type: ignore[method-assign]


def disable_activation_checkpointing(block: nn.Module) -> None:
    """Undoes `enable_activation_checkpointing`."""
    del block.forward


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    """Contexts of the forward pass and of its recomputation."""
    return nullcontext(), _recomputation(block, {part: part.training for part in block.modules()})


@contextmanager
def _recomputation(block: nn.Module, modes: dict[nn.Module, bool]) -> Iterator[None]:
    """Restores the modes of the forward pass and freezes running statistics, which have seen this batch already."""
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
        for norm, count, (momentum, saved) in zip(norms, counts, before):
            norm.momentum = momentum
            if count is not None and saved is not None:
                count.copy_(saved)


def stages_of(module: nn.Module, backbone: nn.Module) -> list[list[nn.Parameter]]:
    """Every parameter of `module` exactly once: the stem of its backbone, then each of the stages or layers.

    Parameters after the last stage, such as a final norm, and those outside the backbone belong to the last stage.
    """
    blocks = blocks_of(backbone)
    stage_of = {id(weight): number for number, block in enumerate(blocks, 1) for weight in block.parameters()}
    found: list[list[nn.Parameter]] = [[] for _ in range(len(blocks) + 1)]
    current = 0
    for weight in backbone.parameters():
        current = stage_of.get(id(weight), current)
        found[current].append(weight)
    known = {id(weight) for weight in backbone.parameters()}
    found[-1] += [weight for weight in module.parameters() if id(weight) not in known]
    return found


def freeze_stages(backbone: nn.Module, count: int) -> None:
    """Freezes the stem and the first `count` stages of a backbone; 0 freezes nothing, not even the stem.

    Raises:
        UserError: `out-of-range` if it has fewer stages.
    """
    stages = stages_of(backbone, backbone)
    if count > len(stages) - 1:
        raise UserError(
            "out-of-range",
            f"found {count}",
            place="model.encoder.frozen_stages",
            expected=f"at most {len(stages) - 1}, the stages of this encoder",
        )
    for stage in stages[: count + 1] if count else ():
        for weight in stage:
            weight.requires_grad_(False)


def eval_frozen_modules(module: nn.Module) -> None:
    """Puts each part whose parameters are all frozen in eval mode: no dropout, no update of running statistics."""
    for part in module.modules():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()
