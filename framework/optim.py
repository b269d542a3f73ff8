"""Which parameters learn, and at which rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from framework.recipe.source import is_within
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
    group_lrs: Mapping[str, float] | None = None,
    layer_decay: float = 1.0,
) -> list[Group]:
    """Trainable parameters by the part they belong to, decayed and not; no group is empty, and the rest comes last.

    Args:
        lr: the rate of what nothing else names.
        encoder_lr: that of `encoder`; None: as the rest.
        group_lrs: those of other parts, named as their parameters begin; the longest name that fits counts.
        layer_decay: factor of the encoder's rate from each of its stages to the one before: stage i of n learns at
            encoder_lr * layer_decay ** (n - i). Parts of the encoder that `group_lrs` names keep the rate given there.

    Raises:
        ValueError: a name in `group_lrs` with which no parameter begins; a weight with several names and several rates;
            or an encoder that does not tell its stages.

    Source:
        layer_decay: Clark et al. 2020 (ELECTRA), arXiv 2003.10555, appendix A; of image encoders: Bao et al. 2022
        (BEiT), arXiv 2106.08254, appendix. There the task's own head is the top layer, which learns at the full rate,
        and the last layer below it a factor slower. Here the last stage learns at encoder_lr itself, so all rates of
        the encoder are one factor higher than there; encoder_lr * layer_decay gives theirs.
    """
    rates = {ENCODER: lr if encoder_lr is None else encoder_lr, **(group_lrs or {})}
    _require_parts(task, group_lrs or (), "optimizer.group_lrs")
    stages = {} if layer_decay == 1 else _stages(task)
    found: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for names, parameter in named_by_all(task):
        if not parameter.requires_grad:
            continue
        part, name = _part_of(names, rates), names[0]
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
        ValueError: no parameter begins with one of `prefixes`; a weight is frozen by one of its names and given a rate
            by another; or nothing is left to learn.
    """
    _require_parts(task, prefixes, "train.freeze")
    for names, parameter in named_by_all(task):
        part = _part_of(names, rates)
        if _is_frozen(names, prefixes, rates) or (part is not None and rates[part] == 0):
            parameter.requires_grad_(False)
    frozen = (*prefixes, *(part for part, rate in rates.items() if rate == 0))
    if frozen and not any(parameter.requires_grad for parameter in task.parameters()):
        raise ValueError(
            f"every parameter is frozen, so there is nothing to learn: {', '.join(frozen)} (train.freeze, and rates of "
            "0 in optimizer)"
        )
    return frozen


def named_by_all(module: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Each parameter once, with all its names: an embedding that is also the output layer has two."""
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(found.values())


def _part_of(names: Sequence[str], rates: Mapping[str, float]) -> str | None:
    """The most exact part of `rates` that a parameter is in, by any of its names; None: it is in none.

    Raises:
        ValueError: by two names it is in two parts with different rates, and neither part is in the other.
    """
    parts = {name: part for name in names if (part := longest_fitting(name, rates)) is not None}
    if not parts:
        return None
    exact = max(parts, key=lambda name: len(parts[name]))
    for name, part in parts.items():
        if rates[part] != rates[parts[exact]] and longest_fitting(parts[exact], [part]) is None:
            raise ValueError(
                f"optimizer: {exact} and {name} are one weight, and have two rates: {rates[parts[exact]]:g} by "
                f"{parts[exact]}, {rates[part]:g} by {part}; give both parts the same"
            )
    return parts[exact]


def _is_frozen(names: Sequence[str], prefixes: Sequence[str], rates: Mapping[str, float]) -> bool:
    """Whether a parameter is below one of the prefixes, by any of its names.

    Raises:
        ValueError: by another name it is given a rate.
    """
    below = [name for name in names if longest_fitting(name, prefixes) is not None]
    for name in names if below else ():
        part = longest_fitting(name, rates)
        if name not in below and part is not None and rates[part] and longest_fitting(below[0], [part]) is None:
            raise ValueError(
                f"train.freeze: {below[0]} and {name} are one weight, which is frozen by the first name and learns at "
                f"{rates[part]:g} by the second ({part}); take one of them out"
            )
    return bool(below)


def longest_fitting(name: str, prefixes: Iterable[str]) -> str | None:
    """The most exact of the prefixes that a parameter's name begins with, up to a dot; None: it begins with none."""
    fitting = [prefix for prefix in prefixes if is_within(name, prefix)]
    return max(fitting, key=len, default=None)


def nearest_part(prefix: str, names: Iterable[str]) -> str:
    """` Did you mean ...` of the parts, to a depth of three below whole names, that parameters of these names have."""
    parts = {name.rsplit(".", depth)[0] for name in names for depth in (0, 1, 2)}
    first = prefix.partition(".")[0]
    inside = {
        part for part in parts if longest_fitting(part, [first])
    }  # a slip in the rest leaves the first word right
    return did_you_mean(prefix, sorted(inside or parts))


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
