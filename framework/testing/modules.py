"""What encoders, decoders and losses promise alike, as torch modules that are trained, saved and moved.

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

from framework.testing.elsewhere import Elsewhere, There, TwoDevicesError, send
from framework.testing.promise import hold, promised

CLOSE = 1e-4  # sums in another order differ by less; a wrong value by more
# Uses a module on random inputs, the same each time, which `place` puts on a device.
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
    """The largest difference over the size of the values; infinite where shapes differ or a value is not finite."""
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


def same(ones: Sequence[Tensor], others: Sequence[Tensor], promise: str, fix: str, most: float = CLOSE) -> None:
    """Holds that two results are equal."""
    difference = gap(ones, others)
    hold(difference <= most, promise, found=f"a difference of {difference:.3g}", expected=f"at most {most:g}", fix=fix)


@torch.no_grad()
def check_seeds(build: Callable[[], Any], use: Use) -> None:
    """Comes before whatever compares two results, which says little of a module that draws as it likes."""
    hold(
        isinstance(build(), nn.Module),
        "the plugin is a torch module",
        found=type(build()).__name__,
        expected="torch.nn.Module",
        fix="inherit from nn.Module, and call super().__init__() first",
    )
    one, two = seeded(1, build), seeded(1, build)
    first = use(one.eval(), stay)
    same(
        use(one, stay),
        first,
        "outside training the same input gives the same output",
        "let dropout ask self.training, and keep nothing from one call to the next",
        0.0,
    )
    fix = "draw every random number from torch's global generator, without a generator or seed of its own"
    same(use(two.eval(), stay), first, "the same seed makes the same module", fix, 0.0)
    runs = [seeded(3, partial(use, module.train(), stay)) for module in (one, two)]
    same(runs[0], runs[1], "the same seed trains the same", fix, 0.0)


def check_module(build: Callable[[], Any], use: Use, *, draws: bool = False) -> None:
    """Saving, devices and half precision.

    Args:
        draws: results hang on random numbers, which are others on a GPU.
    """
    _saving(build, use)
    _devices(build, use, draws)
    _half_precision(build, use)


@torch.no_grad()
def _saving(build: Callable[[], Any], use: Use) -> None:
    trained = seeded(1, build).train()
    for _ in range(3):
        use(trained, stay)  # moves running statistics, where there are any
    promise = "state_dict holds all that a trained module is"
    with promised(promise, expected="tensors alone, which load strictly", fix="keep state in parameters and buffers"):
        state = {name: value.detach().clone().contiguous() for name, value in trained.state_dict().items()}
        save(state)
        fresh = seeded(2, build)
        fresh.load_state_dict(state)
    same(
        use(fresh.eval(), stay),
        use(trained.eval(), stay),
        promise,
        "register what is drawn or learned: nn.Parameter, or self.register_buffer(name, tensor)",
    )


@torch.no_grad()
def _devices(build: Callable[[], Any], use: Use, draws: bool) -> None:
    """On a pretended device, and on a GPU where there is one. Autocast is one thing that cannot be pretended."""
    promise = "everything follows .to(device)"
    fix = "make constants with device=x.device or x.new_zeros(...), and keep tensors with self.register_buffer"
    module = seeded(1, build).eval()
    expected = use(module, stay)
    send(module)
    try:
        with Elsewhere():
            use(module, There)
    except TwoDevicesError as error:
        hold(False, promise, found=error, expected="all tensors on the module's device", fix=fix)
    except Exception as error:  # it ran on the CPU: what fails is the pretence
        warnings.warn(f"devices were not checked without a GPU: {error}", stacklevel=2)
    if torch.cuda.is_available():
        with promised(promise, expected="all tensors on the module's device", fix=fix):
            found = use(seeded(1, build).eval().cuda(), lambda tensor: tensor.cuda())
        if not draws:
            same([value.cpu() for value in found], expected, "a GPU gives what the CPU gives", fix, 1e-2)


@torch.no_grad()
def _half_precision(build: Callable[[], Any], use: Use) -> None:
    promise, expected = "values are finite in bfloat16 autocast", "finite numbers"
    fix = "compute sums, logarithms and divisions in .float()"
    with promised(promise, expected=expected, fix=fix), torch.autocast("cpu", dtype=torch.bfloat16):
        values = use(seeded(1, build).eval(), stay)
    broken = sum(int((~torch.isfinite(value)).sum()) for value in values)
    hold(broken == 0, promise, found=f"{broken} values that are not", expected=expected, fix=fix)


def check_gradients(module: nn.Module, values: Sequence[Tensor], inputs: dict[str, Tensor]) -> None:
    """A gradient of `values` reaches every trainable parameter, and each of `inputs`."""
    total = sum((value * drawn(*value.shape, seed=9).to(value.dtype)).sum() for value in values)
    promise = "a gradient reaches every trainable parameter"
    unused = "use it, freeze it with requires_grad_(False), or leave it out: unused parameters stop training on GPUs"
    with promised(
        promise, expected="outputs that backward() takes", fix="no .detach(), .item() or new tensors between"
    ):
        total.backward()  # type: ignore[union-attr]
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            # A bias before a norm or a softmax may have none in exact arithmetic, but must be part of the graph.
            reached = weight.grad is not None and (name.endswith("bias") or bool(weight.grad.any()))
            hold(reached, promise, found=f"none at {name}", expected="a gradient other than 0", fix=unused)
    for name, value in inputs.items():
        hold(
            value.grad is not None and bool(value.grad.any()),
            f"a gradient reaches {name}",
            found="none",
            expected="a gradient other than 0",
            fix=f"use {name} without .detach(), or do not declare it in `needs`",
        )


class Untouchable:
    """Stands where a plugin must not look."""

    def __init__(self, name: str) -> None:
        vars(self)["name"] = name

    def _touched(self, *_: Any, **__: Any) -> Any:
        raise LookupError(f"{vars(self)['name']} was touched")

    __getattr__ = __getitem__ = __len__ = __iter__ = __bool__ = _touched
    __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __matmul__ = __truediv__ = _touched

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise LookupError(f"{next(vars(a)['name'] for a in args if isinstance(a, cls))} was touched")
