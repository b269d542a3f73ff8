"""Every shipped plugin keeps the contract of its kind, built small."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mini_busbra import draw, ellipse
from PIL import Image

from framework.registry import PLUGINS, catalogue, load
from framework.testing import check

SHIPPED = sorted(key for key, plugin in catalogue().items() if PLUGINS in plugin.path.parents)


def listed(folder: Path) -> dict[str, Any]:
    """Keys of `manifest`: six exams in a folder."""
    draw_from = np.random.default_rng(0)
    found: dict[str, list[dict[str, Any]]] = {}
    for place, split in enumerate(("train", "val", "test")):
        found[split] = []
        for number in (2 * place, 2 * place + 1):
            Image.fromarray(draw_from.integers(0, 255, (12, 16), dtype=np.uint8)).save(folder / f"{number}.png")
            found[split].append({"uid": number, "finding": f"Report {number}.", "image_path": [f"{number}.png"]})
    (folder / "exams.json").write_text(json.dumps(found), encoding="utf-8")
    return {"file": str(folder / "exams.json"), "images": str(folder)}


def archive(folder: Path) -> dict[str, Any]:
    """Keys of `busbra`: three patients."""
    flat, tall = ellipse(40, 80), ellipse(80, 40)
    rows = [("0001-l", 2, 1, "NaN", flat), ("0002-l", 2, 2, "0", flat), ("0002-r", 3, 2, "1", tall)]
    root = draw(folder / "BUSBRA", [*rows, ("0003-s", 4, 3, "1", tall)])
    return {"root": str(root), "cache": str(folder / "cache")}


# The keys that make a plugin small, or what makes the keys from an empty folder; several where keys change its parts.
SMALL: dict[tuple[str, str], list[dict[str, Any] | Callable[[Path], dict[str, Any]]]] = {
    ("augment", "jitter"): [{}, {"flip": 0.5, "degrees": 90.0, "gain": 1.0, "contrast": 1.0}],
    ("dataset", "busbra"): [archive],
    ("dataset", "manifest"): [listed],
    ("dataset", "phantom"): [{"exams": 3, "val_exams": 2, "test_exams": 2, "size": 48}],
    ("decoder", "transformer"): [
        {"layers": 2, "encoder_layers": 1, "width": 16, "heads": 4, "feedforward": 24},
        {"layers": 1, "encoder_layers": 0, "width": 16, "heads": 2, "feedforward": 24},
    ],
    ("distiller", "faiss_kmeans"): [{"topics": 4, "restarts": 1}],
    ("distiller", "lda"): [{"topics": 4, "restarts": 1, "passes": 2}],
    ("encoder", "resnet"): [
        {"depth": 10, "width": 8},
        {"depth": 10, "width": 8, "norm": "group"},
        {"depth": 50, "width": 4},
    ],
    ("encoder", "tiny_cnn"): [{"width": 16}],
    ("executor", "local"): [{}],
    ("executor", "ray"): [{}],
    ("executor", "slurm"): [{"cluster": "local"}],
    ("loss", "global_semantic"): [{}],
    ("loss", "next_token"): [{}, {"label_smoothing": 0.1}],
    ("loss", "topic"): [{"dropout": 0.5}],
    ("metric", "bleu"): [{}],
    ("metric", "cider"): [{}],
    ("metric", "findings_f1"): [{}],
    ("metric", "rouge_l"): [{}],
    ("optimizer", "adamw"): [{"weight_decay": 0.1, "amsgrad": True}],
    ("schedule", "cosine"): [{}, {"warmup": 1.0}, {"warmup": 0.0, "floor": 0.1}],
    ("schedule", "step"): [{}, {"every": 0.0}],
    ("tokenizer", "words"): [{}, {"lowercase": False, "min_count": 2}],
}
LONG = {("executor", "ray")}  # a cluster of its own takes a quarter of a minute, and minutes on a busy machine
CASES = [
    pytest.param(kind, name, keys, marks=[pytest.mark.long] if (kind, name) in LONG else [], id=f"{kind}/{name}")
    for (kind, name), each in SMALL.items()
    for keys in each
]


def test_every_shipped_plugin_is_checked() -> None:
    assert sorted(SMALL) == SHIPPED, "a shipped plugin needs a row in SMALL"


@pytest.mark.parametrize("kind, name, keys", CASES)
def test_it_keeps_the_contract_of_its_kind(kind: str, name: str, keys: Any, tmp_path: Path) -> None:
    settings = {"patience_s": 300.0} if (kind, name) in LONG else {}
    make = partial(load(catalogue()[kind, name]), **(keys if isinstance(keys, dict) else keys(tmp_path)))
    check(kind, make, **settings)


def test_reports_of_the_chinese_tokenizer_keep_the_contract_too() -> None:
    reports = ["左乳见低回声结节，大小约_2DS_，边界清，BI-RADS 3类。", "右乳腺体回声均匀，未见明显占位。"]
    check("tokenizer", load(catalogue()["tokenizer", "words"]), reports=reports)
