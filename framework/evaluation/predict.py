"""Writes the report of one exam with a run's exported model, and nothing else of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from framework.build import build_tokenizer, run_recipe
from framework.data.image_cache import fit
from framework.data.image_file import FileView
from framework.evaluation.model_selection import BEST, ModelSelection, load_models
from framework.exam import Batch
from framework.models.generation import generate


def predict(run: Path, images: list[Path], num_beams: int | None = None, writers: ModelSelection = BEST) -> str:
    """The findings for one exam.

    Args:
        images: the exam's views, in the order that the model was trained with.
        beam: None takes the recipe's.
        writers: which of the run's models, and of others, write it.

    Raises:
        ValueError: the run has no model, or not those that are asked for; or an image does not load.
    """
    recipe = run_recipe(run)
    tokenizer = build_tokenizer(recipe, [], run / "model")
    task, _ = load_models(run, recipe, tokenizer, writers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    views = []
    for path in images:
        try:
            views.append(fit(FileView(str(path), path.name).load(), recipe.data.image_size, recipe.data.channels))
        except OSError as error:
            raise ValueError(str(error)) from error
    image_BVCHW = torch.from_numpy(np.stack(views)).float()[None] / 255
    view_mask_BV = torch.ones(image_BVCHW.shape[:2], dtype=torch.bool)
    exam = Batch(["exam"], image_BVCHW, view_mask_BV, report_BT=torch.empty(1, 0, dtype=torch.long))
    task = task.to(device).eval()
    settings = recipe.evaluate
    with torch.no_grad():
        (words,) = generate(
            task.decoder,
            task.features(exam.to(device)),
            max_length=settings.max_length,
            num_beams=num_beams or settings.num_beams,
            length_penalty=settings.length_penalty,
            no_repeat_ngram_size=settings.no_repeat_ngram_size,
        )
    return tokenizer.decode(words)
