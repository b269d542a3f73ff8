"""Parts of formulas in numpy, for tests that recompute a module another way."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """A module's state dict in float64."""
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def linear(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()
