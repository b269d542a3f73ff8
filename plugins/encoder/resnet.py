"""The published visual encoder: a ResNet over each view."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from framework.exam import Features
from framework.models.blocks import eval_frozen_modules, freeze_stages, stages_of
from framework.models.external_weights import external_weights_of
from framework.models.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    config_from_dict,
    config_to_dict,
    convert_to_grayscale,
    load_pretrained,
    new_model,
    read_config,
    require_no_missing_weights,
    weights_folder,
)
from framework.models.views import encode_views, view_pooling, view_positions
from framework.registry import register
from framework.runtime.errors import UserError

DEPTHS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@register("encoder", "resnet")
class ResNet(nn.Module):
    """ResNet of transformers, from scratch or pretrained.

    Source:
        He et al. 2016, arXiv 1512.03385, table 1; as visual encoder: Li et al. 2024, arXiv 2406.00644.

    Args:
        depth: Number of layers; 10 is the smallest, with one block per stage. [layers]
        width: Channels of the first stage; the published networks have 64. [channels]
        norm: With `group`, results do not depend on batch and processes; pretrained weights need `batch`.
        weights: Pretrained transformers ResNet: a folder, or a name on the model hub; null trains from scratch.
        frozen_stages: Number of frozen stages, together with the stem; 0 trains all. [stages]
        fusion: `concatenate` concatenates the patches of all views; `attention` pools the views at each position.
        max_views: Maximum number of views of an exam, each with its embedding; 0 for any number without order. [views]
    """

    gives = ("patches", "pooled")

    def __init__(
        self,
        *,
        channels: int,
        hf_config: dict | None = None,
        depth: Literal[10, 18, 34, 50, 101, 152] = 18,
        width: PositiveInt = 64,
        norm: Literal["batch", "group"] = "batch",
        weights: str | None = None,
        frozen_stages: NonNegativeInt = 0,
        fusion: Literal["concatenate", "attention"] = "concatenate",
        max_views: NonNegativeInt = 4,
    ) -> None:
        super().__init__()
        deep = depth >= 50
        widths = [width * 2**stage * (4 if deep else 1) for stage in range(4)]
        config = ResNetConfig(
            num_channels=channels,
            embedding_size=width,
            hidden_sizes=widths,
            depths=list(DEPTHS[depth]),
            layer_type="bottleneck" if deep else "basic",
        )
        if weights is not None and norm != "batch":
            raise UserError(
                "conflicting-settings",
                "pretrained weights have batch norm",
                place="model.encoder.norm",
                hint="Remove norm: group.",
            )
        folder = None if weights is None else weights_folder(weights, "model.encoder.weights")
        if hf_config is not None:
            self.backbone = new_model(ResNetModel, config_from_dict(hf_config), "model.encoder")
        else:
            self.backbone = ResNetModel(config) if folder is None else _from_weights(folder, config, depth)
        # Pretrained weights may differ in activation and downsampling, which depth and width do not determine.
        pretrained = hf_config is not None or folder is not None
        self.hf_config = {"config": config_to_dict(self.backbone.config)} if pretrained else None
        if norm == "group":
            _use_group_norm(self.backbone)
        for name, rgb in (("mean_C11", IMAGENET_MEAN), ("std_C11", IMAGENET_STD)):
            values = rgb if channels == 3 else (sum(rgb) / 3,)
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.backbone.to(memory_format=torch.channels_last)  # 17 % faster on a CPU, more on a GPU
        self.width = widths[-1]
        self.position_VD = view_positions(max_views, self.width)
        self.pooling = view_pooling(fusion, self.width)
        freeze_stages(self.backbone, frozen_stages)
        self.external_weights = (
            external_weights_of(self, "backbone", str(weights), folder) if folder and frozen_stages else None
        )

    mean_C11: Tensor
    std_C11: Tensor

    def forward(self, image_BVCHW: Tensor, view_mask_BV: Tensor) -> Features:
        return encode_views(self.maps, image_BVCHW, view_mask_BV, self.position_VD, self.pooling)

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters from the image to the features."""
        return stages_of(self, self.backbone)

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        eval_frozen_modules(self.backbone)
        return self

    def maps(self, image_MCHW: Tensor) -> Tensor:
        standard = ((image_MCHW - self.mean_C11) / self.std_C11).contiguous(memory_format=torch.channels_last)
        return self.backbone(standard).last_hidden_state


def _from_weights(folder: Path, config: ResNetConfig, depth: int) -> ResNetModel:
    """Loads pretrained weights; for grayscale images, the first filters are summed over the colours."""
    found_config = read_config(folder, "model.encoder.weights")
    for key in ("layer_type", "depths", "hidden_sizes"):
        found, expected = getattr(found_config, key, None), getattr(config, key)
        if found != expected:
            raise UserError(
                "does-not-fit",
                f"'{folder}' has {key} {found}",
                place="model.encoder.weights",
                expected=f"{expected}, from depth {depth} and width of the recipe",
            )
    model, missing = load_pretrained(ResNetModel, folder, found_config, "model.encoder")
    require_no_missing_weights(missing, folder, "model.encoder")
    if config.num_channels == 1:
        convert_to_grayscale(model, "model.encoder")
    return model


def _use_group_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            groups = 8 if child.num_features % 8 == 0 else 1
            setattr(module, name, nn.GroupNorm(groups, child.num_features))
        else:
            _use_group_norm(child)
