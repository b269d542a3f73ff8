"""The device that models run on, and numbers that come from it without a wait."""

from __future__ import annotations

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor


def on_cpu() -> bool:
    return not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


class DeferredNumber:
    """A number on the device, whose copy to the host starts now.

    `read` waits for this copy only. `Tensor.item` would wait for all work that has been queued since.

    Args:
        value: 0-dim, or of one element.
    """

    def __init__(self, value: Tensor) -> None:
        self.copied: torch.cuda.Event | None = None
        self.host = value.detach()
        if value.device.type == "cuda":
            self.host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self.host.copy_(value.detach(), non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> float:
        if self.copied is not None:
            self.copied.synchronize()
        return self.host.item()
