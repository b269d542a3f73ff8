"""Every shipped plugin keeps the contract of its kind, built small."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_ins
from mini_busbra import draw, ellipse
from mini_ddti import write_archive
from PIL import Image
from tiny_bert import save_tiny_bert
from tiny_models import BERT, CONVNEXT, DINOV2, GPT2, VIT, of_bytes, of_words, save_llama

from framework.data.shard_writing import write_shards
from framework.registry import PLUGINS, catalogue, load
from framework.testing import check
from framework.testing.tokenizer import REPORTS
from plugins.dataset.manifest import Manifest

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


def tabled(folder: Path) -> dict[str, Any]:
    """Keys of `table`: the exams of `listed`."""
    splits = json.loads(Path(listed(folder)["file"]).read_text(encoding="utf-8"))
    rows = [f"{exam['image_path'][0]},{exam['finding']},{s}" for s, exams in splits.items() for exam in exams]
    (folder / "exams.csv").write_text("\n".join(["image,report,split", *rows]), encoding="utf-8")
    return {"file": str(folder / "exams.csv"), "columns": {"image": "image", "report": "report", "split": "split"}}


def as_folder(folder: Path) -> dict[str, Any]:
    """Keys of `hf`: the exams of `listed` as a folder of images."""
    splits = json.loads(Path(listed(folder)["file"]).read_text(encoding="utf-8"))
    for split, exams in splits.items():
        (folder / "exams" / split).mkdir(parents=True)
        for exam in exams:
            shutil.copy(folder / exam["image_path"][0], folder / "exams" / split)
        rows = ["file_name,report", *(f"{exam['image_path'][0]},{exam['finding']}" for exam in exams)]
        (folder / "exams" / split / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    return {"source": str(folder / "exams"), "columns": {"image": "image", "report": "report"}}


def sharded(folder: Path) -> dict[str, Any]:
    """Keys of `webdataset`: the exams of `listed`."""
    write_shards(Manifest(**listed(folder)), folder / "shards", processes=1)
    return {"shards": str(folder / "shards")}


def archive(folder: Path) -> dict[str, Any]:
    """Keys of `busbra`: three patients."""
    flat, tall = ellipse(40, 80), ellipse(80, 40)
    rows = [("0001-l", 2, 1, "NaN", flat), ("0002-l", 2, 2, "0", flat), ("0002-r", 3, 2, "1", tall)]
    root = draw(folder / "BUSBRA", [*rows, ("0003-s", 4, 3, "1", tall)])
    return {"root": str(root), "cache": str(folder / "cache")}


def thyroids(folder: Path) -> dict[str, Any]:
    """Keys of `ddti`: six patients."""
    return {"root": str(write_archive(folder / "DDTI", 6)), "folds": 3}


def reading(folder: Path) -> dict[str, Any]:
    """Keys of a loss with a sentence encoder of its own."""
    return {"space": "sentence_encoder", "encoder": str(save_tiny_bert(folder / "encoder"))}


def bert(folder: Path) -> dict[str, Any]:
    """Keys of `bertscore` with a small model."""
    return {"weights": str(save_tiny_bert(folder / "model")), "layer": 1}


def meteor(folder: Path) -> dict[str, Any]:
    """Keys of `meteor`, where its program can run."""
    if shutil.which("java") is None:
        pytest.skip("no Java here")
    return {}


def with_ratescore(folder: Path) -> dict[str, Any]:
    """Keys of `ratescore`, with a stand-in for its package."""
    stand_ins.put_in_place("RaTEScore", stand_ins.RaTEScore)
    model = str(save_tiny_bert(folder / "model"))
    return {"recognizer": model, "synonyms": model}


def with_radeval(folder: Path) -> dict[str, Any]:
    """Keys of `radeval`, with a stand-in for its package."""
    stand_ins.put_in_place("radeval", stand_ins.RadEval)
    return {}


def adapted(folder: Path) -> dict[str, Any]:
    """Keys of `hf_causal`: a model that knows the contract's words, adapted by LoRA."""
    return {"weights": str(save_llama(folder, of_words())), "tuning": "lora", "lora_rank": 2, "prompt": "The left"}


def subwords(folder: Path) -> dict[str, Any]:
    """Keys of `hf`: subwords of the contract's reports."""
    return {"weights": str(save_llama(folder, of_bytes(REPORTS)))}


# Keys of small plugins, or functions that make the keys from an empty folder; several if keys change the parameters.
SMALL: dict[tuple[str, str], list[dict[str, Any] | Callable[[Path], dict[str, Any]]]] = {
    ("augment", "crop"): [{}, {"share": 0.5, "flip": 0.5}],
    ("augment", "jitter"): [{}, {"flip": 0.5, "degrees": 90.0, "gain": 1.0, "contrast": 1.0}],
    ("augment", "ultrasound"): [{}, {"flip": 0.5, "speckle": 1.0, "shadow": 1.0, "degrees": 45.0, "gain": 30.0}],
    ("dataset", "busbra"): [archive],
    ("dataset", "ddti"): [thyroids],
    ("dataset", "hf"): [as_folder],
    ("dataset", "manifest"): [listed],
    ("dataset", "phantom"): [{"exams": 3, "val_exams": 2, "test_exams": 2, "size": 48}],
    ("dataset", "table"): [tabled],
    ("dataset", "webdataset"): [sharded],
    ("decoder", "cross_modal_memory"): [
        {"layers": 2, "encoder_layers": 1, "width": 16, "heads": 4, "feedforward": 24, "slots": 20, "top_k": 5},
        {"layers": 1, "encoder_layers": 0, "width": 16, "heads": 2, "feedforward": 24, "slots": 6, "top_k": 6},
    ],
    ("decoder", "hf_causal"): [
        {"architecture": "gpt2", "config": GPT2, "queries": 2},
        {"architecture": "bert", "config": BERT},  # bidirectional by default
        adapted,
    ],
    ("decoder", "lstm_attention"): [{"width": 12, "word_width": 8, "attention_width": 10}],
    ("decoder", "relational_memory"): [
        {"layers": 2, "encoder_layers": 1, "width": 16, "heads": 4, "feedforward": 24, "memory_heads": 2},
        {"layers": 1, "encoder_layers": 0, "width": 8, "heads": 2, "feedforward": 24, "memory_heads": 1, "slots": 9},
    ],
    ("decoder", "transformer"): [
        {"layers": 2, "encoder_layers": 1, "width": 16, "heads": 4, "feedforward": 24},
        {"layers": 1, "encoder_layers": 0, "width": 16, "heads": 2, "feedforward": 24},
    ],
    ("distiller", "faiss_kmeans"): [
        {"topics": 4, "restarts": 1},
        {"topics": "auto", "auto_range": [2, 6], "restarts": 1, "spherical": True, "embedding": "tfidf"},
    ],
    ("distiller", "lda"): [{"topics": 4, "restarts": 1, "passes": 2}],
    ("distiller", "nmf"): [{"topics": 4}],
    ("distiller", "umap_hdbscan"): [{"min_cluster_size": 5}],
    ("distiller", "umap_kmeans"): [{"topics": 4, "restarts": 1}],
    ("encoder", "backbone"): [
        {"architecture": "convnext", "config": CONVNEXT, "fusion": "attention", "max_views": 0},
        {"architecture": "dinov2", "config": DINOV2, "frozen_stages": 1},
        {"architecture": "dinov3_vit", "config": VIT},
        {"architecture": "vitdet", "config": VIT},
    ],
    ("encoder", "efficientnet_lite"): [
        {"frozen_stages": 2},
        {"variant": 2, "norm": "frozen", "stages": 5, "fusion": "attention", "max_views": 0},
    ],
    ("encoder", "resnet"): [
        {"depth": 10, "width": 8},
        {"depth": 10, "width": 8, "norm": "group"},
        {"depth": 50, "width": 4},
    ],
    ("encoder", "tiny_cnn"): [{"width": 16}, {"width": 16, "fusion": "attention", "max_views": 0}],
    ("executor", "local"): [{}],
    ("executor", "ray"): [{}],
    ("executor", "slurm"): [{"cluster": "local"}],
    ("loss", "contrastive"): [{"width": 8}, {"width": 8, "mask_same": False}],
    ("loss", "findings"): [
        {"min_count": 1},
        {"min_count": 1, "balance": 0.0},
        {"min_count": 2, "balance": 1.0, "pooling": "queries"},
    ],
    ("loss", "global_semantic"): [{}, reading, {"own_words": 0.5}, {"temperature": 0.1}],
    ("loss", "next_token"): [{}, {"label_smoothing": 0.1}],
    ("loss", "report_vector"): [{}, {"dimensions": 3, "hidden": 8}, reading],
    ("loss", "self_critical"): [{}, {"reward": {"bleu_4": 1.0, "rouge_l": 0.5}}],
    ("loss", "topic"): [{"dropout": 0.5}, {"target": "soft"}, {"focal": 2.0}, {"target": "soft", "focal": 0.5}],
    ("loss", "vicreg"): [{"width": 8}, {"width": 8, "variance": 0.0, "covariance": 0.0}],
    ("metric", "agreement"): [{"attributes": ["lesion", "shape", "margin"]}],
    ("metric", "bleu"): [{}],
    ("metric", "bertscore"): [bert],
    ("metric", "category"): [{"attribute": "pathology", "positive": "malignant"}],
    ("metric", "chrf"): [{}, {"words": 2}],
    ("metric", "cider"): [{}],
    ("metric", "distinct"): [{}],
    ("metric", "findings_f1"): [{}],
    ("metric", "length"): [{}],
    ("metric", "meteor"): [meteor],
    ("metric", "radeval"): [with_radeval],
    ("metric", "ratescore"): [with_ratescore],
    ("metric", "repetition"): [{}],
    ("metric", "rouge_l"): [{}],
    ("optimizer", "adam"): [{"weight_decay": 0.1, "amsgrad": True}],
    ("optimizer", "adamw"): [{"weight_decay": 0.1, "amsgrad": True}],
    ("schedule", "cosine"): [{}, {"warmup": 1.0}, {"warmup": 0.0, "floor": 0.1}],
    ("schedule", "step"): [{}, {"every": 0.0}],
    ("tokenizer", "hf"): [subwords],
    ("tokenizer", "words"): [{}, {"lowercase": False, "min_count": 2}],
}
# Starting a cluster takes 15 s, and minutes on a busy machine; reading a table of paraphrases takes 10 s.
LONG = {("distiller", "umap_hdbscan"), ("distiller", "umap_kmeans"), ("executor", "ray"), ("metric", "meteor")}
CASES = [
    pytest.param(kind, name, keys, marks=[pytest.mark.long] if (kind, name) in LONG else [], id=f"{kind}/{name}")
    for (kind, name), each in SMALL.items()
    for keys in each
]


def test_every_shipped_plugin_is_checked() -> None:
    assert sorted(SMALL) == SHIPPED, "a shipped plugin needs a row in SMALL"


@pytest.mark.parametrize("kind, name, keys", CASES)
def test_a_plugin_meets_the_contract_of_its_kind(kind: str, name: str, keys: Any, tmp_path: Path) -> None:
    settings = {"patience_s": 300.0} if kind == "executor" and (kind, name) in LONG else {}
    make = partial(load(catalogue()[kind, name]), **(keys if isinstance(keys, dict) else keys(tmp_path)))
    check(kind, make, **settings)


def test_chinese_reports_meet_the_contract() -> None:
    reports = ["左乳见低回声结节，大小约_2DS_，边界清，BI-RADS 3类。", "右乳腺体回声均匀，未见明显占位。"]
    check("tokenizer", load(catalogue()["tokenizer", "words"]), reports=reports)
