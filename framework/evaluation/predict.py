"""Generates reports of single exams with the exported model of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from framework.build import build_augment, build_task, build_tokenizer, run_recipe
from framework.checkpoint.export import load_weights, verify_model
from framework.data.image_cache import fit
from framework.data.image_file import FileView, is_blank
from framework.data.loading import Sample, collate
from framework.evaluation.calibration import model_temperature
from framework.evaluation.feature_distance import (
    PERCENTILE,
    FeatureStatistics,
    NearExam,
    TrainingExams,
    ViewFeatures,
    layout,
    view_vectors,
)
from framework.evaluation.model_selection import BEST, ModelSelection, load_models, with_augmented_copies
from framework.evaluation.words import words_of_reports
from framework.exam import Batch
from framework.models.generation import Hypothesis, beam_search
from framework.models.topic_head import read_topic_head
from framework.models.views import require_view_count
from framework.recipe import load_saved_recipe
from framework.runtime.errors import UserError
from framework.text.findings.confidence import UNSURE, Finding, findings_of
from framework.text.words import Word, report_confidence

View = str | os.PathLike[str] | np.ndarray


class Alternative(NamedTuple):
    """Another report of the beam, with the logarithm of its probability."""

    text: str
    logprob: float


@dataclass(frozen=True, eq=False)
class GeneratedReport:
    """The report of an exam. It prints as its text, equals it, and shows itself in a notebook as a card: the views, and
    for each word where the model looked.

    Attributes:
        warnings: reasons not to take the report as it is.
        views: the images as the model saw them, uint8 [V, C, H, W].
        calibrated: whether confidences are those of a model with a calibration.
        predicted_topic: the topic that the model's topic head predicts, by its number and words; None without one.
        logprob: the logarithm of the report's probability.
        alternatives: the other reports of the beam, in the order of the search; none for a beam of 1.
        distances: of each view to the training images; a view above 1 is unlike them, see `FeatureStatistics`. Empty if
            the model has no features of them.
        nearest: training exams with the most similar features, the nearest first. Empty for a model without its run.
    """

    text: str
    words: tuple[Word, ...]
    warnings: tuple[str, ...]
    views: np.ndarray
    logprob: float = math.nan
    alternatives: tuple[Alternative, ...] = ()
    distances: tuple[float, ...] = ()
    nearest: tuple[NearExam, ...] = ()
    calibrated: bool = False
    predicted_topic: str | None = None

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

    def card(self, exam_id: str = "exam") -> dict[str, Any]:
        """What the templates of an exam show."""
        from framework.pages.exam_card import exam_card, word_rows

        return exam_card(
            exam_id,
            self.views,
            self.text,
            word_rows(self.words),
            warnings=self.warnings,
            calibrated=self.calibrated,
            predicted_topic=self.predicted_topic,
            nearest=self.nearest,
            logprob=self.logprob,
            alternatives=self.alternatives,
        )

    def _repr_html_(self) -> str:
        from framework.pages.exam_card import exam_frame

        return exam_frame(self.card())


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
        self.statistics: FeatureStatistics | None = None
        self.training_exams: TrainingExams | None = None
        self._no_statistics = "the model has no features of them; `launch.py evaluate RUN` adds them"
        if selection.average > 1:
            self._no_statistics = "averaged weights give other features than those that the model was saved with"
        else:  # of an ensemble, the features of the first member, which is the run's own model
            self.statistics = FeatureStatistics.load(model, task.encoder.width, self.recipe.data.image_size)
        if self.statistics is not None and not is_model:
            self.training_exams = TrainingExams.load(folder, self.statistics)

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
        return self.task.features(self._batch(exams))

    @torch.no_grad()
    def reports_of(self, exams: Sequence[np.ndarray], *, words: bool = True) -> list[GeneratedReport]:
        """The reports of exams from `load`, in one batch.

        Args:
            words: False leaves `GeneratedReport.words` empty, which saves two passes of the decoder.
        """
        batch = self._batch(exams)
        features = self.task.features(batch)
        beams = beam_search(self.task.decoder, features, num_beams=self.num_beams, **self.recipe.evaluate.search)
        words_of: list[list[Word]] = [[] for _ in exams]
        if words:
            best = [hypotheses[0].token_ids for hypotheses in beams]
            views = [len(image_VCHW) for image_VCHW in exams]
            words_of = words_of_reports(self.task, features, best, self.tokenizer, views, self.temperature)
        compared: list[ViewFeatures | None] = [None for _ in exams]
        if self.statistics is not None:
            vectors = view_vectors(self.task.encoder, batch)
            compared = [ViewFeatures(own, layout(views)) for own, views in zip(vectors, exams, strict=True)]
        head = self.topic_head
        topics: list[str | None] = [None for _ in exams]
        if head is not None:
            topics = [head.name(each.topic) for each in head.predict(features.pooled_BD)]
        return [self._report(*parts) for parts in zip(exams, beams, words_of, compared, topics, strict=True)]

    def _batch(self, exams: Sequence[np.ndarray]) -> Batch:
        samples = [Sample("exam", image_VCHW, [], None) for image_VCHW in exams]
        return collate(samples).to(self.device)

    def _report(
        self,
        views: np.ndarray,
        beam: Sequence[Hypothesis],
        words: Sequence[Word],
        compared: ViewFeatures | None,
        topic: str | None,
    ) -> GeneratedReport:
        best = beam[0]
        text = self.tokenizer.decode(best.token_ids)
        by_text: dict[str, float] = {}  # hypotheses of other tokens may have the same text
        for other in beam:
            if math.isfinite(other.logprob):
                by_text.setdefault(self.tokenizer.decode(other.token_ids), other.logprob)
        alternatives = tuple(Alternative(*other) for other in by_text.items() if other[0] != text)
        distances: tuple[float, ...] = ()
        nearest: tuple[NearExam, ...] = ()
        if self.statistics is not None and compared is not None:
            distances = tuple(self.statistics.distances(compared).tolist())
            if self.training_exams is not None:
                nearest = self.training_exams.nearest(self.statistics, compared)
        warnings = self._warnings(distances)
        if len(best.token_ids) == self.recipe.evaluate.max_length:
            warnings.append(f"cut at {len(best.token_ids)} tokens (evaluate.max_length)")
        return GeneratedReport(
            text,
            tuple(words),
            tuple(warnings),
            views,
            best.logprob,
            alternatives,
            distances,
            nearest,
            calibrated=self.temperature is not None,
            predicted_topic=topic,
        )

    def _warnings(self, distances: Sequence[float]) -> list[str]:
        """A sentence for each view that is unlike the training images, or one that they are not compared."""
        if self.statistics is None:
            return [f"the images are not compared with the training images: {self._no_statistics}"]
        return [
            f"view {number} is unlike the training images: it is {distance:.1f} times as far from them as "
            f"{PERCENTILE} % of the validation exams"
            for number, distance in enumerate(distances, 1)
            if distance > 1
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
