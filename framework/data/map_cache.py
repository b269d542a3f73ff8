"""Cache of the feature maps of a frozen encoder in one memory-mapped file: an epoch reads what it would compute.

Shapes: M views of all exams, C channels, H W image, D width, h w of a feature map.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from framework.data.image_cache import ImageCache, open_reserved, read_complete, remove_parts, write_complete
from framework.exam import scaled
from framework.runtime.files import file_lock
from framework.runtime.live import ProgressBar

VERSION = 1  # raise it when the same encoder and images would give other maps
BATCH = 32  # views that are encoded at once


def frozen_digest(module: nn.Module) -> str:
    """SHA-256 of the frozen parameters and the buffers of a module, with their names."""
    seen = hashlib.sha256()
    for name, value in sorted(module.state_dict(keep_vars=True).items()):
        if value.requires_grad:
            continue
        seen.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        seen.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def build_map_cache(
    images: ImageCache, maps: Callable[[Tensor], Tensor], *, key: str, folder: Path, device: torch.device
) -> ImageCache:
    """The feature maps of all cached images, float32 [rows, D, h, w], from disk if they are cached and undamaged.

    Args:
        maps: images [M, C, H, W], 0 to 1, to maps [M, D, h, w]; it gives the same for an image in any batch.
        key: changes with the weights and settings of `maps`.

    Raises:
        UserError: the disk has no room for the maps.
    """
    name = hashlib.sha256(json.dumps([VERSION, images.path.stem, key]).encode()).hexdigest()[:24]
    path = folder / "maps" / f"{name}.npy"
    if read_complete(path) is None:  # an existing cache may be on a read-only disk, so no lock is taken
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path.with_suffix(".lock"), "feature maps"):
            if read_complete(path) is None:
                _write(path, images.array, maps, device)
    return ImageCache(path, images.rows)


@torch.no_grad()
def _write(path: Path, images: np.ndarray, maps: Callable[[Tensor], Tensor], device: torch.device) -> None:
    remove_parts(path)
    part = path.with_suffix(f".{os.getpid()}.part")

    def encoded(start: int, end: int) -> np.ndarray:
        image_MCHW = torch.from_numpy(np.array(images[start:end])).to(device)
        return maps(scaled(image_MCHW)).float().cpu().numpy()

    try:
        stored = open_reserved(part, (len(images), *encoded(0, 1).shape[1:]), np.float32, "feature maps")
        starts = range(0, len(images), BATCH)
        for start in ProgressBar(starts, total=len(starts), text="feature maps"):
            stored[start : start + BATCH] = encoded(start, start + BATCH)
        stored.flush()
        del stored
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    write_complete(path, [])
