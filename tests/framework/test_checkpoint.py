"""Checkpoints: whole or not there, and checked before they are used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from framework.checkpoint import (
    CheckpointError,
    Progress,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)


def trained(steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    task = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(task.parameters())
    for _ in range(steps):
        task(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    return task, optimizer


def save(folder: Path, step: int, kept: dict[str, float] | None = None, best: int | None = None) -> Path:
    task, optimizer = trained()
    progress = Progress(step=step, recipe="abc", kept=kept or {}, best_step=best)
    return save_checkpoint(folder, task, optimizer, progress, keep_last=2, keep_best=1, best_is_higher=True)


def test_a_loaded_checkpoint_goes_on_like_the_saved_one(tmp_path: Path) -> None:
    task, optimizer = trained()
    progress = Progress(step=2, epoch=1, best=0.5, recipe="abc")
    path = save_checkpoint(tmp_path, task, optimizer, progress, 2, 1, True)
    other, other_optimizer = nn.Linear(3, 2), None
    other_optimizer = torch.optim.AdamW(other.parameters())
    assert load_checkpoint(path, other, other_optimizer, "abc") == progress
    for module, its in ((task, optimizer), (other, other_optimizer)):
        its.zero_grad()
        module(torch.full((1, 3), 2.0)).square().sum().backward()
        its.step()
    assert torch.equal(task.weight, other.weight)


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    kept: dict[str, float] = {}
    for step, value in ((1, 0.1), (2, 0.9), (3, 0.2), (4, 0.3)):
        kept[f"step-{step}"] = value
        save(tmp_path, step, kept, best=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-2", "step-3", "step-4"]
    assert (tmp_path / "latest").read_text().strip() == "step-4" and (tmp_path / "best").read_text().strip() == "step-2"
    assert latest_checkpoint(tmp_path) == tmp_path / "step-4"


@pytest.mark.parametrize("name", ["task.safetensors", "optimizer.pt", "trainer.json"])
def test_a_flipped_byte_is_found(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    content = bytearray((path / name).read_bytes())
    content[-5] ^= 1
    (path / name).write_bytes(content)
    task, optimizer = trained()
    with pytest.raises(CheckpointError, match=rf"{name}: missing or damaged"):
        load_checkpoint(path, task, optimizer, "abc")


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_checkpoint(path, *trained(), "abc")


def test_a_damaged_manifest_names_itself_and_the_way_out(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged, not JSON .*; go on from an older one"):
        load_checkpoint(path, *trained(), "abc")


def test_a_damaged_model_names_itself(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_weights(tmp_path, nn.Linear(3, 2))


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="trained under another recipe"):
        load_checkpoint(path, *trained(), "xyz")


def test_a_save_that_broke_off_is_not_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step-2.part").mkdir()
    (tmp_path / "step-3").mkdir()  # without a manifest
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1"
