"""What an augmentation promises. Shapes: B batch, V views, C channels, H W image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.testing.elsewhere import Elsewhere, There, TwoDevicesError
from framework.testing.modules import same
from framework.testing.promise import Make, hold, made, promised

SEEDS = [5, 2**55 + 17, 70_000_000_019]  # as large as framework.data.loading.exam_seed draws them


def check_augment(make: Make) -> None:
    """Holds an augmentation to its contract.

    Args:
        make: The class, or what makes one.

    Raises:
        BrokenPromise: the first promise that it does not keep.
    """
    augment = made(make)
    for channels in (1, 3):
        image = torch.rand(3, 2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
        before = image.clone()
        promise = "an augmentation takes images and a seed for each exam"
        with promised(promise, expected="images", fix="(image_BVCHW, seeds) -> image_BVCHW"):
            found = augment(image, SEEDS)
        same([image], [before], "the images that come in are left as they are", "work on a copy", 0.0)
        _images(found, image)
        fix = "draw from torch.Generator().manual_seed(seed) of each exam, and from nothing else"
        same([augment(image, SEEDS)], [found], "the same seeds give the same images", fix, 0.0)
        same([made(make)(image, SEEDS)], [found], "the same seeds give the same images, made anew", fix, 0.0)
        for row, seed in enumerate(SEEDS):
            alone = augment(image[row : row + 1], [seed])
            same([alone[0]], [found[row]], "an exam alone is changed as in a batch", fix)
        turned = augment(image.flip(0), SEEDS[::-1])
        same([turned.flip(0)], [found], "the place in a batch changes nothing", fix)
    _devices(augment, image)
    _mirroring(augment)


def _mirroring(augment: object) -> None:
    """A chiral pattern of smooth blobs, turned by any angle, is never its mirror image."""
    ways = torch.linspace(-1, 1, 48)
    pattern = torch.zeros(48, 48)
    for row, column in ((-0.4, -0.3), (-0.1, -0.3), (0.2, -0.3), (0.4, -0.3), (-0.4, 0.0), (-0.4, 0.3), (0.0, 0.05)):
        pattern += torch.exp(-((ways[:, None] - row).square() + (ways - column).square()) / 0.02)
    image = (pattern / pattern.max())[None, None, None].expand(48, 1, 1, 48, 48)
    angles = torch.arange(0, 2 * math.pi, math.pi / 18)
    cos, sin, zero = torch.cos(angles), torch.sin(angles), torch.zeros_like(angles)
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(turn, [len(angles), 1, 48, 48], align_corners=False)
    turned = F.grid_sample(image[0].expand(len(angles), 1, 48, 48), grid, align_corners=False)
    found = augment(image.contiguous(), list(range(48))).flatten(0, 2)  # type: ignore[operator]
    mirrored = int((_likeness(found, turned.flip(-1)) > _likeness(found, turned) + 0.05).sum())
    hold(
        mirrored == 0 or bool(getattr(augment, "mirrors", ())),
        "an augmentation that mirrors images says by which of its keys, since a mirrored left is a right",
        found=f"{mirrored} of 48 images mirrored, and no `mirrors`",
        expected="the keys in a class attribute",
        fix='mirrors = ("flip",) under the docstring, where an image is mirrored if `flip` is above 0',
    )


def _likeness(found: Tensor, turned: Tensor) -> Tensor:
    """The best correlation of each image with any of the turned patterns."""
    rows, columns = (each.flatten(1) - each.flatten(1).mean(1, keepdim=True) for each in (found, turned.squeeze(1)))
    return (F.normalize(rows, dim=1) @ F.normalize(columns, dim=1).T).amax(1)


def _images(found: Tensor, image: Tensor) -> None:
    hold(
        found.shape == image.shape and found.dtype == image.dtype,
        "images keep their shape and type",
        found=f"{found.dtype} {tuple(found.shape)}",
        expected=f"{image.dtype} {tuple(image.shape)}",
        fix="change grey values or places, not the size",
    )
    hold(
        bool(torch.isfinite(found).all()) and float(found.min()) >= 0 and float(found.max()) <= 1,
        "images stay between 0 and 1",
        found=f"{float(found.min()):.3g} to {float(found.max()):.3g}",
        expected="0 to 1",
        fix="end with .clamp(0, 1)",
    )


def _devices(augment: object, image: Tensor) -> None:
    promise = "everything follows the device of the images"
    fix = "draw on the CPU, then .to(image_BVCHW.device)"
    try:
        with Elsewhere():
            augment(There(image), SEEDS)  # type: ignore[operator]
    except TwoDevicesError as error:
        hold(False, promise, found=error, expected="all tensors on the images' device", fix=fix)
    if torch.cuda.is_available():
        with promised(promise, expected="all tensors on the images' device", fix=fix):
            found = augment(image.cuda(), SEEDS).cpu()  # type: ignore[operator]
        same([found], [augment(image, SEEDS)], "a GPU changes images as the CPU does", fix, 1e-2)  # type: ignore[operator]
