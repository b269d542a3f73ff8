"""`train.micro_batch_size: auto` tries the hardest exam; errors of memory name a smaller micro-batch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, problem
from PIL import Image

from framework.build import build_components
from framework.data.image_cache import build_image_cache
from framework.data.loading import BatchPlan, ExamSet, collate, hardest_sample
from framework.distributed.launch import start_accelerator
from framework.distributed.micro_batch import step_out_of_memory
from framework.exam import Exam
from framework.recipe import load_recipe


@dataclass(frozen=True)
class Grey:
    """A view of one grey value."""

    value: int

    @property
    def name(self) -> str:
        return f"grey {self.value}"

    def load(self) -> np.ndarray:
        return np.full((8, 8), self.value, np.uint8)


# Views and words of each exam. The maxima belong to different exams, and not always to the first or last exam.
RAGGED = [
    [(1, 3), (4, 2), (2, 9), (3, 5)],
    [(4, 1), (1, 9)],
    [(1, 9), (4, 1)],
    [(2, 2), (1, 9), (4, 4), (1, 1)],
]


@pytest.mark.parametrize("ragged", RAGGED)
def test_the_hardest_exam_combines_the_most_views_and_the_longest_report(
    tmp_path: Path, ragged: list[tuple[int, int]]
) -> None:
    exams = [
        Exam(f"e{number}", f"p{number}", tuple(Grey(10 * number + view) for view in range(views)), "text")
        for number, (views, _) in enumerate(ragged)
    ]
    cache, _ = build_image_cache(exams, source_key="k", size=8, channels=1, folder=tmp_path, on_broken="stop")
    tokens = [list(range(5, 5 + words)) for _, words in ragged]
    hardest = hardest_sample(ExamSet(exams, cache, tokens, np.arange(len(exams))))
    assert hardest.image_VCHW.shape == (4, 1, 8, 8) and len(hardest.tokens) == 9
    batch = collate([hardest] * 3).to("cpu")
    assert batch.image_BVCHW.shape == (3, 4, 1, 8, 8) and batch.view_mask_BV.all()
    assert batch.report_BT.shape == (3, 9)


@pytest.fixture
def five_views(tmp_path: Path) -> list[str]:
    """Words that give smoke.yaml exams of one view, and one of five views in test."""
    Image.fromarray(np.full((12, 16), 90, np.uint8)).save(tmp_path / "1.png")
    found = {
        split: [{"uid": f"{split}{n}", "finding": "No mass.", "image_path": ["1.png"] * views} for n in range(exams)]
        for split, exams, views in (("train", 4, 1), ("val", 1, 1), ("test", 1, 5))
    }
    (tmp_path / "exams.json").write_text(json.dumps(found), encoding="utf-8")
    dataset = f"{{_delete_: true, name: manifest, file: {tmp_path / 'exams.json'}, images: {tmp_path}}}"
    few = ["train.batch_size=4", "distiller=none", "~losses.topic", "~losses.global_semantic", "evaluate.max_length=8"]
    return [f"data.dataset={dataset}", f"data.cache_dir={tmp_path / 'cache'}", *few]


GPT2 = "architecture: gpt2, config: {n_layer: 1, n_embd: 16, n_head: 2, n_positions: 24}"


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ([], "out-of-range"),
        (["model.encoder.max_views=5"], None),
        (
            ["model.encoder.max_views=0", f"model.decoder={{_delete_: true, name: hf_causal, {GPT2}}}"],
            "does-not-fit",
        ),
        (["model.encoder.max_views=0", f"model.decoder={{_delete_: true, name: hf_causal, queries: 2, {GPT2}}}"], None),
    ],
)
def test_more_views_than_fit_are_refused_before_training_in_any_split(
    five_views: list[str], tmp_path: Path, keys: list[str], code: str | None
) -> None:
    recipe = load_recipe(str(ROOT / "recipes" / "smoke.yaml"), [*five_views, *keys])
    if code is not None:
        with problem(code) as found:
            build_components(recipe, start_accelerator(recipe), run=tmp_path)
        assert "exam test0 of split test" in str(found[0])
        return
    task = build_components(recipe, start_accelerator(recipe), run=tmp_path).task
    assert all(part.training for part in task.modules())


def plan(micro_batch_size: int, processes: int = 1) -> BatchPlan:
    return BatchPlan(batch_size=24, micro_batch_size=micro_batch_size, rank=0, processes=processes)


@pytest.mark.parametrize(
    ("now", "hint"),
    [
        (
            plan(24),
            "train.micro_batch_size=12 needs about half of it; train.batch_size stays 24, by accumulation over 2",
        ),
        (plan(8, processes=2), "train.micro_batch_size=4"),
        (plan(3), "train.micro_batch_size=1 "),
    ],
)
def test_out_of_memory_names_the_next_size_that_divides_the_batch_of_a_process(now: BatchPlan, hint: str) -> None:
    error = step_out_of_memory(now, 7)
    assert (error.code, error.place) == ("out-of-memory", "step 7") and hint in str(error)


def test_out_of_memory_with_one_exam_names_other_settings() -> None:
    message = str(step_out_of_memory(plan(1), 7))
    assert "train.micro_batch_size=" not in message
    assert "activation_checkpointing=true" in message and "zero3 or fsdp" in message
