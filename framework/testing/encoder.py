"""The contract of an encoder. Shapes: B batch, V views, C channels, H W image, N patches, D width."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from framework.registry.signature import GIVES
from framework.testing.contract import Make, build_plugin, require, runs
from framework.testing.modules import CLOSE, check_gradients, check_module, check_seeds, same, seeded


def check_encoder(make: Make, *, size: int = 64) -> None:
    """Checks an encoder against its contract, on grayscale and RGB images.

    Args:
        make: The class, or a function that builds one; receives `channels`.
        size: Pixels of the square images.

    Raises:
        ContractError: the first rule that it breaks.
    """
    for channels in (1, 3):
        image_BVCHW, mask_BV = _exams(channels, size)
        build = partial(build_plugin, make, channels=channels)
        use = partial(_use, image_BVCHW, mask_BV)
        with runs(
            "the encoder accepts grayscale and RGB images",
            expected="Features",
            fix="build the first layer for `channels`",
        ):
            encoder = seeded(1, build).eval()
            features = encoder(image_BVCHW, mask_BV)
        _shapes(encoder, features)
        check_seeds(build, use)
        _gaps(build, image_BVCHW, mask_BV)
        _alone(encoder, image_BVCHW, mask_BV)
        check_gradients(encoder, _given(encoder, features), {})
        _stages(encoder)
    check_module(build, use)


def _use(image_BVCHW: Tensor, mask_BV: Tensor, encoder: Any, place: Callable[[Tensor], Tensor]) -> list[Tensor]:
    return _given(encoder, encoder(place(image_BVCHW), place(mask_BV)))


def _exams(channels: int, size: int) -> tuple[Tensor, Tensor]:
    """Three exams, the second of which has one view of two."""
    image = torch.rand(3, 2, channels, size, size, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    return image * mask[:, :, None, None, None], mask


def gives_of(encoder: Any) -> tuple[str, ...]:
    return tuple(getattr(encoder, "gives", GIVES["encoder"]))


def _given(encoder: Any, features: Any) -> list[Tensor]:
    """Unmasked patches and pooled vectors, as far as the encoder declares them."""
    found = []
    if "patches" in gives_of(encoder):
        found.append(features.patches_BND * features.patch_mask_BN[..., None])
    if "pooled" in gives_of(encoder):
        found.append(features.pooled_BD)
    return found


def _shapes(encoder: Any, features: Any) -> None:
    gives = gives_of(encoder)
    require(
        gives and set(gives) <= set(GIVES["encoder"]),
        "`gives` lists features of an encoder",
        found=gives,
        expected=f"some of {GIVES['encoder']}",
        fix='write gives = ("patches", "pooled") in the class, or leave it out',
    )
    width = getattr(encoder, "width", None)
    require(
        type(width) is int and width > 0,
        "`width` is the width of the features",
        found=width,
        expected="a positive int",
        fix="set self.width in __init__",
    )
    for word, name, shape, kind in (
        ("patches", "patches_BND", (3, None, width), torch.float32),
        ("patches", "patch_mask_BN", (3, None), torch.bool),
        ("pooled", "pooled_BD", (3, width), torch.float32),
    ):
        if word not in gives:
            continue
        value = getattr(features, name, None)
        right = isinstance(value, Tensor) and value.dim() == len(shape) and value.dtype == kind
        right = right and all(want in (None, have) for want, have in zip(shape, value.shape))  # type: ignore[union-attr]
        require(
            right,
            f"an encoder that gives {word} returns {name} with this shape and dtype",
            found=f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else value,
            expected=f"{kind} {tuple('N' if n is None else n for n in shape)} with 3 exams and width {width}",
            fix="return framework.exam.Features; framework.models.views.encode_views builds it from feature maps",
        )
    if "patches" in gives:
        patches, mask = features.patches_BND.shape[1], features.patch_mask_BN.shape[1]
        fix = "repeat view_mask_BV for each patch of a view"
        require(
            patches == mask,
            "patches and their mask have the same length",
            found=(patches, mask),
            expected="N, N",
            fix=fix,
        )


def _stages(encoder: Any) -> None:
    """The optional `stages()`, which layer-wise learning rates use."""
    if not hasattr(encoder, "stages"):
        return
    rule = "stages() returns every parameter once, in lists from the image to the features"
    fix = "return list[list[nn.Parameter]], as framework.models.blocks.stages_of does for lists of blocks"
    with runs(rule, expected="a list of lists of parameters", fix=fix):
        found = [id(weight) for stage in encoder.stages() for weight in stage]
    names = {id(weight): name for name, weight in encoder.named_parameters()}
    wrong = [name for each, name in names.items() if found.count(each) != 1]
    wrong += ["a foreign one"] * any(each not in names for each in found)
    require(not wrong, rule, found=f"not once: {', '.join(wrong[:3])}", expected=f"{len(names)} parameters", fix=fix)


@torch.no_grad()
def _gaps(build: Callable[[], Any], image_BVCHW: Tensor, mask_BV: Tensor) -> None:
    other = image_BVCHW.clone()
    other[1, 1] = 0.9
    for training in (False, True):
        seen = []
        for image in (image_BVCHW, other):
            encoder = seeded(1, build).train(training)
            torch.manual_seed(2)
            seen.append(_given(encoder, encoder(image, mask_BV)))
        same(
            seen[1],
            seen[0],
            "the pixels of a missing view have no effect, " + ("in training" if training else "in evaluation"),
            "encode only image_BVCHW[view_mask_BV], as framework.models.views.encode_views does",
            0.0 if not training else CLOSE,
        )


@torch.no_grad()
def _alone(encoder: Any, image_BVCHW: Tensor, mask_BV: Tensor) -> None:
    together = encoder(image_BVCHW, mask_BV)
    for exam, views in ((0, 2), (1, 1)):
        alone = encoder(image_BVCHW[exam : exam + 1, :views], mask_BV[exam : exam + 1, :views])
        rows, own = [], []
        if "patches" in gives_of(encoder):
            rows.append(together.patches_BND[exam][together.patch_mask_BN[exam]])
            own.append(alone.patches_BND[0][alone.patch_mask_BN[0]])
            require(
                len(rows[0]) == len(own[0]),
                "patches of a missing view are masked",
                found=f"{len(rows[0])} patches of an exam with {views} of 2 views",
                expected=f"{len(own[0])}, as without the missing view",
                fix="set patch_mask_BN to False where view_mask_BV is False",
            )
        if "pooled" in gives_of(encoder):
            rows.append(together.pooled_BD[exam])
            own.append(alone.pooled_BD[0])
        same(
            rows,
            own,
            "exams are independent: one alone gives the same as in a batch",
            "compute sums and norms within an exam, and divide by the number of present views",
        )
