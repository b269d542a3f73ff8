"""The encoder `efficientnet_lite`: its network, its weights, and what stays frozen."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import ROOT, problem
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from framework.build import build_model, build_tokenizer
from framework.recipe import load_recipe
from framework.runtime.files import digest
from plugins.encoder import efficientnet_lite
from plugins.encoder.efficientnet_lite import VARIANTS, EfficientNetLite, Network

WEIGHTS = "model.encoder.weights"
SMOKE = ROOT / "recipes" / "smoke.yaml"
HALVING = {0: (1, 3, 5, 11), 1: (1, 4, 7, 15), 2: (1, 4, 7, 15)}  # blocks of stride 2
NORMS = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
needs_package = pytest.mark.skipif(
    any(importlib.util.find_spec(variant.package) is None for variant in VARIANTS.values()),
    reason="pip install 'sonoscribe[pretrained]'",
)


def views(channels: int = 1, size: int = 64) -> tuple[Tensor, Tensor]:
    image = torch.rand(3, 2, channels, size, size, generator=torch.Generator().manual_seed(0))
    return image, torch.tensor([[True, True], [True, False], [True, True]])


def random_state(variant: int = 0) -> dict[str, Tensor]:
    """A state dict as published, with random weights, and the statistics of random images."""
    torch.manual_seed(1)
    network = Network(VARIANTS[variant], 3)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    with torch.no_grad():
        network(torch.rand(8, 3, 64, 64) * 2 - 1)
    width = VARIANTS[variant].widths[-1]
    head = {"_conv_head.weight": torch.rand(1280, width, 1, 1), "_fc.weight": torch.rand(10, 1280)}
    return network.state_dict() | head | {"_bn1.weight": torch.ones(1280), "_fc.bias": torch.zeros(10)}


def saved(state: Any, folder: Path) -> str:
    torch.save(state, folder / "weights.pth")
    return str(folder / "weights.pth")


def reference(state: dict[str, Tensor], image_MCHW: Tensor, halving: tuple[int, ...]) -> Tensor:
    """The map of the last stage by the names of a state dict alone, padded as TensorFlow does.

    Args:
        halving: numbers of the blocks with stride 2.
    """

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        pads: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0)
            pads += [total // 2, total - total // 2]
        groups = weight.shape[0] if "_depthwise_" in name else 1
        return norm(F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups), NORMS[name.split(".")[-1]], name)

    def norm(x: Tensor, norm: str, name: str) -> Tensor:
        name = ".".join([*name.split(".")[:-1], norm])
        mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-3).sqrt() * weight[:, None, None] + bias[
            :, None, None
        ]

    x = F.relu6(conv((image_MCHW * 255 - 127) / 128, "_conv_stem", stride=2))
    for number in range(sum(name.endswith("_project_conv.weight") for name in state)):
        block, inner = f"_blocks.{number}", x
        if f"{block}._expand_conv.weight" in state:
            inner = F.relu6(conv(x, f"{block}._expand_conv"))
        inner = F.relu6(conv(inner, f"{block}._depthwise_conv", 2 if number in halving else 1))
        inner = conv(inner, f"{block}._project_conv")
        x = x + inner if inner.shape == x.shape else inner
    return x


def classify(state: dict[str, Tensor], map_MDhw: Tensor) -> Tensor:
    """Probabilities of the classes of ImageNet."""
    x = F.conv2d(map_MDhw, state["_conv_head.weight"])
    x = F.batch_norm(x, *(state[f"_bn1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")), eps=1e-3)
    return F.linear(F.relu6(x).mean((2, 3)), state["_fc.weight"], state["_fc.bias"]).softmax(-1)


@pytest.mark.parametrize("size", [(64, 64), (65, 65), (70, 99)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_features_equal_a_network_written_from_the_names_of_its_weights(
    variant: int, size: tuple[int, int], tmp_path: Path
) -> None:
    state = {name: value.double() for name, value in random_state(variant).items()}  # random weights enlarge rounding
    encoder = EfficientNetLite(channels=3, variant=variant, weights=saved(state, tmp_path), max_views=0).eval().double()
    image = torch.rand(2, 1, 3, *size, dtype=torch.float64)
    expected = reference(state, image[:, 0], HALVING[variant]).flatten(2).transpose(1, 2)
    found = encoder(image, torch.ones(2, 1, dtype=torch.bool))
    assert found.patches_BND.shape[-1] == encoder.width == VARIANTS[variant].widths[-1]
    assert torch.allclose(found.patches_BND, expected, atol=1e-9)
    assert torch.allclose(found.pooled_BD, expected.mean(1), atol=1e-9)


@needs_package
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_packages_hold_the_published_weights(variant: int) -> None:
    """A canary: the hash is checked on loading, and the weights recognize the palace in a photograph."""
    encoder = EfficientNetLite(channels=3, variant=variant, weights="imagenet", max_views=0).eval()
    photo = load_sample_image("china.jpg")[:, 106:533]
    small = np.asarray(Image.fromarray(photo).resize((224, 224), Image.Resampling.BICUBIC))
    image = torch.from_numpy(small.copy()).permute(2, 0, 1)[None] / 255
    state = torch.load(efficientnet_lite._weights_file("imagenet", VARIANTS[variant]), weights_only=True)
    with torch.no_grad():
        patches = encoder(image[:, None], torch.ones(1, 1, dtype=torch.bool)).patches_BND
        expected = reference(state, image, HALVING[variant])
        assert torch.allclose(patches, expected.flatten(2).transpose(1, 2), atol=1e-3)
        best = classify(state, expected)[0].max(0)
    assert best.indices == 698 and best.values > 0.25  # palace


@pytest.mark.parametrize("stages", [3, 4, 5, 6, 7])
def test_the_last_of_fewer_stages_gives_the_patches(stages: int, tmp_path: Path) -> None:
    path = saved(random_state(), tmp_path)
    whole, part = (EfficientNetLite(channels=1, weights=path, max_views=0, stages=n).eval() for n in (7, stages))
    seen: list[Tensor] = []
    last = sum(VARIANTS[0].depths[:stages]) - 1
    whole.backbone._blocks[last].register_forward_hook(lambda module, given, found: seen.append(found))
    image, mask = views()
    whole(image, mask), part(image, mask)
    found = part(image[:1], mask[:1]).patches_BND
    assert torch.allclose(found[0, : found.shape[1] // 2], seen[0][0].flatten(1).T, atol=1e-5)
    assert found.shape == (1, 2 * (64 // {3: 8, 4: 16, 5: 16, 6: 32, 7: 32}[stages]) ** 2, part.width)
    assert len(part.stages()) == 1 + stages and part.width == VARIANTS[0].widths[stages - 1]


def test_grey_images_give_the_features_of_three_equal_channels(tmp_path: Path) -> None:
    path = saved(random_state(), tmp_path)
    grey, colour = (EfficientNetLite(channels=n, weights=path, max_views=0).eval() for n in (1, 3))
    image, mask = views()
    seen = grey(image, mask), colour(image.expand(-1, -1, 3, -1, -1), mask)
    assert torch.allclose(seen[0].patches_BND, seen[1].patches_BND, atol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_frozen_stages_keep_weights_and_statistics(norm: Any) -> None:
    encoder = EfficientNetLite(channels=1, norm=norm, frozen_stages=5).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder(*views()).pooled_BD.pow(2).sum().backward()
    stem_and_stages = encoder.stages()
    names = {id(weight): name for name, weight in encoder.named_parameters()}
    assert sorted(names[id(weight)] for stage in stem_and_stages for weight in stage) == sorted(names.values())
    assert names[id(stem_and_stages[0][0])] == "backbone._conv_stem.weight" and len(stem_and_stages) == 8
    assert {name.split(".")[2] for name in (names[id(weight)] for weight in stem_and_stages[2])} == {"1", "2"}
    assert names[id(stem_and_stages[-1][-1])] == "position_VD"
    for number, stage in enumerate(stem_and_stages):
        assert all((weight.grad is None) == (number <= 5) for weight in stage), number
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    trained_blocks = range(11, 16)  # of stages 6 and 7
    assert {int(name.split(".")[2]) for name in moved} == (set(trained_blocks) if norm == "batch" else set())


def test_frozen_statistics_make_exams_independent_in_training(tmp_path: Path) -> None:
    encoder = EfficientNetLite(channels=1, weights=saved(random_state(), tmp_path), norm="frozen").train()
    image, mask = views()
    together, alone = encoder(image, mask).pooled_BD[:1], encoder(image[:1], mask[:1]).pooled_BD
    assert torch.allclose(together, alone, atol=1e-4)
    by_batch = EfficientNetLite(channels=1, weights=saved(random_state(), tmp_path)).train()
    assert not torch.allclose(by_batch(image, mask).pooled_BD[:1], by_batch(image[:1], mask[:1]).pooled_BD, atol=1e-2)


def test_more_frozen_stages_than_stages_are_refused() -> None:
    with problem("out-of-range", place="model.encoder.frozen_stages"):
        EfficientNetLite(channels=1, stages=5, frozen_stages=6)


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in random_state().items() if key != name}


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (lambda: random_state(1), "does-not-fit"),
        (lambda: without("_blocks.15._bn2.bias"), "does-not-fit"),
        (lambda: {**random_state(), "_blocks.0._expand_conv.weight": torch.ones(1)}, "does-not-fit"),
        (lambda: {**random_state(), "_conv_stem.weight": torch.tensor(0.0)}, "does-not-fit"),
        (lambda: {**random_state(), 7: torch.tensor(0.0)}, "does-not-fit"),
        (lambda: {**random_state(), "_bn0.weight": torch.ones(32).to_sparse()}, "wrong-format"),
        (lambda: {**random_state(), "_bn0.weight": torch.ones(32, device="meta")}, "wrong-format"),
        (lambda: {"state_dict": random_state()}, "wrong-format"),
        (lambda: nn.Linear(1, 1), "wrong-format"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_files_with_other_weights_are_refused(state: Any, code: str, channels: int, tmp_path: Path) -> None:
    with problem(code, place=WEIGHTS):
        EfficientNetLite(channels=channels, stages=3, weights=saved(state(), tmp_path))


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with problem("no-such-file", place=WEIGHTS):
        EfficientNetLite(channels=1, weights=str(tmp_path / "nowhere.pth"))
    with problem("no-such-file", place=WEIGHTS):
        EfficientNetLite(channels=1, weights=str(tmp_path))
    path = Path(saved(random_state(), tmp_path))
    for content in (b"", b"no weights", path.read_bytes()[:100_000]):
        path.write_bytes(content)
        with problem("wrong-format", place=WEIGHTS):
            EfficientNetLite(channels=1, weights=str(path))


def test_a_missing_package_or_another_file_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = replace(VARIANTS[0], package="efficientnet_stand_in")
    monkeypatch.setitem(VARIANTS, 0, variant)
    monkeypatch.syspath_prepend(tmp_path)
    with problem("missing-package", place=WEIGHTS) as found:
        EfficientNetLite(channels=1, weights="imagenet")
    assert "'sonoscribe[pretrained]'" in found[0].hint
    file = tmp_path / variant.package / variant.file
    file.parent.mkdir(parents=True)
    (tmp_path / variant.package / "__init__.py").write_text("raise SystemExit")
    importlib.invalidate_caches()
    with problem("damaged-file", place=WEIGHTS):
        EfficientNetLite(channels=1, weights="imagenet")
    torch.save(random_state(), file)
    with problem("damaged-file", place=WEIGHTS):
        EfficientNetLite(channels=1, weights="imagenet")
    monkeypatch.setitem(VARIANTS, 0, replace(variant, sha256=digest(file)))
    EfficientNetLite(channels=1, weights="imagenet")  # without importing the package


def test_a_trained_model_is_rebuilt_without_its_weights(tmp_path: Path) -> None:
    gone = tmp_path / "gone.pth"
    keys = f"{{_delete_: true, name: efficientnet_lite, weights: {gone}, norm: frozen, stages: 6, frozen_stages: 6}}"
    recipe = load_recipe(SMOKE, [f"model.encoder={keys}"])
    tokenizer = build_tokenizer(recipe, ["One lesion."], None)
    encoder, _ = build_model(recipe, tokenizer, trained=True, model=tmp_path)
    saved(random_state(), tmp_path)
    new = EfficientNetLite(channels=1, weights=str(tmp_path / "weights.pth"), norm="frozen", stages=6, frozen_stages=6)
    encoder.load_state_dict(new.state_dict())
    assert torch.equal(encoder.eval()(*views()).patches_BND, new.eval()(*views()).patches_BND)
    assert not hasattr(new, "external_weights"), "a saved model has all weights"
    with problem("no-such-file", place=WEIGHTS):
        build_model(recipe, tokenizer, trained=False)
