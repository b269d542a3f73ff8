"""Writes any data set as a manifest with PNG images, which the dataset plugin `manifest` reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

from PIL import Image

from framework.data.check import SPLITS
from framework.exam import ExamError, ExamSource
from framework.runtime.errors import UserError
from framework.runtime.files import atomic_write, named_in_errors
from framework.runtime.live import ProgressBar

MANIFEST = "manifest.json"


def write_manifest(source: ExamSource, folder: Path) -> Path:
    """Writes `manifest.json` and `images/*.png` and returns the path of the manifest.

    The manifest is written last, so a folder with a manifest is complete.

    Raises:
        UserError: the folder is not empty, or two exams have the same file name.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("file-exists", "it is not an empty folder", place=folder, hint="Name a new folder.")
    splits = {name: exams for name, exams in source.splits().items() if name in SPLITS}
    names: set[str] = set()
    manifest: dict[str, list[dict[str, object]]] = {}
    (folder / "images").mkdir(parents=True)
    jobs = [(split, exam) for split, exams in splits.items() for exam in exams]
    for split, exam in ProgressBar(jobs, total=len(jobs), text="writing exams"):
        paths = []
        for number, view in enumerate(exam.views, start=1):
            name = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', exam.id).lstrip('.')}_{number}.png"
            if name in names:
                raise ExamError(exam.id, "duplicate-id", f"another exam has an image of the name {name}")
            names.add(name)
            with named_in_errors(folder / "images" / name):
                Image.fromarray(view.load()).save(folder / "images" / name)
            paths.append(f"images/{name}")
        manifest.setdefault(split, []).append(
            {"uid": exam.id, "patient": exam.patient, "finding": exam.report, "image_path": paths, "split": split}
        )
    path = folder / MANIFEST
    atomic_write(path, json.dumps(manifest, ensure_ascii=False, indent=1))
    return path
