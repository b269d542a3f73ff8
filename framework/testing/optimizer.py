"""The contract of an optimizer."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch import Tensor, nn

from framework.optim import Group, parameter_groups
from framework.testing.contract import Make, build_plugin, require, runs
from framework.testing.modules import drawn, same


def check_optimizer(make: Make) -> None:
    """Checks an optimizer against its contract.

    Args:
        make: The class or function, or one that builds it; receives `groups`.

    Raises:
        ContractError: the first rule that it breaks.
    """
    task, optimizer = _made(make, lr=0.1, encoder_lr=0.01)
    _groups(optimizer, parameter_groups(task, 0.1, 0.01))
    before = _weights(task)
    _step(task, optimizer, 0)
    for name, (weight, old) in zip(dict(task.named_parameters()), zip(_weights(task), before)):
        require(
            not torch.equal(weight, old),
            "a step changes every parameter with a gradient",
            found=f"{name} unchanged",
            expected="a change",
            fix="pass a param group for each of `groups` to the optimizer",
        )
    _state(task, optimizer)
    _saving(make, task, optimizer)
    _rates(make)
    _decay(make)


class _Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(4, 2)
        with torch.no_grad():
            for number, weight in enumerate(self.parameters()):
                weight.copy_(drawn(*weight.shape, seed=number))


def _made(make: Make, lr: float, encoder_lr: float) -> tuple[_Task, Any]:
    task = _Task()
    rule = "an optimizer is built from `groups`"
    fix = 'param groups such as {"params": group.parameters, "lr": group.lr} for a class of torch.optim'
    with runs(rule, expected="torch.optim.Optimizer", fix=fix):
        optimizer = build_plugin(make, groups=parameter_groups(task, lr, encoder_lr))
    right = isinstance(optimizer, torch.optim.Optimizer)
    require(right, rule, found=type(optimizer).__name__, expected="torch.optim.Optimizer", fix=fix)
    return task, optimizer


def _weights(task: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in task.parameters()]


def _step(task: nn.Module, optimizer: Any, number: int) -> None:
    """A step on gradients that depend only on `number`."""
    for place, weight in enumerate(task.parameters()):
        weight.grad = drawn(*weight.shape, seed=100 * number + place)
    optimizer.step()
    optimizer.zero_grad()


def _groups(optimizer: Any, groups: list[Group]) -> None:
    found = sorted((row["lr"], sum(p.numel() for p in row["params"])) for row in optimizer.param_groups)
    rates = sorted({rate for rate, _ in found})
    expected = sorted({group.lr for group in groups})
    sizes = {rate: sum(n for r, n in found if r == rate) for rate in rates}
    want = {rate: sum(p.numel() for g in groups if g.lr == rate for p in g.parameters) for rate in expected}
    require(
        sizes == want,
        "every group has its own learning rate",
        found=f"parameters by rate: {sizes}",
        expected=want,
        fix='set "lr": group.lr in each param group',
    )


def _state(task: _Task, optimizer: Any) -> None:
    shapes = {id(weight): tuple(weight.shape) for weight in task.parameters()}
    found = [
        (name, value)
        for weight, state in optimizer.state.items()
        for name, value in state.items()
        if not _can_be_saved(value, shapes[id(weight)])
    ]
    require(
        not found,
        "optimizer state is made of tensors of the parameter's shape or of one number, to be sharded and saved",
        found=", ".join(f"{name}: {_kind(value)}" for name, value in found[:3]),
        expected="tensors of the parameter's shape, or of one number",
        fix="store a count as torch.tensor(0.0), a mean as torch.zeros_like(parameter)",
    )


def _can_be_saved(value: Any, shape: tuple[int, ...]) -> bool:
    return value is None or (isinstance(value, Tensor) and (tuple(value.shape) == shape or value.numel() == 1))


def _kind(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _saving(make: Make, task: _Task, optimizer: Any) -> None:
    rule, fix = "a loaded optimizer continues with the same numbers", "store all state in self.state"
    other, fresh = _made(make, lr=0.1, encoder_lr=0.01)
    other.load_state_dict(copy.deepcopy(task.state_dict()))
    packed = io.BytesIO()
    with runs(rule, expected="a state_dict of tensors and numbers", fix=fix):
        torch.save(optimizer.state_dict(), packed)
        packed.seek(0)
        fresh.load_state_dict(torch.load(packed, weights_only=True))
    for number in (1, 2, 3):
        _step(task, optimizer, number)
        _step(other, fresh, number)
    same(_weights(other), _weights(task), rule, fix, 1e-6)


def _rates(make: Make) -> None:
    rule, fix = "a learning rate of 0 leaves weights unchanged", 'multiply every update by group["lr"]'
    task, optimizer = _made(make, lr=0.1, encoder_lr=0.0)
    before = _weights(task.encoder)
    _step(task, optimizer, 0)
    same(_weights(task.encoder), before, rule, fix, 0.0)
    for row in optimizer.param_groups:
        row["lr"] = 0.0  # as a schedule sets it
    before = _weights(task)
    _step(task, optimizer, 1)
    same(_weights(task), before, rule, fix, 0.0)


def _decay(make: Make) -> None:
    task, optimizer = _made(make, lr=0.1, encoder_lr=0.1)
    before = _weights(task)
    for weight in task.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    vectors = [number for number, weight in enumerate(before) if weight.dim() == 1]
    same(
        [_weights(task)[number] for number in vectors],
        [before[number] for number in vectors],
        "biases and norms do not decay",
        '"weight_decay": weight_decay if group.decay else 0.0',
        0.0,
    )
