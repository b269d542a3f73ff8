"""Any image backbone of transformers as an encoder: ConvNeXt, Swin, DINOv2 and others, from scratch or from weights.

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

KEY = "model.encoder"
# timm's networks are others' code, in a package of its own.
ARCHITECTURES = {name: cls for name, cls in MODEL_FOR_BACKBONE_MAPPING_NAMES.items() if name != "timm_backbone"}
# Of a configuration: what the recipe's data and we decide.
OURS = ("num_channels", "out_features", "out_indices", "reshape_hidden_states")
PLAIN = (ValueError, RuntimeError, AssertionError)  # how networks refuse the size of an image


@register("encoder", "backbone")
class Backbone(nn.Module):
    """Last feature map of a transformers backbone, normalized where the backbone has a norm for it.

    Weights of colour networks take grey images by the sum of the stem's filters, which is the same as three equal
    channels. Images are standardized by the folder's `preprocessor_config.json`, and padded with black at the right and
    bottom to a multiple of the patch size.

    Source:
        Liu et al. 2022, arXiv 2201.03545 (ConvNeXt); Liu et al. 2021, arXiv 2103.14030 (Swin); Oquab et al. 2023,
        arXiv 2304.07193 (DINOv2); Siméoni et al. 2025, arXiv 2508.10104 (DINOv3);
        Hu et al. 2021, arXiv 2106.09685 (LoRA).

    Args:
        architecture: A transformers backbone such as convnext, swin, dinov2 or dinov3_vit, trained from scratch. Of
            plain ViTs transformers has none but vitdet.
        config: Values of its configuration, such as depths; with `weights`, those that leave shapes alone.
        weights: A backbone to start from, in place of `architecture`: a folder, or a name on the model hub.
        frozen_stages: Stages that stay as they are, with the stem before them; 0 trains all. [stages]
        lora_rank: Width of the trained matrices beside frozen weights; 0 trains the weights. [channels]
        lora_alpha: Factor of what those matrices add, times the rank.
        lora_dropout: Share of units dropped before them. [share]
        lora_targets: Names of the linear maps that get them, such as q_proj; null: those usual for the architecture.
        fusion: `concatenate` lays the patches of all views side by side; `attention` weighs views at each place.
        max_views: The most views an exam may have; 0: any number, and their order means nothing. [views]
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
        require_one_source(KEY, architecture, weights, hf_config, config, OURS, "data.channels and the last stage")
        if not lora_rank and (lora_alpha, lora_dropout, lora_targets) != (16, 0.0, None):
            raise ValueError(
                f"{KEY}: lora_alpha, lora_dropout and lora_targets are for a lora_rank above 0; set lora_rank, or take "
                "them out"
            )
        if lora_rank and frozen_stages:
            raise ValueError(f"{KEY}.frozen_stages: lora_rank freezes all stages; set one of them to 0")
        self.hf_config, self.external_weights = None, None
        mean: tuple[float, ...] = IMAGENET_MEAN
        std: tuple[float, ...] = IMAGENET_STD
        folder = None
        if hf_config is not None:
            of_weights, mean, std = config_from_dict(hf_config), hf_config["mean"], hf_config["std"]
            self.backbone, width, unused = _new(of_weights, channels)
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
            told = config_to_dict(self.backbone.config)
            self.hf_config = {"config": told, "mean": list(mean), "std": list(std)}
        for name in unused:
            self.backbone.get_parameter(name).requires_grad_(False)
        if frozen_stages:
            self._require_stages()
        freeze_stages(self.backbone, frozen_stages)
        if lora_rank:
            if folder is None and hf_config is None:
                raise ValueError(f"{KEY}.lora_rank: LoRA adapts weights; found none. Set weights, or lora_rank: 0")
            add_lora(self.backbone, lora_rank, lora_alpha, lora_dropout, lora_targets, KEY)
        if folder is not None and (lora_rank or frozen_stages):
            self.external_weights = external_weights_of(self, "backbone", str(weights), folder)
        settings = self.backbone.config
        self.patch = _pair(getattr(settings, "patch_stride", None) or getattr(settings, "patch_size", None) or 1)
        self.width = width
        self.position_VD = view_positions(max_views, width)
        self.pooling = view_pooling(fusion, width)

    def forward(self, image_BVCHW: Tensor, view_mask_BV: Tensor) -> Features:
        return encode_views(self._maps, image_BVCHW, view_mask_BV, self.position_VD, self.pooling)

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters from the image to the features.

        Raises:
            ValueError: the architecture keeps other things in lists than its stages, so they cannot be told apart.
        """
        self._require_stages()
        return stages_of(self, self.backbone)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        eval_frozen_modules(self.backbone)
        return self

    def _require_stages(self) -> None:
        told = sum(name != "stem" for name in self.backbone.config.stage_names)
        if (found := len(blocks_of(self.backbone))) != told:
            raise ValueError(
                f"{KEY}: {self.backbone.config.model_type} tells of {told} stages and is built of {found} blocks, so "
                "its stages are not known; leave out model.encoder.frozen_stages and optimizer.layer_decay"
            )

    def _maps(self, image_MCHW: Tensor) -> Tensor:
        down, right = (-size % patch for size, patch in zip(image_MCHW.shape[-2:], self.patch))
        padded = F.pad(image_MCHW, (0, right, 0, down)) if down or right else image_MCHW
        try:
            return self.backbone((padded - self.mean_C11) / self.std_C11).feature_maps[-1]
        except Exception as error:
            size = getattr(self.backbone.config, "image_size", None)
            # Those of a subclass are of other things: too little memory, or values that were asked of fake images.
            if type(error) not in PLAIN or size is None or _pair(size) == tuple(padded.shape[-2:]):
                raise
            raise ValueError(
                f"{KEY}: {self.backbone.config.model_type} is built for images of {_by(_pair(size))} px, and does not "
                f"run on {_by(padded.shape[-2:])} px ({error}). Set model.encoder.config.image_size to data.image_size"
            ) from error


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _new(config: Any, channels: int) -> tuple[nn.Module, int, tuple[str, ...]]:
    """A backbone with random weights, its width, and the names of parameters that its feature map does not use."""
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
        raise ValueError(f"{KEY}.architecture: '{config.model_type}' does not name its stages; take another")
    config.out_features = [names[-1]]
    if hasattr(config, "reshape_hidden_states"):
        config.reshape_hidden_states = True  # patches as a map


def _try_out(config: Any, channels: int) -> tuple[int, tuple[str, ...]]:
    """Width of the feature map, and unused parameters: mask tokens, norms of another head. Computes no numbers."""
    return _tried(json.dumps(config_to_dict(config)), channels)


@cache
def _tried(told: str, channels: int) -> tuple[int, tuple[str, ...]]:
    config = config_from_dict({"config": json.loads(told)})
    height, width = _pair(getattr(config, "image_size", None) or 64)
    with torch.device("meta"), torch.enable_grad():
        model = new_model(_class_of(config), config, KEY)
        names, weights = zip(*model.named_parameters())
        try:
            (map_1Dhw,) = model(torch.zeros(1, channels, height, width)).feature_maps
        except Exception as error:  # whatever the architecture stumbles over
            if channels == 1 and _runs_in_colour(told):
                raise ValueError(
                    f"{KEY}: {config.model_type} takes colour images alone; set data.channels: 3"
                ) from error
            raise ValueError(f"{KEY}: {config.model_type} does not run on {height} x {width} px ({error})") from error
        if map_1Dhw.dim() != 4:
            raise ValueError(
                f"{KEY}: the feature map of {config.model_type} has {map_1Dhw.dim()} dimensions, expected 4 (image, "
                "channel, height, width); take another architecture"
            )
        gradients = torch.autograd.grad(map_1Dhw.sum(), weights, allow_unused=True)
    used = dict(zip(names, gradients))
    return map_1Dhw.shape[1], tuple(name for name, found in used.items() if found is None or not found.numel())


def _runs_in_colour(told: str) -> bool:
    try:
        _tried(json.dumps({**json.loads(told), "num_channels": 3}), 3)
    except ValueError:
        return False
    return True


def _from_weights(folder: Path, values: dict[str, Any], channels: int) -> tuple[nn.Module, int, tuple[str, ...]]:
    config = read_config(folder, f"{KEY}.weights")
    require_architecture(config.model_type, ARCHITECTURES, [config.model_type], f"{KEY}.weights")
    config = update_config(config, values, KEY)
    _take_last_stage(config)
    colours = config.num_channels
    width, unused = _try_out(config, colours)
    model, missing = load_pretrained(_class_of(config), folder, config, KEY)
    missing = _take_norm(model, missing)
    require_no_missing_weights(missing, folder, KEY)
    if channels != colours:
        if (channels, colours) != (1, 3):
            raise ValueError(f"{KEY}.weights: {folder} takes {colours} channels, and data.channels is {channels}")
        convert_to_grayscale(model, KEY)
    return model, width, unused


def _take_norm(model: nn.Module, missing: list[str]) -> list[str]:
    """Gives the feature map the norm that published weights have after their last stage; what is missing then.

    ConvNeXt's comes after its pooling, which is another place, so there the map's norm begins as new.
    """
    norms = {name: part for name, part in model.named_modules() if ".hidden_states_norms." in f".{name}"}
    final = {name: part for name, part in model.named_modules() if name.endswith("layernorm") and name.count(".") == 1}
    lacking = set(missing)
    for name, norm in norms.items():
        if not lacking & {f"{name}.weight", f"{name}.bias"}:
            continue
        for last in final.values():
            norm.load_state_dict(last.state_dict())
        lacking -= {f"{name}.weight", f"{name}.bias"}
    return sorted(lacking)


def _statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that a folder says images were standardized with."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if not told.get("do_normalize", True):
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        mean, std = (
            tuple(float(v) for v in told.get(key, usual))
            for key, usual in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); expected image_mean and image_std, 3 numbers each"
        ) from None
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"{path}: found image_mean {mean} and image_std {std}, expected 3 numbers each, std above 0")
    return mean, std
