"""The contract of an augmentation. Shapes: B batch, V views, C channels, H W image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.testing.contract import Make, build_plugin, require, runs
from framework.testing.elsewhere import Elsewhere, There, TwoDevicesError
from framework.testing.modules import same

SEEDS = [5, 2**55 + 17, 70_000_000_019]  # as large as framework.data.loading.exam_seed draws them


def check_augment(make: Make) -> None:
    """Checks an augmentation against its contract.

    Args:
        make: The class, or a function that builds one.

    Raises:
        ContractError: the first rule that it breaks.
    """
    augment = build_plugin(make)
    for channels in (1, 3):
        image = torch.rand(3, 2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
        before = image.clone()
        rule = "the augmentation accepts images and one seed per exam"
        with runs(rule, expected="images", fix="(image_BVCHW, seeds) -> image_BVCHW"):
            found = augment(image, SEEDS)
        same([image], [before], "the input images are not modified", "modify a copy", 0.0)
        _images(found, image)
        fix = "draw only from torch.Generator().manual_seed(seed) of each exam"
        same([augment(image, SEEDS)], [found], "the same seeds give the same images", fix, 0.0)
        same(
            [build_plugin(make)(image, SEEDS)],
            [found],
            "the same seeds give the same images in a new instance",
            fix,
            0.0,
        )
        for row, seed in enumerate(SEEDS):
            alone = augment(image[row : row + 1], [seed])
            same([alone[0]], [found[row]], "an exam alone is augmented as in a batch", fix)
        turned = augment(image.flip(0), SEEDS[::-1])
        same([turned.flip(0)], [found], "the position in the batch has no effect", fix)
    _devices(augment, image)
    _mirroring(augment)


def _mirroring(augment: object) -> None:
    """A chiral pattern of smooth blobs is at no rotation its mirror image."""
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
    require(
        mirrored == 0 or bool(getattr(augment, "mirrors", ())),
        "an augmentation that flips images lists the responsible keys in `mirrors`, since a flip makes left right",
        found=f"{mirrored} of 48 images are mirrored, and `mirrors` is missing",
        expected="a class attribute with the keys",
        fix='mirrors = ("flip",) if images are flipped when the key `flip` is above 0',
    )


def _likeness(found: Tensor, turned: Tensor) -> Tensor:
    """The largest correlation of each image with any of the rotated patterns."""
    rows, columns = (each.flatten(1) - each.flatten(1).mean(1, keepdim=True) for each in (found, turned.squeeze(1)))
    return (F.normalize(rows, dim=1) @ F.normalize(columns, dim=1).T).amax(1)


def _images(found: Tensor, image: Tensor) -> None:
    require(
        found.shape == image.shape and found.dtype == image.dtype,
        "images keep their shape and dtype",
        found=f"{found.dtype} {tuple(found.shape)}",
        expected=f"{image.dtype} {tuple(image.shape)}",
        fix="do not change size or dtype",
    )
    require(
        bool(torch.isfinite(found).all()) and float(found.min()) >= 0 and float(found.max()) <= 1,
        "images stay between 0 and 1",
        found=f"{float(found.min()):.3g} to {float(found.max()):.3g}",
        expected="0 to 1",
        fix="end with .clamp(0, 1)",
    )


def _devices(augment: object, image: Tensor) -> None:
    rule = "all tensors are on the device of the images"
    fix = "draw on the CPU, then .to(image_BVCHW.device)"
    try:
        with Elsewhere():
            augment(There(image), SEEDS)  # type: ignore[operator]
    except TwoDevicesError as error:
        require(False, rule, found=error, expected="all tensors on the images' device", fix=fix)
    if torch.cuda.is_available():
        with runs(rule, expected="all tensors on the images' device", fix=fix):
            found = augment(image.cuda(), SEEDS).cpu()  # type: ignore[operator]
        same([found], [augment(image, SEEDS)], "a GPU gives the same images as the CPU", fix, 1e-2)  # type: ignore[operator]
