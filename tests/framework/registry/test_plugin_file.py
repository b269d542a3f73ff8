"""Plugin files in worker processes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT
from torch.utils.data import DataLoader

from framework.data.image_cache import build_image_cache
from framework.data.loading import ExamSet, collate
from framework.exam import Exam
from framework.registry import find, load

MY_SET = '''
from dataclasses import dataclass

import numpy as np

from framework.exam import Exam
from framework.registry import register


@dataclass(frozen=True)
class Square:
    name: str

    def load(self):
        return np.full((8, 8), 7, np.uint8)


@register("dataset", "squares")
class Squares:
    """Squares."""

    cache_key = "squares"

    def splits(self):
        return {"train": [Exam(str(n), str(n), (Square("s"),), "text") for n in range(68)]}
'''


@pytest.fixture
def source(tmp_path: Path) -> Any:
    file = tmp_path / "my_set.py"
    file.write_text(MY_SET)
    return load(find("dataset", "squares", (file,)))()


def test_views_of_a_plugin_file_unpickle_in_a_new_process(source: Any) -> None:
    content = pickle.dumps([len, source.splits()["train"]])
    script = "import framework, pickle, sys; print(len(pickle.load(sys.stdin.buffer)[1]))"
    done = subprocess.run([sys.executable, "-c", script], input=content, capture_output=True, cwd=ROOT, check=True)
    assert done.stdout == b"68\n"


def test_views_of_a_plugin_file_are_decoded_and_loaded_by_workers(source: Any, tmp_path: Path) -> None:
    exams: list[Exam] = source.splits()["train"]  # more than 64: decoded by other processes, which spawn
    cache, _ = build_image_cache(exams, source_key="k", size=8, channels=1, folder=tmp_path, on_broken="stop")
    loader = DataLoader(
        ExamSet(exams, cache, [[1, 2]] * 68, None),
        batch_sampler=[[0, 1]],
        collate_fn=collate,
        num_workers=1,
        multiprocessing_context="forkserver",
    )
    (batch,) = loader
    assert batch.exam_ids == ["0", "1"] and int(batch.image_BVCHW.min()) == 7
