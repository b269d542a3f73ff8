"""What an augmentation promises. Shapes: B batch, V views, C channels, H W image."""

from __future__ import annotations

import torch
from torch import Tensor

from framework.testing.elsewhere import Elsewhere, There, TwoDevicesError
from framework.testing.modules import same
from framework.testing.promise import Make, hold, made, promised

SEEDS = [5, 2**55 + 17, 70_000_000_019]  # as large as framework.data.exam_seed draws them


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
