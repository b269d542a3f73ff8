"""What a run writes down as it goes: metrics.jsonl, TensorBoard, and the run's own files."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from framework.runtime.files import atomic_write

PACKAGES = (
    "torch",
    "accelerate",
    "deepspeed",
    "transformers",
    "faiss-cpu",
    "faiss-gpu",
    "scikit-learn",
    "numpy",
    "rjieba",
    "sonoscribe",
)


RECORDS = "metrics.jsonl"  # one value a line
BAD_STEPS = "non_finite.jsonl"  # steps that were skipped, and their exams
COST = "cost.json"  # parameters, and the most memory that a process held; a run that has come to its end has it


class Tracker:
    """One line a record in metrics.jsonl, and the same in TensorBoard. Only the main process has one that writes."""

    def __init__(self, run: Path, *, writes: bool, done: int, again: tuple[str, ...]) -> None:
        self.run, self.writes = run, writes
        if not writes:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / RECORDS
        # What is done again would stand twice: later steps (all of them, where a run died before its first checkpoint),
        # and of this step what begins so.
        for path in (self.path, run / BAD_STEPS):
            keep_lines(path, lambda row: row["step"] < done or (row["step"] == done and not _is_again(row, again)))
        self.file = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run), purge_step=done + 1 if done else None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if not self.writes:
            return
        for name, value in values.items():
            self.file.write(json.dumps({"step": step, "name": name, "value": value}) + "\n")
            self.board.add_scalar(name, value, step)
        self.file.flush()

    def sample(self, step: int, exam_id: str, image_VCHW: np.ndarray, reference: str, prediction: str) -> None:
        """A generated report beside its reference and its views."""
        if not self.writes:
            return
        views_CHW = np.concatenate(list(image_VCHW), axis=-1)
        self.board.add_image(f"samples/{exam_id}", views_CHW, step)
        self.board.add_text(f"samples/{exam_id}", f"**reference** {reference}\n\n**prediction** {prediction}", step)

    def picture(self, name: str, path: Path) -> None:
        if self.writes and path.is_file():
            from PIL import Image

            self.board.add_image(name, np.asarray(Image.open(path).convert("RGB")), 0, dataformats="HWC")

    def close(self) -> None:
        if self.writes:
            self.file.close()
            self.board.close()


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Takes records out of a file of JSON lines, and a last line that was broken off. No file has none."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        atomic_write(path, "".join(line for line in lines if line.endswith("\n") and keep(json.loads(line))))


def _is_again(row: dict[str, Any], again: tuple[str, ...]) -> bool:
    return row.get("name", "").startswith(again)


def write_environment(run: Path, launch: dict[str, Any]) -> None:
    """Versions, git state and launch of a run, in environment.json."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # one of faiss-cpu and faiss-gpu is always absent
    write_json(
        run / "environment.json",
        {
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": versions,
            "git": _git_state(),
            "launch": launch,
        },
    )


def _git_state() -> str | None:
    """The commit of the code that runs, marked where files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    atomic_write(path, json.dumps(value, ensure_ascii=False, indent=1))
