"""Which parameters learn, and at which rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from framework.registry import did_you_mean

REST = "rest"  # the parameters that no prefix names
ENCODER = "encoder"


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate. `decay` is False for biases, norms and other vectors."""

    name: str
    parameters: list[nn.Parameter]
    lr: float
    decay: bool


def parameter_groups(
    task: nn.Module,
    lr: float,
    encoder_lr: float | None = None,
    lrs: Mapping[str, float] | None = None,
    layer_decay: float = 1.0,
) -> list[Group]:
    """Trainable parameters by the part they belong to, decayed and not; no group is empty, and the rest comes last.

    Args:
        lr: the rate of what nothing else names.
        encoder_lr: that of `encoder`; None: as the rest.
        lrs: those of other parts, named as their parameters begin; the longest name that fits counts.
        layer_decay: factor of the encoder's rate from each of its stages to the one before: stage i of n learns at
            encoder_lr * layer_decay ** (n - i). Parts of the encoder that `lrs` names keep the rate given there.

    Raises:
        ValueError: a name in `lrs` with which no parameter begins; or an encoder that does not tell its stages.

    Source:
        layer_decay: Clark et al. 2020 (ELECTRA), arXiv 2003.10555, appendix A; of image encoders: Bao et al. 2022
        (BEiT), arXiv 2106.08254, appendix.
    """
    rates = {ENCODER: lr if encoder_lr is None else encoder_lr, **(lrs or {})}
    _require_parts(task, lrs or (), "optimizer.lrs")
    stages = {} if layer_decay == 1 else _stages(task)
    found: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        part = longest_fitting(name, rates)
        rate = lr if part is None else rates[part]
        if part == ENCODER and stages:
            if id(parameter) not in stages:
                raise ValueError(
                    f"optimizer.layer_decay: {name} is in none of the encoder's stages(), which must give every "
                    "parameter; set layer_decay to 1"
                )
            below = stages[id(parameter)]
            part, rate = f"{ENCODER}, {below} below its last stage", rate * layer_decay**below
        found.setdefault((part or REST, rate, parameter.dim() > 1), []).append(parameter)
    groups = [Group(part, parameters, rate, decay) for (part, rate, decay), parameters in found.items()]
    return sorted(groups, key=lambda group: group.name == REST)  # its rate is the one that is recorded


def freeze(task: nn.Module, prefixes: Sequence[str], rates: Mapping[str, float]) -> tuple[str, ...]:
    """Takes parameters out of training: those below `prefixes`, whatever their rate, and those whose rate is 0.

    Args:
        prefixes: parts of the task, named as their parameters begin.
        rates: those that a recipe gives to parts; the longest name that fits counts.

    Returns:
        The names below which parameters are frozen.

    Raises:
        ValueError: no parameter begins with one of `prefixes`; or nothing is left to learn.
    """
    _require_parts(task, prefixes, "train.freeze")
    for name, parameter in task.named_parameters():
        part = longest_fitting(name, rates)
        if longest_fitting(name, prefixes) is not None or (part is not None and rates[part] == 0):
            parameter.requires_grad_(False)
    frozen = (*prefixes, *(part for part, rate in rates.items() if rate == 0))
    if frozen and not any(parameter.requires_grad for parameter in task.parameters()):
        raise ValueError(
            f"every parameter is frozen, so there is nothing to learn: {', '.join(frozen)} (train.freeze, and rates of "
            "0 in optimizer)"
        )
    return frozen


def longest_fitting(name: str, prefixes: Iterable[str]) -> str | None:
    """The most exact of the prefixes that a parameter's name begins with, up to a dot; None: it begins with none."""
    fitting = [prefix for prefix in prefixes if name == prefix or name.startswith(f"{prefix}.")]
    return max(fitting, key=len, default=None)


def nearest_part(prefix: str, names: Iterable[str]) -> str:
    """` Did you mean ...` of the parts, to a depth of three below whole names, that parameters of these names have."""
    parts = {name.rsplit(".", depth)[0] for name in names for depth in (0, 1, 2)}
    return did_you_mean(prefix, sorted(parts))


def _require_parts(task: nn.Module, prefixes: Iterable[str], key: str) -> None:
    """Raises ValueError where no parameter begins with a prefix; those that share a weight count by each name."""
    names = [name for name, _ in task.named_parameters(remove_duplicate=False)]
    for prefix in prefixes:
        if not any(longest_fitting(name, [prefix]) for name in names):
            raise ValueError(f"{key}: no parameter begins with '{prefix}'.{nearest_part(prefix, names)}")


def _stages(task: Any) -> dict[int, int]:
    """How many stages of the encoder come after that of each of its parameters, by id."""
    encoder = task.encoder
    if not hasattr(encoder, "stages"):
        raise ValueError(
            f"optimizer.layer_decay: {type(encoder).__name__} has no stages(), which would tell its parameters from "
            "the image to the features; set layer_decay to 1, or take an encoder that has (resnet, backbone)"
        )
    stages = encoder.stages()
    return {id(weight): len(stages) - number for number, stage in enumerate(stages, 1) for weight in stage}
