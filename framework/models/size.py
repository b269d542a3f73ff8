"""Bounds the size of what is built: one number of a recipe can ask for more than any machine has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from framework.runtime.memory import memory_bytes

MOST_TENSORS = 10_000  # of one part; a language model of 400 billion parameters has about 1,200


class TooLarge(Exception):  # noqa: N818 - becomes a UserError with the recipe's key
    """A module has more or larger weights than can be held."""


@contextmanager
def bounded_size() -> Iterator[None]:
    """Inside, raises `TooLarge` as soon as modules have too many weights, or more bytes of them than this machine.

    Modules register a weight before they initialize it, which is when memory is taken. Weights on the meta device take
    none; they count by their number alone.
    """
    number, size, limit = 0, 0, memory_bytes()

    def registered(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal number, size
        if tensor is None:
            return
        number, size = number + 1, size + (0 if tensor.is_meta else tensor.nbytes)
        if number > MOST_TENSORS:
            raise TooLarge(f"more than {MOST_TENSORS:,} weight tensors")
        require_memory(size, limit)

    hooks = [
        register_module_parameter_registration_hook(registered),
        register_module_buffer_registration_hook(registered),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_memory(size: int, limit: int) -> None:
    """Raises `TooLarge` if weights have more bytes than the limit."""
    if size > limit:
        raise TooLarge(f"more memory than the {limit / 2**30:.1f} GiB of this machine")


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, also on the meta device."""
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
