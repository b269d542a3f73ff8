"""Loads batches from the image cache beside decoding with PIL.

Grey images of 128 px and color images of 224 px, two views an exam, in one process. A batch is ready on the host; a
model scales it on its device.
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.rounds import compare, parser, start, write
from framework.data.image_cache import build_image_cache, fit
from framework.data.loading import ExamSet, build_loader
from framework.exam import Exam

BATCH, VIEWS, SOURCE = 16, 2, 480  # SOURCE: pixels per side of a file


@dataclass(frozen=True)
class Jpeg:
    name: str
    content: bytes

    def load(self) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.content)))


def make_exams(count: int, channels: int) -> list[Exam]:
    draw = np.random.default_rng(0)
    exams = []
    for number in range(count):
        views = []
        for view in range(VIEWS):
            coarse = draw.integers(0, 256, (30, 30) if channels == 1 else (30, 30, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(coarse).resize((SOURCE, SOURCE)).save(buffer, "jpeg")
            views.append(Jpeg(f"{number}-{view}", buffer.getvalue()))
        exams.append(Exam(f"e{number}", f"p{number}", tuple(views), "text"))
    return exams


def main() -> None:
    parse = parser(__doc__)
    parse.add_argument("--exams", type=int, default=320)
    options = start(parse, quick={"exams": 32})
    rows: list[Any] = []
    for size, channels in ((128, 1), (224, 3)):
        what = f"{size} px, {'grey' if channels == 1 else 'color'}"
        exams = make_exams(options.exams, channels)
        batches = [list(range(n, n + BATCH)) for n in range(0, len(exams) - BATCH + 1, BATCH)]
        with tempfile.TemporaryDirectory() as folder:
            cache, _ = build_image_cache(
                exams, source_key="b", size=size, channels=channels, folder=Path(folder), on_broken="stop"
            )
            loader = build_loader(ExamSet(exams, cache, [[1, 2]] * len(exams), None), batches, 0)

            def ours(loader: Any = loader) -> None:
                for _ in loader:
                    pass

            def decoded(exams: Any = exams, batches: Any = batches, size: int = size, channels: int = channels) -> None:
                for batch in batches:
                    views = [view for number in batch for view in exams[number].views]
                    torch.from_numpy(np.stack([fit(view.load(), size, channels) for view in views]))

            count = VIEWS * BATCH * len(batches)
            rows += compare(what, "images", count, {"ours": ours, "PIL decodes": decoded}, options.rounds)
    write(rows, options, ("torch", "pillow"))


if __name__ == "__main__":
    main()
