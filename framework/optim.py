"""Parameter groups: which parameters are trained, and at which learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from framework.recipe.source import is_within
from framework.registry import did_you_mean
from framework.runtime.errors import UserError

REST = "rest"  # name of the group of all other parameters
ENCODER = "encoder"


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate. `decay` is False for biases, norms and other vectors."""

    name: str
    parameters: list[nn.Parameter]
    lr: float
    decay: bool


def param_groups(groups: Sequence[Group], weight_decay: float) -> list[dict[str, Any]]:
    """`groups` as param groups of torch.optim; weight decay only where a group's `decay` is True."""
    return [{"params": g.parameters, "lr": g.lr, "weight_decay": weight_decay if g.decay else 0.0} for g in groups]


def parameter_groups(
    task: nn.Module,
    lr: float,
    encoder_lr: float | None = None,
    group_lrs: Mapping[str, float] | None = None,
    layer_decay: float = 1.0,
) -> list[Group]:
    """Groups of the trainable parameters by part and weight decay; none is empty, and the rest comes last.

    Args:
        lr: learning rate of all parameters without another one.
        encoder_lr: learning rate of the encoder; None is `lr`.
        group_lrs: learning rates by parameter-name prefix; the longest match wins.
        layer_decay: factor between the learning rates of consecutive encoder stages: stage i of n has
            encoder_lr * layer_decay ** (n - i). Parts of the encoder in `group_lrs` are not decayed.

    Raises:
        UserError: no parameter has a prefix in `group_lrs`; a shared weight has two learning rates by its names; or the
            encoder does not define stages.

    Source:
        layer_decay: Clark et al. 2020 (ELECTRA), arXiv 2003.10555, appendix A; for image encoders: Bao et al. 2022
        (BEiT), arXiv 2106.08254, appendix. There the head has the full rate and the last layer one factor less. Here
        the last stage has encoder_lr, so that encoder rates are one factor higher; encoder_lr * layer_decay gives
        theirs.
    """
    rates = {ENCODER: lr if encoder_lr is None else encoder_lr, **(group_lrs or {})}
    _require_parts(task, group_lrs or (), "optimizer.group_lrs")
    stages = {} if layer_decay == 1 else _stages(task)
    found: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for names, parameter in parameters_by_names(task):
        if not parameter.requires_grad:
            continue
        part, name = _part_of(names, rates), names[0]
        rate = lr if part is None else rates[part]
        if part == ENCODER and stages:
            if id(parameter) not in stages:
                raise UserError(
                    "unsupported",
                    f"{name} is in none of the encoder's stages(), which must return every parameter",
                    place="optimizer.layer_decay",
                    hint="Set layer_decay to 1.",
                )
            below = stages[id(parameter)]
            part, rate = f"{ENCODER}, {below} below its last stage", rate * layer_decay**below
        found.setdefault((part or REST, rate, parameter.dim() > 1), []).append(parameter)
    groups = [Group(part, parameters, rate, decay) for (part, rate, decay), parameters in found.items()]
    return sorted(groups, key=lambda group: group.name == REST)  # the rate of the last group is logged


def freeze(task: nn.Module, prefixes: Sequence[str], rates: Mapping[str, float]) -> tuple[str, ...]:
    """Freezes the parameters with one of the prefixes, and those with a learning rate of 0.

    Args:
        prefixes: parameter-name prefixes.
        rates: learning rates by parameter-name prefix; the longest match wins.

    Returns:
        the prefixes of all frozen parameters.

    Raises:
        UserError: no parameter has one of the prefixes; a shared weight is frozen by one name and has a learning rate
            by another; or all parameters are frozen.
    """
    _require_parts(task, prefixes, "train.freeze")
    for names, parameter in parameters_by_names(task):
        part = _part_of(names, rates)
        if _is_frozen(names, prefixes, rates) or (part is not None and rates[part] == 0):
            parameter.requires_grad_(False)
    frozen = (*prefixes, *(part for part, rate in rates.items() if rate == 0))
    if frozen and not any(parameter.requires_grad for parameter in task.parameters()):
        raise UserError(
            "conflicting-settings",
            f"every parameter is frozen: {', '.join(frozen)}",
            place="train.freeze",
            hint="Freeze fewer parts, or set a learning rate above 0 in optimizer.",
        )
    return frozen


def parameters_by_names(module: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Each parameter once, with all its names: an embedding that is tied to the output layer has two."""
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(found.values())


def _part_of(names: Sequence[str], rates: Mapping[str, float]) -> str | None:
    """The longest prefix in `rates` of any of a parameter's names, if there is one.

    Raises:
        UserError: two names have prefixes with different rates, and neither prefix contains the other.
    """
    parts = {name: part for name in names if (part := longest_prefix(name, rates)) is not None}
    if not parts:
        return None
    exact = max(parts, key=lambda name: len(parts[name]))
    for name, part in parts.items():
        if rates[part] != rates[parts[exact]] and longest_prefix(parts[exact], [part]) is None:
            raise UserError(
                "conflicting-settings",
                f"{exact} and {name} are one weight with two rates: {rates[parts[exact]]:g} by {parts[exact]}, "
                f"{rates[part]:g} by {part}",
                place="optimizer",
                expected="the same rate for both",
            )
    return parts[exact]


def _is_frozen(names: Sequence[str], prefixes: Sequence[str], rates: Mapping[str, float]) -> bool:
    """Whether any of a parameter's names has one of the prefixes.

    Raises:
        UserError: another of its names has a learning rate.
    """
    below = [name for name in names if longest_prefix(name, prefixes) is not None]
    for name in names if below else ():
        part = longest_prefix(name, rates)
        if name not in below and part is not None and rates[part] and longest_prefix(below[0], [part]) is None:
            raise UserError(
                "conflicting-settings",
                f"{below[0]} and {name} are one weight, frozen by the first name and with a learning rate of "
                f"{rates[part]:g} by the second ({part})",
                place="train.freeze",
                hint="Remove one of the two.",
            )
    return bool(below)


def longest_prefix(name: str, prefixes: Iterable[str]) -> str | None:
    """The longest of the prefixes that a parameter's name has, in whole words between dots; None if it has none."""
    fitting = [prefix for prefix in prefixes if is_within(name, prefix)]
    return max(fitting, key=len, default=None)


def nearest_part(prefix: str, names: Iterable[str]) -> str:
    """` Did you mean ...` with the nearest prefix of these names: the names themselves, or without one or two words."""
    parts = {name.rsplit(".", depth)[0] for name in names for depth in (0, 1, 2)}
    first = prefix.partition(".")[0]
    inside = {part for part in parts if longest_prefix(part, [first])}  # the typo is behind the first word
    return did_you_mean(prefix, sorted(inside or parts))


def _require_parts(task: nn.Module, prefixes: Iterable[str], key: str) -> None:
    """Raises UserError if no parameter has a prefix. Shared weights count by each of their names."""
    names = [name for name, _ in task.named_parameters(remove_duplicate=False)]
    for prefix in prefixes:
        if not any(longest_prefix(name, [prefix]) for name in names):
            hint = nearest_part(prefix, names).strip()
            raise UserError("unknown-name", f"no parameter begins with '{prefix}'", place=key, hint=hint)


def _stages(task: Any) -> dict[int, int]:
    """The number of encoder stages after that of each parameter, by id of the parameter."""
    encoder = task.encoder
    if not hasattr(encoder, "stages"):
        raise UserError(
            "unsupported",
            f"the encoder {type(encoder).__name__} has no stages()",
            place="optimizer.layer_decay",
            hint="Set layer_decay to 1, or use an encoder with stages (resnet, backbone).",
        )
    stages = encoder.stages()
    return {id(weight): len(stages) - number for number, stage in enumerate(stages, 1) for weight in stage}
