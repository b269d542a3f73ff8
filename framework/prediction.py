"""Writes the report of one exam with a run's exported model, and nothing else of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from framework.build import build_task, build_tokenizer, run_recipe
from framework.exported_model import load_weights
from framework.generation import generate
from framework.image_cache import fit
from framework.image_file import FileView


def predict(run: Path, images: list[Path], beam: int | None = None) -> str:
    """The findings for one exam.

    Args:
        images: the exam's views, in the order that the model was trained with.
        beam: None takes the recipe's.

    Raises:
        ValueError: the run has no model, or an image does not load.
    """
    recipe = run_recipe(run)
    model = run / "model"
    tokenizer = build_tokenizer(recipe, [], model)
    task = build_task(recipe, tokenizer, None, None, trained=True).eval()
    load_weights(model, task)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    views = []
    for path in images:
        try:
            views.append(fit(FileView(str(path), path.name).load(), recipe.data.image_size, recipe.data.channels))
        except OSError as error:
            raise ValueError(str(error)) from error
    image_BVCHW = torch.from_numpy(np.stack(views)).float()[None].to(device) / 255
    view_mask_BV = torch.ones(image_BVCHW.shape[:2], dtype=torch.bool, device=device)
    task.to(device)
    with torch.no_grad():
        features = task.encoder(image_BVCHW, view_mask_BV)
    settings = recipe.evaluate
    (words,) = generate(
        task.decoder,
        features,
        max_tokens=settings.max_tokens,
        beam=beam or settings.beam,
        length_penalty=settings.length_penalty,
        no_repeat=settings.no_repeat,
    )
    return tokenizer.decode(words)
