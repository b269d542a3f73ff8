"""Generates reports of single exams with the exported model of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framework.build import build_augment, build_task, build_tokenizer, run_recipe
from framework.checkpoint.export import load_weights, verify_model
from framework.data.image_cache import fit
from framework.data.image_file import FileView, is_blank
from framework.data.loading import Sample, collate
from framework.evaluation.calibration import model_temperature
from framework.evaluation.model_selection import BEST, ModelSelection, load_models, with_augmented_copies
from framework.evaluation.words import words_of_reports
from framework.models.generation import generate
from framework.models.topic_head import read_topic_head
from framework.models.views import require_view_count
from framework.recipe import load_saved_recipe
from framework.runtime.errors import UserError
from framework.text.findings.confidence import UNSURE, Finding, findings_of
from framework.text.words import Word, report_confidence

View = str | os.PathLike[str] | np.ndarray


@dataclass(frozen=True, eq=False)
class GeneratedReport:
    """The report of an exam. It prints as its text, equals it, and shows itself in a notebook as a card: the views, and
    for each word where the model looked.

    Attributes:
        warnings: reasons not to take the report as it is.
        views: the images as the model saw them, uint8 [V, C, H, W].
        calibrated: whether confidences are those of a model with a calibration.
        told_topic: the topic that the model's topic head tells, by its number and words; None without one.
    """

    text: str
    words: tuple[Word, ...]
    warnings: tuple[str, ...]
    views: np.ndarray
    calibrated: bool = False
    told_topic: str | None = None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """The findings that the lexicon reads in the report, with their confidence."""
        return findings_of(self.text, self.words)

    @property
    def confidence(self) -> float:
        """How sure the model is of the whole report, see `report_confidence`."""
        return report_confidence(self.words)

    def unsure(self, below: float = UNSURE) -> tuple[Finding, ...]:
        """The findings whose confidence is less than `below`."""
        return tuple(each for each in self.findings if each.confidence is not None and each.confidence < below)

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return str(other) == self.text if isinstance(other, (str, GeneratedReport)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def _repr_html_(self) -> str:
        from framework.pages.exam_card import exam_card, exam_frame, word_rows

        card = exam_card(
            "exam",
            self.views,
            self.text,
            word_rows(self.words),
            warnings=self.warnings,
            calibrated=self.calibrated,
            told_topic=self.told_topic,
        )
        return exam_frame(card)


class Predictor:
    """A model that is loaded once, on the GPU if there is one, and generates the reports of many exams.

    Args:
        folder: of a run, or of an exported model (RUN/model).
        num_beams: beam width; None takes the recipe's.
        selection: the models of a run to average or to combine.

    Raises:
        UserError: the folder has no model, or not those of the selection.
    """

    def __init__(self, folder: Path, num_beams: int | None = None, selection: ModelSelection = BEST) -> None:
        is_model = (folder / "model.safetensors").is_file() and selection == BEST
        model = folder if is_model else folder / "model"
        for each in (model, *(other / "model" for other in selection.others)):
            verify_model(each)
        self.recipe = load_saved_recipe(model / "recipe.yaml") if is_model else run_recipe(folder)
        self.tokenizer = build_tokenizer(self.recipe, [], model)
        if is_model:
            task = build_task(self.recipe, self.tokenizer, None, None, trained=True, model=model)
            load_weights(model, task)
        else:
            task, _ = load_models(folder, self.recipe, self.tokenizer, selection)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        augment = build_augment(self.recipe) if self.recipe.evaluate.augmented_copies else None
        self.task = with_augmented_copies(task.to(self.device).eval(), augment, self.recipe)
        self.num_beams = num_beams or self.recipe.evaluate.num_beams
        # Both belong to the run's best model alone.
        self.temperature = None if selection.label else model_temperature(model)
        self.topic_head = None if selection.label else read_topic_head(model, self.task.encoder.width)

    def report(self, images: Sequence[View]) -> GeneratedReport:
        """The report of one exam.

        Args:
            images: the exam's views in the order of the training data, as files or arrays: uint8 [H, W] or [H, W, 3].

        Raises:
            UserError: there is no image, or one cannot be used.
        """
        return self.reports_of([self.load(images)])[0]

    def reports(self, exams: Sequence[Sequence[View]]) -> list[GeneratedReport]:
        """The reports of many exams, `evaluate.batch_size` at a time.

        Raises:
            UserError: an exam has no image, or one cannot be used; the place tells which exam, counted from 0.
        """
        size = self.recipe.evaluate.batch_size
        found = []
        for start in range(0, len(exams), size):
            batch = []
            for number, images in enumerate(exams[start : start + size], start):
                try:
                    batch.append(self.load(images))
                except UserError as error:
                    raise UserError.of(each.at(f"exams[{number}]") for each in error.problems) from error
            found += self.reports_of(batch)
        return found

    def load(self, images: Sequence[View]) -> np.ndarray:
        """The views of an exam as the model takes them, uint8 [V, C, H, W]. Raises as `report`."""
        if isinstance(images, (str, os.PathLike, np.ndarray)) or not len(images):
            raise UserError("wrong-type", f"found {type(images).__name__}", expected="a list of at least one image")
        data, encoder = self.recipe.data, getattr(self.task, "encoder", None)
        require_view_count("the exam", len(images), getattr(encoder, "position_VD", None))
        return np.stack([fit(_pixels(image), data.image_size, data.channels, data.autocontrast) for image in images])

    @torch.no_grad()
    def features(self, exams: Sequence[np.ndarray]) -> Any:
        """The encoder's features of exams from `load`."""
        batch = collate([Sample("exam", image_VCHW, [], None) for image_VCHW in exams])
        return self.task.features(batch.to(self.device))

    def generate(self, exams: Sequence[np.ndarray]) -> list[str]:
        """The texts of the reports of exams from `load`, in one batch."""
        return [self.tokenizer.decode(ids) for ids in self._search(self.features(exams))]

    def _search(self, features: Any) -> list[list[int]]:
        return generate(self.task.decoder, features, num_beams=self.num_beams, **self.recipe.evaluate.search)

    def reports_of(self, exams: Sequence[np.ndarray]) -> list[GeneratedReport]:
        """The reports of exams from `load`, in one batch, with their words."""
        features, most = self.features(exams), self.recipe.evaluate.max_length
        token_ids, head = self._search(features), self.topic_head
        view_counts = [len(views) for views in exams]
        words = words_of_reports(self.task, features, token_ids, self.tokenizer, view_counts, self.temperature)
        topics = [None] * len(exams) if head is None else [head.name(t.topic) for t in head.told(features.pooled_BD)]
        return [
            GeneratedReport(
                self.tokenizer.decode(ids),
                tuple(own),
                (f"cut at {len(ids)} tokens (evaluate.max_length)",) if len(ids) == most else (),
                views,
                self.temperature is not None,
                topic,
            )
            for ids, own, views, topic in zip(token_ids, words, exams, topics, strict=True)
        ]


def predict(
    run: Path, images: Sequence[View], num_beams: int | None = None, selection: ModelSelection = BEST
) -> GeneratedReport:
    """The report of one exam by the models of a run, see `Predictor`."""
    return Predictor(run, num_beams, selection).report(images)


def _pixels(image: View) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            found = f"found an array of {image.dtype} {list(image.shape)}"
            raise UserError("broken-image", found, expected="uint8 [H, W] or [H, W, 3]")
        pixels, place = image, "image"
    else:
        try:
            pixels, place = FileView(str(image), Path(image).name).load(), str(image)
        except OSError as error:
            raise UserError("broken-image", str(error)) from error
    if is_blank(pixels):
        raise UserError("broken-image", "all pixels are equal, so there is no picture to report on", place=place)
    return pixels
