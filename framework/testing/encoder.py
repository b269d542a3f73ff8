"""What an encoder promises. Shapes: B batch, V views, C channels, H W image, N patches, D width."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from framework.registry.signature import GIVES
from framework.testing.modules import CLOSE, check_gradients, check_module, check_seeds, same, seeded
from framework.testing.promise import Make, hold, made, promised


def check_encoder(make: Make, *, size: int = 64) -> None:
    """Holds an encoder to its contract, on grey and on coloured images.

    Args:
        make: The class, or what makes one; gets `channels`.
        size: Pixels of the square images.

    Raises:
        BrokenPromise: the first promise that it does not keep.
    """
    for channels in (1, 3):
        image_BVCHW, mask_BV = _exams(channels, size)
        build = partial(made, make, channels=channels)
        use = partial(_use, image_BVCHW, mask_BV)
        with promised("an encoder takes grey and coloured images", expected="Features", fix="build it for `channels`"):
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
    """Patches that are there, and the vector of an exam; those of them that the encoder declares."""
    found = []
    if "patches" in gives_of(encoder):
        found.append(features.patches_BND * features.patch_mask_BN[..., None])
    if "pooled" in gives_of(encoder):
        found.append(features.pooled_BD)
    return found


def _shapes(encoder: Any, features: Any) -> None:
    gives = gives_of(encoder)
    hold(
        gives and set(gives) <= set(GIVES["encoder"]),
        "`gives` names what an encoder can give",
        found=gives,
        expected=f"some of {GIVES['encoder']}",
        fix='write gives = ("patches", "pooled") in the class, or leave it out',
    )
    width = getattr(encoder, "width", None)
    hold(
        type(width) is int and width > 0,
        "`width` tells the width of the features",
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
        hold(
            right,
            f"an encoder that gives {word} gives {name} as promised",
            found=f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else value,
            expected=f"{kind} {tuple('N' if n is None else n for n in shape)} with 3 exams and width {width}",
            fix="return framework.exam.Features; framework.models.views.encode_views makes it from maps of each view",
        )
    if "patches" in gives:
        patches, mask = features.patches_BND.shape[1], features.patch_mask_BN.shape[1]
        fix = "repeat view_mask_BV once for each patch of a view"
        hold(patches == mask, "patches and their mask have one length", found=(patches, mask), expected="N, N", fix=fix)


def _stages(encoder: Any) -> None:
    """Of an encoder that offers `stages()`: what rates of learning by layer are set by."""
    if not hasattr(encoder, "stages"):
        return
    promise = "stages() gives every parameter once, in lists from the image to the features"
    fix = (
        "give list[list[nn.Parameter]]; framework.models.blocks.stages_of makes it of a backbone with a list of blocks"
    )
    with promised(promise, expected="a list of lists of parameters", fix=fix):
        found = [id(weight) for stage in encoder.stages() for weight in stage]
    names = {id(weight): name for name, weight in encoder.named_parameters()}
    wrong = [name for each, name in names.items() if found.count(each) != 1]
    wrong += ["one that is not the encoder's"] * any(each not in names for each in found)
    hold(not wrong, promise, found=f"not once: {', '.join(wrong[:3])}", expected=f"{len(names)} parameters", fix=fix)


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
            "what stands in the gap of a missing view changes nothing, " + ("training" if training else "evaluating"),
            "encode image_BVCHW[view_mask_BV] alone (framework.models.views.encode_views does), and mask its patches",
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
            hold(
                len(rows[0]) == len(own[0]),
                "patches of a missing view are masked",
                found=f"{len(rows[0])} patches of an exam with {views} of 2 views",
                expected=f"{len(own[0])}, as many as without the gap",
                fix="set patch_mask_BN to False where view_mask_BV is",
            )
        if "pooled" in gives_of(encoder):
            rows.append(together.pooled_BD[exam])
            own.append(alone.pooled_BD[0])
        same(
            rows,
            own,
            "exams do not mix: one alone is as in a batch",
            "keep sums and norms within an exam, and divide by the views that are there",
        )
