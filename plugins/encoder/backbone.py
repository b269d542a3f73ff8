"""Any image backbone of transformers as encoder: ConvNeXt, Swin, DINOv2 and others, from scratch or pretrained.

Shapes: B batch, V views, C channels, H W image, M views of all exams, D width, h w of a feature map.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_FOR_BACKBONE_MAPPING_NAMES

from framework.exam import Features
from framework.models.blocks import blocks_of, eval_frozen_modules, freeze_stages, stages_of
from framework.models.external_weights import external_weights_of
from framework.models.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    add_lora,
    config_from_dict,
    config_to_dict,
    convert_to_grayscale,
    load_pretrained,
    new_config,
    new_model,
    read_config,
    require_architecture,
    require_no_missing_weights,
    require_one_source,
    update_config,
    weights_folder,
)
from framework.models.views import encode_views, view_pooling, view_positions
from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.errors import UserError
from framework.runtime.files import read_bounded

KEY = "model.encoder"
# timm's networks need another package.
ARCHITECTURES = {name: cls for name, cls in MODEL_FOR_BACKBONE_MAPPING_NAMES.items() if name != "timm_backbone"}
# Configuration values that the recipe's data determine.
DERIVED = ("num_channels", "out_features", "out_indices", "reshape_hidden_states")
SIZE_ERRORS = (ValueError, RuntimeError, AssertionError)  # raised by networks for a wrong image size


@register("encoder", "backbone")
class Backbone(nn.Module):
    """Last feature map of a transformers backbone, normalized if the backbone has a norm for it.

    For grayscale images, the first filters of RGB weights are summed over the colours, which equals three identical
    channels. Images are standardized by the folder's `preprocessor_config.json` and padded with black at the right and
    bottom to a multiple of the patch size.

    Source:
        Liu et al. 2022, arXiv 2201.03545 (ConvNeXt); Liu et al. 2021, arXiv 2103.14030 (Swin); Oquab et al. 2023,
        arXiv 2304.07193 (DINOv2); Siméoni et al. 2025, arXiv 2508.10104 (DINOv3);
        Hu et al. 2021, arXiv 2106.09685 (LoRA).

    Args:
        architecture: Backbone of transformers such as convnext, swin, dinov2 or dinov3_vit, trained from scratch. The
            only plain ViT is vitdet.
        config: Values of its configuration, such as depths; with `weights`, none that change shapes.
        weights: Pretrained backbone in place of `architecture`: a folder, or a name on the model hub.
        frozen_stages: Number of frozen stages, together with the stem; 0 trains all. [stages]
        lora_rank: Rank of LoRA's matrices beside frozen weights; 0 trains the weights. [channels]
        lora_alpha: LoRA scaling factor; the update is multiplied by lora_alpha / lora_rank.
        lora_dropout: Dropout probability before LoRA's matrices. [share]
        lora_targets: Names of the linear layers with LoRA, such as q_proj; null for peft's defaults.
        fusion: `concatenate` concatenates the patches of all views; `attention` pools the views at each position.
        max_views: Maximum number of views of an exam, each with its embedding; 0 for any number without order. [views]
    """

    backbone: Any
    mean_C11: Tensor
    std_C11: Tensor

    gives = ("patches", "pooled")

    def __init__(
        self,
        *,
        channels: int,
        hf_config: dict | None = None,
        architecture: str | None = None,
        config: dict = {},  # noqa: B006
        weights: str | None = None,
        frozen_stages: NonNegativeInt = 0,
        lora_rank: NonNegativeInt = 0,
        lora_alpha: PositiveInt = 16,
        lora_dropout: Fraction = 0.0,
        lora_targets: list[str] | None = None,
        fusion: Literal["concatenate", "attention"] = "concatenate",
        max_views: NonNegativeInt = 4,
    ) -> None:
        super().__init__()
        require_one_source(KEY, architecture, weights, hf_config, config, DERIVED, "data.channels and the last stage")
        if not lora_rank and (lora_alpha, lora_dropout, lora_targets) != (16, 0.0, None):
            raise UserError(
                "ignored-setting",
                "lora_alpha, lora_dropout and lora_targets have no effect with lora_rank 0",
                place=KEY,
                hint="Set lora_rank, or remove them.",
            )
        if lora_rank and frozen_stages:
            raise UserError(
                "conflicting-settings",
                "lora_rank freezes all stages",
                place=f"{KEY}.frozen_stages",
                hint="Set one of the two to 0.",
            )
        self.hf_config, self.external_weights = None, None
        mean: tuple[float, ...] = IMAGENET_MEAN
        std: tuple[float, ...] = IMAGENET_STD
        folder = None
        if hf_config is not None:
            mean, std = hf_config["mean"], hf_config["std"]
            self.backbone, width, unused = _new(config_from_dict(hf_config), channels)
        elif weights is not None:
            folder = weights_folder(weights, f"{KEY}.weights")
            mean, std = _statistics(folder)
            self.backbone, width, unused = _from_weights(folder, config, channels)
        else:
            self.backbone, width, unused = _new(new_config(str(architecture), config, ARCHITECTURES, KEY), channels)
        if channels == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        self.register_buffer("mean_C11", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(std)[:, None, None], persistent=False)
        if hf_config is not None or weights is not None:
            saved = config_to_dict(self.backbone.config)
            self.hf_config = {"config": saved, "mean": list(mean), "std": list(std)}
        for name in unused:
            self.backbone.get_parameter(name).requires_grad_(False)
        if frozen_stages:
            self._require_stages()
        freeze_stages(self.backbone, frozen_stages)
        if lora_rank:
            if folder is None and hf_config is None:
                raise UserError(
                    "conflicting-settings",
                    "LoRA adapts pretrained weights",
                    place=f"{KEY}.lora_rank",
                    hint="Set weights, or lora_rank: 0.",
                )
            add_lora(self.backbone, lora_rank, lora_alpha, lora_dropout, lora_targets, KEY)
        if folder is not None and (lora_rank or frozen_stages):
            self.external_weights = external_weights_of(self, "backbone", str(weights), folder)
        settings = self.backbone.config
        self.patch = _pair(getattr(settings, "patch_stride", None) or getattr(settings, "patch_size", None) or 1)
        self.width = width
        self.position_VD = view_positions(max_views, width)
        self.pooling = view_pooling(fusion, width)

    def forward(self, image_BVCHW: Tensor, view_mask_BV: Tensor) -> Features:
        return encode_views(self.maps, image_BVCHW, view_mask_BV, self.position_VD, self.pooling)

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters from the image to the features.

        Raises:
            UserError: `unsupported` if the architecture's blocks do not correspond to its stages.
        """
        self._require_stages()
        return stages_of(self, self.backbone)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        eval_frozen_modules(self.backbone)
        return self

    def _require_stages(self) -> None:
        stages = sum(name != "stem" for name in self.backbone.config.stage_names)
        if (blocks := len(blocks_of(self.backbone))) != stages:
            raise UserError(
                "unsupported",
                f"{self.backbone.config.model_type} has {stages} stages but {blocks} blocks, so its stages are unknown",
                place=KEY,
                hint="Remove model.encoder.frozen_stages and optimizer.layer_decay.",
            )

    def maps(self, image_MCHW: Tensor) -> Tensor:
        down, right = (-size % patch for size, patch in zip(image_MCHW.shape[-2:], self.patch))
        padded = F.pad(image_MCHW, (0, right, 0, down)) if down or right else image_MCHW
        try:
            return self.backbone((padded - self.mean_C11) / self.std_C11).feature_maps[-1]
        except Exception as error:
            size = getattr(self.backbone.config, "image_size", None)
            # Subclasses mean other things: out of memory, or data-dependent shapes of fake tensors.
            if type(error) not in SIZE_ERRORS or size is None or _pair(size) == tuple(padded.shape[-2:]):
                raise
            raise UserError(
                "does-not-fit",
                f"{self.backbone.config.model_type} is built for images of {_by(_pair(size))} px and does not run on "
                f"{_by(padded.shape[-2:])} px ({error})",
                place=KEY,
                hint="Set model.encoder.config.image_size to data.image_size.",
            ) from error


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _new(config: Any, channels: int) -> tuple[nn.Module, int, tuple[str, ...]]:
    """A backbone with random weights, its width, and the names of its unused parameters."""
    config.num_channels = channels
    _take_last_stage(config)
    width, unused = _try_out(config, channels)
    return new_model(_class_of(config), config, KEY), width, unused


def _class_of(config: Any) -> Any:
    # Not AutoBackbone, whose from_pretrained asks the model hub even for a folder.
    return MODEL_FOR_BACKBONE_MAPPING[type(config)]


def _take_last_stage(config: Any) -> None:
    names = getattr(config, "stage_names", None)
    if not names:
        raise UserError(
            "unsupported",
            f"'{config.model_type}' does not name its stages",
            place=f"{KEY}.architecture",
            hint="Take another architecture.",
        )
    config.out_features = [names[-1]]
    if hasattr(config, "reshape_hidden_states"):
        config.reshape_hidden_states = True  # patches as a feature map


def _try_out(config: Any, channels: int) -> tuple[int, tuple[str, ...]]:
    """Width of the feature map, and unused parameters such as mask tokens and norms of heads; on the meta device."""
    return _try_out_json(json.dumps(config_to_dict(config)), channels)


@cache
def _try_out_json(config_json: str, channels: int) -> tuple[int, tuple[str, ...]]:
    config = config_from_dict({"config": json.loads(config_json)})
    height, width = _pair(getattr(config, "image_size", None) or 64)
    with torch.device("meta"), torch.enable_grad():
        model = new_model(_class_of(config), config, KEY)
        names, weights = zip(*model.named_parameters())
        try:
            (map_1Dhw,) = model(torch.zeros(1, channels, height, width)).feature_maps
        except Exception as error:  # whatever the architecture raises
            if channels == 1 and _runs_on_rgb(config_json):
                raise UserError(
                    "unsupported",
                    f"{config.model_type} takes only RGB images",
                    place=KEY,
                    hint="Set data.channels: 3.",
                ) from error
            raise UserError(
                "does-not-fit", f"{config.model_type} does not run on {height} x {width} px ({error})", place=KEY
            ) from error
        if map_1Dhw.dim() != 4:
            raise UserError(
                "unsupported",
                f"the feature map of {config.model_type} has {map_1Dhw.dim()} dimensions",
                place=KEY,
                expected="4 (image, channel, height, width)",
                hint="Take another architecture.",
            )
        gradients = torch.autograd.grad(map_1Dhw.sum(), weights, allow_unused=True)
    used = dict(zip(names, gradients))
    return map_1Dhw.shape[1], tuple(name for name, found in used.items() if found is None or not found.numel())


def _runs_on_rgb(config_json: str) -> bool:
    try:
        _try_out_json(json.dumps({**json.loads(config_json), "num_channels": 3}), 3)
    except ValueError:
        return False
    return True


def _from_weights(folder: Path, values: dict[str, Any], channels: int) -> tuple[nn.Module, int, tuple[str, ...]]:
    config = read_config(folder, f"{KEY}.weights")
    require_architecture(config.model_type, ARCHITECTURES, [config.model_type], f"{KEY}.weights")
    config = update_config(config, values, KEY)
    _take_last_stage(config)
    pretrained_channels = config.num_channels
    width, unused = _try_out(config, pretrained_channels)
    model, missing = load_pretrained(_class_of(config), folder, config, KEY)
    missing = _take_final_norm(model, missing)
    require_no_missing_weights(missing, folder, KEY)
    if channels != pretrained_channels:
        if (channels, pretrained_channels) != (1, 3):
            raise UserError(
                "does-not-fit",
                f"{folder} takes {pretrained_channels} channels, and data.channels is {channels}",
                place=f"{KEY}.weights",
                hint=f"Set data.channels: {pretrained_channels}.",
            )
        convert_to_grayscale(model, KEY)
    return model, width, unused


def _take_final_norm(model: nn.Module, missing: list[str]) -> list[str]:
    """Copies the final norm of published weights to the norm of the feature map; returns what is still missing.

    ConvNeXt's final norm follows its pooling, which is another place, so there the map's norm stays new.
    """
    norms = {name: part for name, part in model.named_modules() if ".hidden_states_norms." in f".{name}"}
    final = {name: part for name, part in model.named_modules() if name.endswith("layernorm") and name.count(".") == 1}
    remaining = set(missing)
    for name, norm in norms.items():
        if not remaining & {f"{name}.weight", f"{name}.bias"}:
            continue
        for last in final.values():
            norm.load_state_dict(last.state_dict())
        remaining -= {f"{name}.weight", f"{name}.bias"}
    return sorted(remaining)


def _statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation from a folder's preprocessor_config.json."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        settings = json.loads(read_bounded(path))
        if not settings.get("do_normalize", True):
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        mean, std = (
            tuple(float(v) for v in settings.get(key, default))
            for key, default in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            "wrong-format", f"cannot be read ({error})", place=path, expected="image_mean and image_std, 3 numbers each"
        ) from None
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(
            "out-of-range",
            f"found image_mean {mean} and image_std {std}",
            place=path,
            expected="3 numbers each, std above 0",
        )
    return mean, std
