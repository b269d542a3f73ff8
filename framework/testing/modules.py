"""The common contract of encoders, decoders and losses as torch modules: training, saving, devices.

Shapes as in `framework.exam`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from framework.testing.contract import require, runs
from framework.testing.elsewhere import Elsewhere, There, TwoDevicesError, send

CLOSE = 1e-4  # sums in another order differ by less; a wrong value by more
# Applies a module to fixed random inputs, which `place` moves to a device.
Use = Callable[[Any, Callable[[Tensor], Tensor]], list[Tensor]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers, without touching the global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int, build: Callable[[], Any]) -> Any:
    torch.manual_seed(seed)
    return build()


def stay(tensor: Tensor) -> Tensor:
    return tensor


def gap(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest relative difference; infinite if shapes differ or a value is NaN."""
    largest = 0.0
    for one, other in zip(ones, others, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if one.numel() == 0:
            continue
        one, other = one.double(), other.double()
        difference = float((one - other).abs().max()) / max(1.0, float(other.abs().max()))
        largest = max(largest, difference if difference == difference else float("inf"))
    return largest


def same(ones: Sequence[Tensor], others: Sequence[Tensor], rule: str, fix: str, most: float = CLOSE) -> None:
    """Requires that two results are equal."""
    difference = gap(ones, others)
    require(difference <= most, rule, found=f"a difference of {difference:.3g}", expected=f"at most {most:g}", fix=fix)


@torch.no_grad()
def check_seeds(build: Callable[[], Any], use: Use) -> None:
    """Determinism; runs first, since all comparisons of two results rely on it."""
    require(
        isinstance(build(), nn.Module),
        "the plugin is an nn.Module",
        found=type(build()).__name__,
        expected="torch.nn.Module",
        fix="inherit from nn.Module and call super().__init__() first",
    )
    one, two = seeded(1, build), seeded(1, build)
    first = use(one.eval(), stay)
    same(
        use(one, stay),
        first,
        "in eval mode the same input gives the same output",
        "apply dropout only if self.training, and store nothing between calls",
        0.0,
    )
    fix = "draw random numbers only from torch's global generator"
    same(use(two.eval(), stay), first, "the same seed builds the same module", fix, 0.0)
    runs = [seeded(3, partial(use, module.train(), stay)) for module in (one, two)]
    same(runs[0], runs[1], "the same seed gives the same training output", fix, 0.0)


def check_module(build: Callable[[], Any], use: Use, *, draws: bool = False) -> None:
    """Checks saving, devices and half precision.

    Args:
        draws: results depend on random numbers, which differ on a GPU.
    """
    _saving(build, use)
    _devices(build, use, draws)
    _half_precision(build, use)


@torch.no_grad()
def _saving(build: Callable[[], Any], use: Use) -> None:
    trained = seeded(1, build).train()
    for _ in range(3):
        use(trained, stay)  # moves running statistics, where there are any
    rule = "a state_dict restores a trained module"
    with runs(rule, expected="only tensors, which load strictly", fix="keep state in parameters and buffers"):
        state = {name: value.detach().clone().contiguous() for name, value in trained.state_dict().items()}
        save(state)
        fresh = seeded(2, build)
        fresh.load_state_dict(state)
    same(
        use(fresh.eval(), stay),
        use(trained.eval(), stay),
        rule,
        "register tensors as nn.Parameter or with self.register_buffer(name, tensor)",
    )


@torch.no_grad()
def _devices(build: Callable[[], Any], use: Use, draws: bool) -> None:
    """On a simulated device, and on a GPU if there is one."""
    rule = "all tensors move with .to(device)"
    fix = "create constants with device=x.device or x.new_zeros(...); register stored tensors with self.register_buffer"
    module = seeded(1, build).eval()
    expected = use(module, stay)
    send(module)
    try:
        with Elsewhere():
            use(module, There)
    except TwoDevicesError as error:
        require(False, rule, found=error, expected="all tensors on the module's device", fix=fix)
    except Exception as error:  # it ran on the CPU: the simulation failed
        warnings.warn(f"the device check needs a GPU here: {error}", stacklevel=2)
    if torch.cuda.is_available():
        with runs(rule, expected="all tensors on the module's device", fix=fix):
            found = use(seeded(1, build).eval().cuda(), lambda tensor: tensor.cuda())
        if not draws:
            same([value.cpu() for value in found], expected, "a GPU gives the same result as the CPU", fix, 1e-2)


@torch.no_grad()
def _half_precision(build: Callable[[], Any], use: Use) -> None:
    rule, expected = "outputs are finite under bfloat16 autocast", "finite numbers"
    fix = "compute sums, logarithms and divisions in float32"
    with runs(rule, expected=expected, fix=fix), torch.autocast("cpu", dtype=torch.bfloat16):
        values = use(seeded(1, build).eval(), stay)
    broken = sum(int((~torch.isfinite(value)).sum()) for value in values)
    require(broken == 0, rule, found=f"{broken} NaN or Inf", expected=expected, fix=fix)


def check_gradients(module: nn.Module, values: Sequence[Tensor], inputs: dict[str, Tensor]) -> None:
    """A gradient of `values` reaches every trainable parameter, and each of `inputs`."""
    total = sum((value * drawn(*value.shape, seed=9).to(value.dtype)).sum() for value in values)
    rule = "a gradient reaches every trainable parameter"
    unused = "use it, freeze it with requires_grad_(False), or remove it: DDP stops at unused parameters"
    with runs(rule, expected="outputs with a gradient", fix="do not use .detach(), .item() or new tensors"):
        total.backward()  # type: ignore[union-attr]
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            # A bias before a norm or a softmax may have none in exact arithmetic, but must be part of the graph.
            reached = weight.grad is not None and (name.endswith("bias") or bool(weight.grad.any()))
            require(reached, rule, found=f"none at {name}", expected="a gradient other than 0", fix=unused)
    for name, value in inputs.items():
        require(
            value.grad is not None and bool(value.grad.any()),
            f"a gradient reaches {name}",
            found="none",
            expected="a gradient other than 0",
            fix=f"use {name} without .detach(), or remove it from `needs`",
        )


class Untouchable:
    """Raises when it is used: a stand-in for values that a plugin must not read."""

    def __init__(self, name: str) -> None:
        vars(self)["name"] = name

    def _touched(self, *_: Any, **__: Any) -> Any:
        raise LookupError(f"{vars(self)['name']} was touched")

    __getattr__ = __getitem__ = __len__ = __iter__ = __bool__ = _touched
    __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __matmul__ = __truediv__ = _touched

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise LookupError(f"{next(vars(a)['name'] for a in args if isinstance(a, cls))} was touched")
