"""The layers of a module in the order in which an image passes them, and which of them stay as they are."""

from __future__ import annotations

from torch import nn

from framework.blocks import blocks_of


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


def still(module: nn.Module) -> None:
    """Evaluation mode for each part whose parameters are all frozen: no dropout, and statistics of batches stay."""
    for part in module.modules():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()
