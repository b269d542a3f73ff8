"""What is an encoder's own; the contract of its kind is in test_contracts.py."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import problem
from safetensors.torch import load_file, save_file
from tiny_models import CONVNEXT, DINOV2, SWIN, VIT, save_swin
from torch import nn
from transformers import ResNetConfig, ResNetModel, SwinConfig, SwinModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from framework.models.pretrained import IMAGENET_MEAN, IMAGENET_STD
from plugins.encoder.backbone import Backbone
from plugins.encoder.resnet import ResNet
from plugins.encoder.tiny_cnn import TinyCnn

RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}


def views(channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(3, 2, channels, 64, 64), torch.tensor([[True, True], [True, False], [True, True]])


def test_more_views_than_max_views_are_refused() -> None:
    with problem("out-of-range", place="model.encoder.max_views"):
        TinyCnn(channels=1)(torch.rand(1, 5, 1, 32, 32), torch.ones(1, 5, dtype=torch.bool))


def test_group_norm_leaves_no_batch_norm() -> None:
    assert not any(
        isinstance(part, nn.BatchNorm2d) for part in ResNet(channels=1, depth=10, width=8, norm="group").modules()
    )


def test_grey_images_give_the_features_of_three_equal_channels(tmp_path: Path) -> None:
    torch.manual_seed(3)
    ResNet(channels=3, depth=10, width=8).backbone.save_pretrained(tmp_path)
    grey = ResNet(channels=1, depth=10, width=8, weights=str(tmp_path)).eval()
    colour = ResNet(channels=3, depth=10, width=8, weights=str(tmp_path)).eval()
    image, mask = views()
    grey.load_state_dict({"position_VD": colour.position_VD}, strict=False)  # each drew its own
    standard = (image - grey.mean_C11) / grey.std_C11
    seen = [grey(image, mask), colour(standard * colour.std_C11 + colour.mean_C11, mask)]
    assert torch.allclose(seen[0].pooled_BD, seen[1].pooled_BD, atol=1e-5)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    ResNet(channels=3, depth=10, width=8).backbone.save_pretrained(tmp_path)
    with problem("does-not-fit", place="model.encoder.weights"):
        ResNet(channels=3, depth=18, width=8, weights=str(tmp_path))
    with problem("no-such-file", place="model.encoder.weights"):
        ResNet(channels=3, depth=18, weights=str(tmp_path / "nowhere"))


def keys_of(name: str) -> dict[str, Any]:
    return {"tiny_cnn": {"width": 16}, "resnet": {"depth": 10, "width": 8, "norm": "group"}}.get(
        name, {"architecture": "convnext", "config": CONVNEXT}
    )


CLASSES = {"tiny_cnn": TinyCnn, "resnet": ResNet, "backbone": Backbone}


@pytest.mark.parametrize("fusion", ["concatenate", "attention"])
@pytest.mark.parametrize("name", CLASSES)
def test_without_positions_any_order_and_number_of_views_is_accepted(name: str, fusion: str) -> None:
    torch.manual_seed(0)
    encoder = CLASSES[name](channels=1, fusion=fusion, max_views=0, **keys_of(name)).eval()
    image, order = torch.rand(2, 6, 1, 32, 32), torch.tensor([4, 0, 5, 2, 1, 3])
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, True]])
    one, two = encoder(image, mask), encoder(image[:, order], mask[:, order])
    assert torch.allclose(one.pooled_BD, two.pooled_BD, atol=1e-5)
    if fusion == "attention":
        assert one.patches_BND.shape[1] == encoder(image[:, :1], mask[:, :1]).patches_BND.shape[1]
        assert torch.allclose(one.patches_BND, two.patches_BND, atol=1e-5) and one.patch_mask_BN.all()


def test_attention_weighs_views_at_each_position_by_a_softmax_of_their_scores() -> None:
    torch.manual_seed(0)
    encoder = TinyCnn(channels=1, width=16, fusion="attention").eval()
    image, mask = torch.rand(1, 3, 1, 32, 32), torch.tensor([[True, False, True]])
    found = encoder(image, mask)
    maps = [encoder.maps(image[:, v]).flatten(2)[0].T + encoder.position_VD[v] for v in (0, 2)]
    first, last = encoder.pooling.score[0], encoder.pooling.score[2]
    for place in range(len(maps[0])):
        scores = torch.stack([last.weight[0] @ torch.tanh(first.weight @ m[place] + first.bias) for m in maps])
        shares = scores.exp() / scores.exp().sum()
        expected = sum(share * m[place] for share, m in zip(shares, maps))
        assert torch.allclose(found.patches_BND[0, place], expected, atol=1e-5)
    assert torch.allclose(found.pooled_BD, found.patches_BND.mean(1), atol=1e-6)


def test_an_exam_without_views_has_no_patch_under_attention() -> None:
    encoder = TinyCnn(channels=1, width=16, fusion="attention")
    found = encoder(torch.rand(2, 2, 1, 32, 32), torch.tensor([[False, False], [True, True]]))
    assert not found.patch_mask_BN[0].any() and torch.isfinite(found.pooled_BD).all()


@pytest.mark.parametrize("name", ["resnet", "backbone"])
def test_frozen_stages_keep_weights_and_statistics(name: str) -> None:
    keys = {"resnet": {"depth": 10, "width": 8}, "backbone": {"architecture": "resnet", "config": RESNET}}[name]
    encoder = CLASSES[name](channels=1, frozen_stages=2, **keys).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    encoder(*views()).pooled_BD.pow(2).sum().backward()
    stages = encoder.stages()
    frozen = {id(weight) for stage in stages[:3] for weight in stage}
    for key, weight in encoder.named_parameters():
        assert (weight.grad is None) == (id(weight) in frozen), key
    moved = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    still = {key for key in before if key.endswith("running_mean")} - moved
    assert still and {key.split("stages.")[-1][0] for key in still if "stages." in key} == {"0", "1"}
    assert any("stages.2." in key for key in moved) and any("stages.3." in key for key in moved)
    with problem("out-of-range", place="model.encoder.frozen_stages"):
        CLASSES[name](channels=1, frozen_stages=5, **keys)


@pytest.mark.parametrize(
    ("encoder", "first", "last", "count"),
    [
        (lambda: ResNet(channels=1, depth=10, width=8), "backbone.embedder", "backbone.encoder.stages.3", 5),
        (lambda: Backbone(channels=1, architecture="swin", config=SWIN), "backbone.swin.embeddings", "layers.3", 5),
        (lambda: Backbone(channels=1, architecture="dinov2", config=DINOV2), "backbone.embeddings", "layer.1", 3),
        (lambda: Backbone(channels=1, architecture="dinov3_vit", config=VIT), "backbone.embeddings", "layer.1", 3),
        (lambda: TinyCnn(channels=1, width=16, fusion="attention"), "layers.0", "layers.9", 4),
    ],
)
def test_stages_are_ordered_from_the_image_to_the_features(encoder: Any, first: str, last: str, count: int) -> None:
    built = encoder()
    names = {id(weight): name for name, weight in built.named_parameters()}
    stages = [[names[id(weight)] for weight in stage] for stage in built.stages()]
    assert len(stages) == count and all(name.startswith(first) or count == 4 for name in stages[0])
    assert any(last in name for name in stages[-1]) and "position_VD" in stages[-1]
    assert not any(last in name for stage in stages[:-1] for name in stage)


def test_published_swin_weights_give_the_features_of_the_whole_model(tmp_path: Path) -> None:
    model = SwinModel.from_pretrained(save_swin(tmp_path)).eval()
    encoder = Backbone(channels=3, weights=str(tmp_path), max_views=0).eval()
    image = torch.rand(2, 1, 3, 32, 32)
    standard = (image[:, 0] - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    expected = model(standard, always_partition=True).last_hidden_state
    assert torch.allclose(encoder(image, torch.ones(2, 1, dtype=torch.bool)).patches_BND, expected, atol=1e-5)


def test_grey_images_give_the_backbone_features_of_three_equal_channels(tmp_path: Path) -> None:
    save_swin(tmp_path)
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(half))
    grey, colour = (Backbone(channels=n, weights=str(tmp_path), max_views=0).eval() for n in (1, 3))
    assert grey.mean_C11.flatten().tolist() == [0.5] and colour.std_C11.flatten().tolist() == [0.25] * 3
    image, mask = views()
    seen = grey(image, mask), colour(image.expand(-1, -1, 3, -1, -1), mask)
    assert torch.allclose(seen[0].patches_BND, seen[1].patches_BND, atol=1e-5)


def test_images_are_padded_to_whole_patches() -> None:
    encoder = Backbone(channels=1, architecture="dinov2", config=DINOV2).eval()
    image, mask = torch.rand(1, 1, 1, 50, 30), torch.ones(1, 1, dtype=torch.bool)
    found = encoder(image, mask).patches_BND
    assert found.shape[1] == 4 * 3
    assert torch.equal(found, encoder(nn.functional.pad(image, (0, 12, 0, 6)), mask).patches_BND)


@pytest.mark.parametrize("settings", [{"hidden_act": "gelu"}, {"downsample_in_first_stage": True}])
def test_a_pretrained_resnet_is_rebuilt_without_its_folder(tmp_path: Path, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    shape = {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1] * 4, "layer_type": "basic"}
    ResNetModel(ResNetConfig(**shape, **settings)).save_pretrained(tmp_path)
    keys: dict[str, Any] = {"channels": 1, "depth": 10, "width": 8}
    first = ResNet(**keys, weights=str(tmp_path)).eval()
    again = ResNet(**keys, hf_config=json.loads(json.dumps(first.hf_config))).eval()
    again.load_state_dict(first.state_dict())
    assert torch.equal(first(*views()).patches_BND, again(*views()).patches_BND)
    assert ResNet(**keys).hf_config is None, "depth and width define an encoder from scratch"


def test_a_backbone_is_rebuilt_without_its_folder(tmp_path: Path) -> None:
    first = Backbone(channels=1, weights=str(save_swin(tmp_path / "swin")), config={"drop_path_rate": 0.0}).eval()
    config = json.loads(json.dumps(first.hf_config))
    again = Backbone(channels=1, hf_config=config).eval()
    again.load_state_dict(first.state_dict())
    assert torch.equal(first(*views()).patches_BND, again(*views()).patches_BND)
    assert first.external_weights is None, "all of it is trained, so all of it is saved"


def test_lora_trains_low_rank_matrices_beside_frozen_weights(tmp_path: Path) -> None:
    encoder = Backbone(channels=1, weights=str(save_swin(tmp_path)), lora_rank=2, lora_targets=["q_proj", "v_proj"])
    learns = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert learns == {name for name in encoder.state_dict() if "lora_" in name} | {"position_VD"}
    saved = set(encoder.state_dict()) - encoder.external_weights.names
    assert saved == learns, "and nothing else is saved"
    with problem("unknown-name", place="model.encoder.lora_targets"):
        Backbone(channels=1, weights=str(tmp_path), lora_rank=2, lora_targets=["no_such"])


@pytest.mark.parametrize(
    ("keys", "code", "place"),
    [
        ({"architecture": "convnxt"}, "unknown-name", ".architecture"),
        ({"architecture": "vit"}, "unsupported", ".architecture"),
        ({"architecture": "swin", "config": {"depts": [1]}}, "unknown-key", ".config.depts"),
        ({"architecture": "swin", "config": {"depths": 3}}, "out-of-range", ".config"),
        ({"architecture": "swin", "config": {"num_channels": 3}}, "conflicting-settings", ".config.num_channels"),
        ({}, "missing-key", ""),
        ({"architecture": "swin", "weights": "x"}, "conflicting-settings", ""),
        ({"architecture": "swin", "config": SWIN, "lora_rank": 2}, "conflicting-settings", ".lora_rank"),
        ({"architecture": "swin", "config": SWIN, "lora_alpha": 9}, "ignored-setting", ""),
        ({"architecture": "dinov2", "config": {"reshape_hidden_states": False}}, "conflicting-settings", ".config"),
        ({"architecture": "hgnet_v2"}, "unsupported", ""),
        ({"architecture": "maskformer-swin", "config": SWIN, "frozen_stages": 1}, "unsupported", ""),
        ({"weights": "./nowhere"}, "no-such-file", ".weights"),
    ],
)
def test_wrong_keys_of_a_backbone_are_refused(keys: dict[str, Any], code: str, place: str) -> None:
    with problem(code, place=f"model.encoder{place}"):
        Backbone(channels=1, **keys)


def test_an_image_size_that_the_backbone_cannot_run_is_refused() -> None:
    shape = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "query_stride": [2, 2], "num_query_pool": 1}
    encoder = Backbone(channels=1, architecture="hiera", config={**shape, "image_size": [32, 32]})
    with problem("does-not-fit", place="model.encoder"):
        encoder(*views())


def test_a_feature_map_of_a_wrong_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(nn.Linear):
        def __init__(self, config: Any) -> None:
            super().__init__(1, 1)

        def forward(self, image: torch.Tensor) -> Any:
            return SimpleNamespace(feature_maps=[super().forward(image.flatten(1).mean(1, keepdim=True))[None]])

    monkeypatch.setitem(MODEL_FOR_BACKBONE_MAPPING._extra_content, SwinConfig, Flat)
    with problem("unsupported", place="model.encoder"):
        Backbone(channels=1, architecture="swin", config={**SWIN, "embed_dim": 16})


def test_folders_without_a_backbone_are_refused(tmp_path: Path) -> None:
    swin = save_swin(tmp_path / "swin")
    (swin / "model.safetensors").rename(swin / "pytorch_model.bin")
    with problem("no-such-file", place="model.encoder.weights"):
        Backbone(channels=1, weights=str(swin))
    (swin / "adapter_config.json").write_text("{}")
    with problem("wrong-format", place="model.encoder.weights"):
        Backbone(channels=1, weights=str(swin))
    save_swin(tmp_path / "other")
    state = load_file(tmp_path / "other" / "model.safetensors")
    save_file({name: state[name] for name in state if "layers.2" not in name}, tmp_path / "other" / "model.safetensors")
    with problem("does-not-fit", place="model.encoder.weights"):
        Backbone(channels=1, weights=str(tmp_path / "other"))
    (tmp_path / "other" / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0]}')
    with problem("out-of-range", place="preprocessor_config.json"):
        Backbone(channels=1, weights=str(tmp_path / "other"))
    with problem("wrong-format", place="model.encoder.weights"):
        (tmp_path / "empty").mkdir()
        Backbone(channels=1, weights=str(tmp_path / "empty"))
