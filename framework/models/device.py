"""Which device models run on."""

from __future__ import annotations

import torch
from accelerate.utils import parse_flag_from_env


def on_cpu() -> bool:
    return not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
