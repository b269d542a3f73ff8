"""Feature maps of a frozen encoder: computed once, equal to those of each step, and refused where they would change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from grey_exams import exam, make_cache
from harness import ROOT, launch, problem, records
from torch import Tensor

from framework.build import RunComponents, build_components
from framework.data.loading import collate
from framework.data.map_cache import build_map_cache
from framework.distributed.launch import start_accelerator
from framework.recipe import RecipeError, load_recipe
from plugins.encoder.tiny_cnn import TinyCnn

FEW = (
    *("data.dataset.exams=16", "data.dataset.val_exams=2", "data.dataset.test_exams=2"),
    *("distiller=none", "losses.topic=null"),
)
FROZEN = ("train.freeze=[encoder.layers]", "data.cache_features=true")


def built(folder: Path, *keys: str) -> RunComponents:
    words = [*FEW, f"data.cache_dir={folder}", *keys]
    recipe = load_recipe(ROOT / "recipes" / "smoke.yaml", words)
    return build_components(recipe, start_accelerator(recipe), run=None)


def test_a_run_from_cached_features_equals_one_from_images(tmp_path: Path) -> None:
    runs = []
    for cached in ("false", "true"):
        words = [*FEW, "train.freeze=[encoder.layers]", f"data.cache_features={cached}", "train.epochs=2"]
        launch(str(ROOT / "recipes" / "smoke.yaml"), *words, f"run.root={cached}", cwd=tmp_path)
        (run,) = (tmp_path / cached / "smoke").iterdir()
        runs.append(run)
    losses = [records(run, "train/loss") for run in runs]
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-5)
    reports = [(run / "predictions" / "test.jsonl").read_text() for run in runs]
    assert reports[0] == reports[1]


def test_the_stages_after_the_frozen_ones_train_from_cached_maps(tmp_path: Path) -> None:
    """Of efficientnet_lite, whose `maps` end after the frozen stages."""
    parts = "{_delete_: true, name: efficientnet_lite, norm: frozen, stages: 4, frozen_stages: 3}"
    outputs = []
    for cached in ("false", "true"):
        components = built(tmp_path, f"model.encoder={parts}", f"data.cache_features={cached}")
        batch = collate([components.exams["train"][number] for number in range(3)]).to("cpu")
        features = components.task.train().features(batch)
        features.pooled_BD.sum().backward()
        last = components.task.encoder.backbone._blocks[-1]._project_conv.weight
        outputs.append((batch.image_BVCHW.shape[2], features.pooled_BD.detach(), last.grad))
    (channels, plain, gradient), (width, cached_maps, cached_gradient) = outputs
    assert (channels, width) == (1, 40)
    assert torch.allclose(plain, cached_maps, atol=1e-5) and torch.allclose(gradient, cached_gradient, atol=1e-5)


def test_maps_are_computed_once_for_the_same_weights_whatever_trains_after_them(tmp_path: Path) -> None:
    first = built(tmp_path, *FROZEN)
    (path,) = (tmp_path / "maps").glob("*.npy")
    before = path.stat().st_mtime_ns
    second = built(tmp_path, *FROZEN, "model.decoder.width=32")
    assert path.stat().st_mtime_ns == before and len(list((tmp_path / "maps").glob("*.npy"))) == 1
    sample = first.exams["train"][0]
    assert sample.image_VCHW.shape[1:] == (64, 2, 2)
    assert torch.equal(torch.tensor(sample.image_VCHW), torch.tensor(second.exams["train"][0].image_VCHW))
    built(tmp_path, *FROZEN, "train.seed=1")  # other random weights
    assert len(list((tmp_path / "maps").glob("*.npy"))) == 2


def test_damaged_maps_are_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, _ = make_cache([exam(1, 51), exam(2, 102, 204)], tmp_path)
    calls = []

    def maps(image_MCHW: Tensor) -> Tensor:
        calls.append(len(image_MCHW))
        return image_MCHW.mean((2, 3), keepdim=True)

    def make() -> Path:
        cache = build_map_cache(images, maps, key="k", folder=tmp_path, device=torch.device("cpu"))
        assert cache.images("e2").flatten().tolist() == pytest.approx([0.4, 0.8])
        return cache.path

    path = make()
    once = len(calls)
    assert make() == path and len(calls) == once
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    make()
    assert len(calls) == 2 * once and "damaged" in capsys.readouterr().out
    assert not list(path.parent.glob("*.part"))


def test_an_encoder_that_trains_is_refused(tmp_path: Path) -> None:
    with problem("conflicting-settings", "data.cache_features"):
        built(tmp_path, "data.cache_features=true")
    with problem("conflicting-settings", "data.cache_features"):
        built(tmp_path, "data.cache_features=true", "train.freeze=[encoder.layers.0]")


@pytest.mark.parametrize("key", ["data.augment={name: crop}", "init_from=runs/other"])
def test_what_would_change_the_maps_is_refused_with_the_key(key: str) -> None:
    with problem("conflicting-settings", "data.cache_features", RecipeError):
        load_recipe(ROOT / "recipes" / "smoke.yaml", [*FROZEN, key])


def test_an_encoder_without_maps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TinyCnn, "maps")
    with problem("unsupported", "data.cache_features"):
        built(tmp_path, *FROZEN)
