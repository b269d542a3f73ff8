"""A fake second device: its tensors report the device `meta` and hold their values on the CPU.

An operation of them with a tensor on the CPU fails as it would with a tensor on a GPU, so the mistake is found without
a GPU. Unlike on the real `meta` device, code may read values.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

PLACE = torch.device("meta")
# Copies between devices, and indices and lengths, which torch takes from the CPU.
MIXED = frozenset({"copy_", "_to_copy", "index", "index_put", "index_put_", "_pack_padded_sequence"})
JOINED = frozenset({"cat", "stack"})  # where single numbers must lie on one device too


class TwoDevicesError(RuntimeError):
    """Raised where a GPU would raise."""


class There(Tensor):
    """A tensor elsewhere."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        there = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=PLACE
        )
        there.held = held
        return there

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})

    # Two that torch does without asking.
    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, *args: Any, **kwargs: Any) -> Tensor:
        return There(self.held.new_tensor(*args, **kwargs))


class Elsewhere(TorchDispatchMode):
    """Inside, `device="meta"` makes tensors elsewhere, and its autocast is the CPU's."""

    def __enter__(self) -> Any:
        self._patches = ExitStack()
        for module in (torch, torch.amp):
            self._patches.enter_context(patch.object(module, "autocast", _autocast(module.autocast)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _autocast(real: Any) -> Any:
    return lambda device_type, *args, **kwargs: real(
        "cpu" if device_type == PLACE.type else device_type, *args, **kwargs
    )


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    name = func.overloadpacket.__name__
    numbers_mix = name not in JOINED
    here = [tensor for tensor in tensors if tensor.device != PLACE and not (numbers_mix and tensor.dim() == 0)]
    if there and here and name not in MIXED:
        raise TwoDevicesError(f"'{name}' of a tensor {list(there[0].shape)} on the device and one {_shapes(here)} not")
    asked = kwargs.get("device")
    arrives = bool(there) if asked is None else torch.device(asked) == PLACE
    if asked is not None:
        kwargs = {**kwargs, "device": "cpu"}
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if torch.Tag.inplace_view in func.tags and there:  # transpose_ and the like: the shape of the wrapper changes too
        with no_dispatch():
            func(*args, **kwargs)
    if not arrives:
        return found
    came = {id(_held(tensor)): tensor for tensor in tensors}  # an operation in place gives back what came in
    return tree_map(lambda item: came[id(item)] if id(item) in came else _there(item), found)


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)


def _held(item: Any) -> Any:
    if isinstance(item, There):
        return item.held
    if isinstance(item, Tensor) and item.device == PLACE:  # torch.tensor(..., device=...) makes it past every hook
        return torch.zeros(item.shape, dtype=item.dtype)
    return item


def _there(item: Any) -> Any:
    return There(item) if isinstance(item, Tensor) and not isinstance(item, There) else item


def send(module: nn.Module) -> None:
    """What `module.to(device)` moves: parameters and registered buffers, and nothing else."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = There(tensor.detach())  # type: ignore[assignment]
