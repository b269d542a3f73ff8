"""Draws the contact sheet of phantom exams for the documentation: `python -m benchmarks.phantom_sheet`."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from framework.exam import Exam
from plugins.dataset.phantom import Phantom, telling_view

ROOT = Path(__file__).resolve().parent.parent
# Per organ and place in the row: what the exam shows, as {attribute: value} of its first lesion (None: normal).
WANTED: dict[str, list[dict[str, str] | None]] = {
    "breast": [
        None,
        {"echogenicity": "anechoic"},
        {"kind": "fibroadenoma"},
        {"margin": "spiculated"},
        {"echogenicity": "hyperechoic"},
        {"calcification": "present"},
    ],
    "thyroid": [
        None,
        {"echogenicity": "anechoic"},
        {"echogenicity": "isoechoic"},
        {"kind": "carcinoma"},
        {"echogenicity": "mixed"},
        {"calcification": "present"},
    ],
    "liver": [
        None,
        {"echogenicity": "anechoic"},
        {"kind": "hemangioma"},
        {"kind": "metastasis"},
        {"echogenicity": "mixed"},
        None,
    ],
}


def shows(exam: Exam, wanted: dict[str, str] | None) -> bool:
    lesions = exam.attributes["lesions"]
    if wanted is None or len(lesions) != 1:
        return wanted is None and not lesions
    return all(lesions[0].get(key) == value for key, value in wanted.items())


def caption(exam: Exam, plane: str) -> str:
    truth = exam.attributes
    if not truth["lesions"]:
        words = ["normal", truth["gland"], truth.get("size_gland", "")]
        words.append("bright" if truth.get("steatosis") == "present" else "")
        return f"{plane}\n{' '.join(word for word in words if word not in ('', 'normal')) or 'normal'}, no lesion"
    lesion = truth["lesions"][0]
    last = lesion["posterior"] if lesion["posterior"] != "none" else lesion["margin"]
    return f"{plane}\n{lesion['shape']} {lesion['echogenicity']}, {last}"


def choose(organ: str, size: int, start: int) -> Iterator[Exam]:
    exams = Phantom(organ=organ, exams=2000, size=size).splits()["train"]
    places = itertools.count(start)
    for wanted in WANTED[organ]:
        yield next(exam for exam in (exams[place] for place in places) if shows(exam, wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/phantom.png")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--start", type=int, default=300, help="first exam that may be shown")
    options = parser.parse_args()
    figure, axes = plt.subplots(3, 6, figsize=(12.6, 7.6), facecolor="white")
    for row, organ in enumerate(WANTED):
        for column, exam in enumerate(choose(organ, options.size, options.start)):
            view, axis = telling_view(exam), axes[row, column]
            axis.imshow(view.load(), cmap="gray", vmin=0, vmax=255, interpolation="lanczos")
            axis.set_title(caption(exam, f"{organ}, {view.name}"), fontsize=7.5)
            axis.axis("off")
    figure.tight_layout(pad=0.4)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    print(options.out)


if __name__ == "__main__":
    main()
