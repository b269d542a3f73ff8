"""Programs of a model: they compute what the model computes, and what cannot be exported is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from harness import ROOT, problem
from tiny_models import CONVNEXT
from typer.testing import CliRunner

from framework import cli
from framework.build import build_dataset, build_task, build_tokenizer, load_exams
from framework.checkpoint.export import MANIFEST, ModelTexts, damaged_files, write_model
from framework.deploy.program_files import ABOUT, TOLERANCE, export_model
from framework.evaluation.predict import Predictor
from framework.models.generation import NEVER, generate
from framework.recipe import load_recipe, portable

SMALL = ["data.dataset.exams=16", "data.dataset.val_exams=2", "data.dataset.test_exams=2", "distiller.topics=2"]
LAYERS = "layers: 1, encoder_layers: 1, width: 32, heads: 4, feedforward: 32"
DECODERS = {
    "transformer": f"{{_delete_: true, name: transformer, {LAYERS}}}",
    "lstm_attention": "{_delete_: true, name: lstm_attention, width: 32, word_width: 32, attention_width: 16}",
    "relational_memory": f"{{_delete_: true, name: relational_memory, {LAYERS}, slots: 2, memory_heads: 2}}",
    "cross_modal_memory": f"{{_delete_: true, name: cross_modal_memory, {LAYERS}, slots: 16, top_k: 4}}",
}
ENCODERS = {
    "tiny_cnn": "{_delete_: true, name: tiny_cnn, width: 32}",
    "one map for all views": "{_delete_: true, name: tiny_cnn, width: 32, fusion: attention, max_views: 0}",
    "one view": "{_delete_: true, name: tiny_cnn, width: 32, max_views: 1}",
    "resnet": "{_delete_: true, name: resnet, depth: 10, width: 8}",
    "efficientnet_lite": "{_delete_: true, name: efficientnet_lite, stages: 4}",
    "convnext": f"{{_delete_: true, name: backbone, architecture: convnext, config: {json.dumps(CONVNEXT)}}}",
}


def write(folder: Path, *overrides: str) -> Path:
    """The folder of a run that has only a model, with random weights whose reports depend on the images."""
    recipe = load_recipe("smoke", [*SMALL, f"data.cache_dir={folder / 'cache'}", *overrides])
    tokenizer = build_tokenizer(recipe, [exam.report for exam in load_exams(build_dataset(recipe))["train"]], None)
    task = build_task(recipe, tokenizer, None, None, trained=True)
    weights = {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in task.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        if name.endswith("running_var"):
            weight.uniform_(0.5, 1.5, generator=generator)
        elif weight.is_floating_point():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    write_model(folder / "model", weights, ModelTexts(tokenizer, portable(recipe)))
    return folder


def exams(views: Sequence[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [B, V, 1, H, W] and mask of exams with these numbers of views."""
    images = np.random.default_rng(3).integers(0, 255, (len(views), max(views), 1, size, size), dtype=np.uint8)
    return images, np.arange(max(views)) < np.array(views)[:, None]


class OnnxPrograms:
    def __init__(self, folder: Path) -> None:
        self.about = json.loads((folder / ABOUT).read_text())
        self.sessions = {
            name: onnxruntime.InferenceSession(folder / own["file"]) for name, own in self.about["programs"].items()
        }

    def run(self, name: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        own = self.about["programs"][name]
        found = self.sessions[name].run(None, {each["name"]: values[each["name"]] for each in own["inputs"]})
        return {each["replaces"] or each["name"]: array for each, array in zip(own["outputs"], found, strict=True)}


class TorchPrograms(OnnxPrograms):
    def __init__(self, folder: Path) -> None:
        self.about = json.loads((folder / ABOUT).read_text())
        files = {name: own["file"] for name, own in self.about["programs"].items()}
        self.modules = {name: torch.export.load(folder / file).module() for name, file in files.items()}

    def run(self, name: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        own = self.about["programs"][name]
        inputs = {each["name"]: torch.from_numpy(values[each["name"]]) for each in own["inputs"]}
        found = self.modules[name](inputs)
        return {each["replaces"] or each["name"]: found[each["name"]].numpy() for each in own["outputs"]}


PROGRAMS = {"onnx": OnnxPrograms, "torch": TorchPrograms}


def greedy(programs: OnnxPrograms, images: np.ndarray, mask: np.ndarray) -> tuple[list[list[int]], list[np.ndarray]]:
    """Token ids of the reports, and the logits of each step."""
    values = programs.run("prefill", programs.run("encoder", {"images": images, "view_mask": mask}))
    tokens: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    for _ in range(programs.about["max_length"]):
        logits.append(values["logits"].copy())
        values["logits"][:, programs.about["tokens"]["never_generated"]] = -np.inf
        tokens.append(values["logits"].argmax(1))
        values |= programs.run("step", {**values, "tokens": tokens[-1]})
    eos = programs.about["tokens"]["eos"]
    rows = np.stack(tokens, 1).tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows], logits


def require_equal(run: Path, programs: OnnxPrograms, views: Sequence[int], size: int) -> list[list[int]]:
    """Asserts that programs and model generate the same reports, from logits within `TOLERANCE`."""
    images, mask = exams(views, size)
    task: Any = Predictor(run).task.cpu()
    with torch.no_grad():
        features = task.encoder(torch.from_numpy(images).float() / 255, torch.from_numpy(mask))
        most = programs.about["max_length"]
        reports = generate(task.decoder, features, max_length=most)
        found, logits = greedy(programs, images, mask)
        assert found == reports
        cache = task.decoder.init_cache(features)
        tokens = torch.ones(len(views), dtype=torch.long)  # BOS
        for theirs in logits:
            ours, cache = task.decoder.step(tokens, cache)
            assert np.abs(ours.numpy() - theirs).max() <= TOLERANCE * max(1, np.abs(theirs).max())
            ours[:, NEVER] = -torch.inf
            tokens = ours.argmax(1)
    return reports


@pytest.mark.parametrize(
    ("decoder", "encoder", "target"),
    [
        ("transformer", "tiny_cnn", "onnx"),
        ("transformer", "tiny_cnn", "torch"),
        ("lstm_attention", "resnet", "onnx"),
        ("relational_memory", "convnext", "onnx"),
        pytest.param("cross_modal_memory", "efficientnet_lite", "onnx", marks=pytest.mark.long),
        pytest.param("lstm_attention", "one map for all views", "onnx", marks=pytest.mark.long),
        pytest.param("transformer", "one view", "onnx", marks=pytest.mark.long),
        pytest.param("relational_memory", "resnet", "torch", marks=pytest.mark.long),
    ],
)
def test_programs_give_the_tokens_and_logits_of_the_model(
    decoder: str, encoder: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [f"model.decoder={DECODERS[decoder]}", f"model.encoder={ENCODERS[encoder]}"]
    run = write(tmp_path / "run", *parts, "data.image_size=64", "evaluate.max_length=16")
    programs = PROGRAMS[target](export_model(run, target, tmp_path / "out").parent)
    assert programs.about["largest_difference"] <= TOLERANCE
    shape = programs.about["programs"]["encoder"]["inputs"][0]["shape"]
    one = encoder == "one view"
    assert shape[:3] == ["batch", 1 if one else "views", 1]
    require_equal(run, programs, [1], 64)
    reports = require_equal(run, programs, [1, 1, 1] if one else [1, 4, 2, 1], 64)
    assert len({*map(tuple, reports)}) > 1  # they depend on the images
    if encoder == "convnext":
        assert shape[3:] == [64, 64] and "64 x 64" in capsys.readouterr().out
    else:
        assert shape[3:] == ["height", "width"] and "notice" not in capsys.readouterr().out
        require_equal(run, programs, [1, 1] if one else [2, 1], 91)


def test_what_cannot_be_exported_is_named_with_the_reason(tmp_path: Path) -> None:
    gpt2 = "{_delete_: true, name: hf_causal, architecture: gpt2, config: {n_layer: 1, n_embd: 16, n_head: 2}}"
    run = write(tmp_path / "run", f"model.decoder={gpt2}", "evaluate.max_length=6")
    with problem("unsupported", "model.decoder") as found:
        export_model(run, "torch", tmp_path / "out")
    assert "HfCausal" in found[0].found and "tensors" in found[0].found
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with problem("unknown-name", "--to"):
        export_model(run, "tensorrt", tmp_path / "out")
    with problem("file-exists", str(run)):
        export_model(run, "torch", run)
    with problem("no-model"):
        export_model(tmp_path, "torch", tmp_path / "out")


def test_the_example_writes_the_report_of_the_model_without_our_code(smoke_run: Path, tmp_path: Path) -> None:
    words = ["export", str(smoke_run), "--to", "onnx", "--out", str(tmp_path / "programs")]
    done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert done.output.splitlines()[-1] == str(tmp_path / "programs" / ABOUT)
    assert damaged_files(tmp_path / "programs") == [] and (tmp_path / "programs" / MANIFEST).is_file()
    model = Predictor(smoke_run, num_beams=1)
    views = model.load(list(np.random.default_rng(0).integers(0, 255, (2, 48, 64), dtype=np.uint8)))
    np.save(tmp_path / "views.npy", views)
    script = ROOT / "docs" / "examples" / "onnx_report.py"
    blocked = "import sys; sys.modules |= dict.fromkeys(('torch', 'framework', 'transformers')); "
    run = f"import runpy; sys.argv[1:] = ['programs', 'views.npy']; runpy.run_path({str(script)!r})"
    found = subprocess.run(
        [sys.executable, "-c", blocked + run], cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    vocabulary = model.tokenizer.vocabulary
    (ids,) = generate(model.task.decoder, model.features([views]), max_length=model.recipe.evaluate.max_length)
    assert found.stdout == " ".join(vocabulary[id] for id in ids) + "\n" and ids
