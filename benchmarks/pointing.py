"""Measures whether a model looks at the lesion while it names it: `python -m benchmarks.pointing RUN [SPLIT]`.

For data whose views have lesion masks (`phantom`, `busbra`). The decoder reads the references, so every exam with a
lesion counts, whatever the model would write; the word is the first that names a lesion. Beside the attention stand:

- mean map: the mean attention of all such exams with as many views, this one among them, which knows where lesions
  usually lie,
- chance: equal weights of all patches of all views.

Rows: the view of the highest cell shows a lesion; the middle of the highest cell is inside the lesion; the share of the
attention that is on the lesion, whose chance is the lesion's share of the area. Each with the 95 % interval of its mean
over exams, by bootstrap.

Source:
    Zhang et al. 2018, arXiv 1608.00507, section 4.2 (pointing game, here without a tolerance); Wang et al. 2020, arXiv
    1910.01279, section 4.2 (the share).
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from framework.build import build_dataset
from framework.data.image_cache import fit
from framework.evaluation.predict import Predictor
from framework.evaluation.words import words_of_reports
from framework.runtime.console import print_table
from framework.runtime.home import provide_home

LESION = re.compile(
    r"mass|masses|nodules?|cysts?|lesions?|hemangioma|metastas[ie]s|.*(结节|肿块|囊肿|占位|肿物|血管瘤|回声区|回声团|团块)"
)
ROWS = ("view with a lesion", "peak in the lesion", "attention on the lesion")
BATCH, SAMPLES = 16, 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pointing", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("split", nargs="?", default="test")
    options = parser.parse_args()
    provide_home()
    model = Predictor(options.run)
    exams = [
        exam for exam in build_dataset(model.recipe).splits()[options.split] if hasattr(exam.views[0], "lesion_mask")
    ]
    found = [each for start in range(0, len(exams), BATCH) for each in look(model, exams[start : start + BATCH])]
    if not found:
        raise SystemExit("no view has a lesion mask, no reference names a lesion, or the decoder has no attention")
    by_views: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
    for attention, _, _ in found:
        by_views[attention.shape].append(attention)
    means = {shape: np.mean(maps, 0) for shape, maps in by_views.items()}
    scores = np.array(
        [
            (measure(attention, cover, middle), measure(means[attention.shape], cover, middle), chance(cover, middle))
            for attention, cover, middle in found
        ]
    )  # exams, sources, rows
    draw = np.random.default_rng(0)
    means_of_samples = scores[draw.integers(0, len(scores), (SAMPLES, len(scores)))].mean(1)
    low, high = np.quantile(means_of_samples, (0.025, 0.975), axis=0)
    rows = [
        [row, *(f"{scores[:, s, r].mean():.3f} [{low[s, r]:.3f}, {high[s, r]:.3f}]" for s in range(scores.shape[1]))]
        for r, row in enumerate(ROWS)
    ]
    grid = "x".join(map(str, found[0][0].shape[1:]))
    print(f"{options.run}, {options.split}: {len(found)} exams with a lesion, {grid} cells a view")
    print_table(("", "attention", "mean map", "chance"), rows)


def look(model: Predictor, exams: list[Any]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each exam whose reference names a lesion: the attention [V, h, w], the share of each cell that the lesion
    covers, and whether the middle of each cell is in it.
    """
    views = [model.load([view.load() for view in exam.views]) for exam in exams]
    tokens = [model.tokenizer.encode(exam.report)[1:-1] for exam in exams]
    words = words_of_reports(model.task, model.features(views), tokens, model.tokenizer, [len(v) for v in views])
    found = []
    for exam, own in zip(exams, words, strict=True):
        attention = next((word.attention for word in own if LESION.fullmatch(word.text.lower())), None)
        size = model.recipe.data.image_size
        masks = np.stack([fit(view.lesion_mask().astype(np.uint8) * 255, size, 1)[0] > 127 for view in exam.views])
        if attention is None or not masks.any():
            continue
        if len(attention) < len(masks):  # one map for all views
            attention = np.broadcast_to(attention / len(masks), (len(masks), *attention.shape[1:]))
        rows, columns = attention.shape[1:]
        edges = [np.linspace(0, size, count + 1).round().astype(int) for count in (rows, columns)]
        cells = [
            [
                mask[top:bottom, left:right]
                for top, bottom in zip(edges[0], edges[0][1:])
                for left, right in zip(edges[1], edges[1][1:])
            ]
            for mask in masks
        ]
        cover = np.array([[cell.mean() for cell in view] for view in cells]).reshape(attention.shape)
        middle = np.array([[cell[len(cell) // 2, cell.shape[1] // 2] for cell in view] for view in cells])
        found.append((attention, cover, middle.reshape(attention.shape)))
    return found


def measure(attention: np.ndarray, cover: np.ndarray, middle: np.ndarray) -> tuple[float, ...]:
    """The rows of one exam."""
    peak = np.unravel_index(attention.argmax(), attention.shape)
    return float(cover[peak[0]].any()), float(middle[peak]), float((attention * cover).sum() / attention.sum())


def chance(cover: np.ndarray, middle: np.ndarray) -> tuple[float, ...]:
    """What equal weights would give."""
    return float(cover.any((1, 2)).mean()), float(middle.mean()), float(cover.mean())


if __name__ == "__main__":
    main()
