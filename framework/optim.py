"""Which parameters learn at which rate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate. `decay` is False for biases, norms and other vectors."""

    name: str
    parameters: list[nn.Parameter]
    lr: float
    decay: bool


def parameter_groups(task: nn.Module, lr: float, encoder_lr: float | None) -> list[Group]:
    """Trainable parameters in up to four groups: the encoder and the rest, decayed and not, none of them empty."""
    found: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            part = "encoder" if name.startswith("encoder.") else "rest"
            found.setdefault((part, parameter.dim() > 1), []).append(parameter)
    rates = {"encoder": lr if encoder_lr is None else encoder_lr, "rest": lr}
    return [Group(part, parameters, rates[part], decay) for (part, decay), parameters in found.items()]
