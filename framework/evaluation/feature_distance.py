"""How unlike the training images an image is, and which training exams are nearest to an exam, by encoder features.

Training ends with two files of features, and `evaluate` writes them for a model that lacks them:

    RUN/model/features.safetensors   mean, whitening and threshold, from which no exam can be read
    RUN/training_exams.safetensors   vectors of at most `MOST_EXAMS` training exams, with ids and reports: patient
                                     data like RUN/predictions, so it is not in model/, which is passed on

Shapes: B batch, V views of an exam, M views of several exams, N training exams, C channels, H W image, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from sklearn.covariance import LedoitWolf

from framework.build import RunComponents
from framework.checkpoint.export import COPY, FEATURES, MANIFEST, WEIGHTS, ModelError, publish_model
from framework.data.loading import ExamSet, build_loader, lost_workers_reported
from framework.distributed.collectives import gather, on_main
from framework.exam import Batch, Features
from framework.recipe import Recipe
from framework.runtime.console import print0, progress_bar
from framework.runtime.errors import UserError
from framework.runtime.files import atomic_write, read_object, reading

TRAINING_EXAMS = "training_exams.safetensors"  # in a run's folder
AGAIN = "Delete it; `launch.py evaluate RUN` writes it again."
PERCENTILE = 99  # of validation exams that are not reported as unlike the training images
MOST_EXAMS = 5_000  # training exams that are kept, drawn by the recipe's seed if there are more
NEAREST = 3  # training exams that a report names


@dataclass(frozen=True)
class FeatureStatistics:
    """The distribution of the training views' features.

    The distance of a view is that of Mahalanobis, with a covariance that is shrunk towards a multiple of the identity,
    so that it is defined for fewer views than features. Its unit is the distance that no view of `PERCENTILE` percent
    of the validation exams exceeds.

    Source:
        Lee et al. 2018, arXiv 1807.03888, equation 2, without classes; Ledoit and Wolf 2004, Journal of Multivariate
        Analysis 88, the shrinkage.
    """

    mean_D: np.ndarray
    whitening_DD: np.ndarray
    threshold: float

    @classmethod
    def fit(cls, training: Sequence[np.ndarray], validation: Sequence[np.ndarray]) -> FeatureStatistics:
        """Statistics from the features of training and validation exams, each [V, D]."""
        training_MD = np.concatenate(training).astype(np.float64)
        fitted = LedoitWolf().fit(training_MD)
        # L of the precision L L^T: the squared length of (x - mean) L is the squared distance.
        whitening_DD = np.linalg.cholesky(fitted.precision_)
        found = cls(fitted.location_.astype(np.float32), whitening_DD.astype(np.float32), 1.0)
        farthest = [found.distances(vectors_VD).max() for vectors_VD in validation]
        return cls(found.mean_D, found.whitening_DD, float(np.percentile(farthest, PERCENTILE)))

    def whitened(self, vectors_MD: np.ndarray) -> np.ndarray:
        return (vectors_MD - self.mean_D) @ self.whitening_DD

    def distances(self, vectors_VD: np.ndarray) -> np.ndarray:
        """The distance of each view; above 1 it is unlike the training images. [V]"""
        return np.linalg.norm(self.whitened(vectors_VD), axis=1) / self.threshold

    def to_bytes(self) -> bytes:
        threshold_1 = np.array([self.threshold], np.float32)
        return save({"mean": self.mean_D, "whitening": self.whitening_DD, "threshold": threshold_1})

    @classmethod
    def load(cls, model: Path, width: int) -> FeatureStatistics | None:
        """The statistics of a verified model; None if it was saved without.

        Args:
            width: of the encoder.

        Raises:
            ModelError: they are of another width.
        """
        path = model / FEATURES
        if not path.is_file():
            return None
        arrays, _ = _read(path, COPY)
        shapes = {name: array.shape for name, array in arrays.items()}
        expected = {"mean": (width,), "whitening": (width, width), "threshold": (1,)}
        if shapes != expected:
            raise ModelError("does-not-fit", f"found {shapes}", place=path, expected=f"{expected}", hint=COPY)
        return cls(arrays["mean"], arrays["whitening"], float(arrays["threshold"][0]))


class NearExam(NamedTuple):
    """A training exam near an exam.

    Attributes:
        distance: of the exams' whitened features, in the unit of `FeatureStatistics.distances`.
    """

    id: str
    report: str
    distance: float


@dataclass(frozen=True)
class TrainingExams:
    """Ids and reports of training exams, with the whitened mean of the features of their views."""

    vectors_ND: np.ndarray
    exams: list[tuple[str, str]]

    def nearest(self, statistics: FeatureStatistics, vectors_VD: np.ndarray) -> tuple[NearExam, ...]:
        """The `NEAREST` exams to one with these views, the nearest first."""
        distances_N = np.linalg.norm(self.vectors_ND - _exam_vector(statistics, vectors_VD), axis=1)
        order = np.argsort(distances_N, kind="stable")[:NEAREST]
        distances = (distances_N[order] / statistics.threshold).tolist()
        exams = [self.exams[i] for i in order]
        return tuple(NearExam(exam_id, report, distance) for (exam_id, report), distance in zip(exams, distances))

    @classmethod
    def load(cls, run: Path, statistics: FeatureStatistics) -> TrainingExams | None:
        """The training exams of a run; None if the file is missing, or of another model than the run has now.

        Raises:
            UserError: `damaged-file` or `does-not-fit`.
        """
        path = run / TRAINING_EXAMS
        if not _is_of_model(path, run / "model"):
            return None
        arrays, metadata = _read(path, AGAIN)
        with reading(path, AGAIN):
            exams = TypeAdapter(list[tuple[str, str]]).validate_json(metadata["exams"])
            vectors_ND = arrays["vectors"].astype(np.float32)
            count, width = vectors_ND.shape
            if count != len(exams):
                raise ValueError(f"{count} vectors of {len(exams)} exams")
        if statistics.mean_D.shape != (width,):
            found = f"vectors of {width} features beside a model of {len(statistics.mean_D)}"
            raise UserError("does-not-fit", found, place=path, hint=AGAIN)
        return cls(vectors_ND, exams)

    def to_bytes(self, weights: str) -> bytes:
        exams = json.dumps(self.exams, ensure_ascii=False)
        return save({"vectors": self.vectors_ND.astype(np.float16)}, {"weights": weights, "exams": exams})


def _exam_vector(statistics: FeatureStatistics, vectors_VD: np.ndarray) -> np.ndarray:
    return statistics.whitened(vectors_VD).mean(0)


@contextmanager
def _opened(path: Path, hint: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise UserError("damaged-file", str(error), place=path, hint=hint) from None


def _read(path: Path, hint: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with _opened(path, hint) as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    if wrong := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError("damaged-file", f"NaN or infinity in {', '.join(wrong)}", place=path, hint=hint)
    return arrays, metadata


def _is_of_model(path: Path, model: Path) -> bool:
    """Whether the file of training exams is there and was written with the weights that the model has."""
    if not path.is_file():
        return False
    with _opened(path, AGAIN) as file:
        return bool((file.metadata() or {}).get("weights") == _weights_digest(model))


def _weights_digest(model: Path) -> str:
    return str(read_object(model / MANIFEST, COPY)[WEIGHTS][1])


@torch.no_grad()
def view_vectors(encoder: Any, batch: Batch) -> list[np.ndarray]:
    """The pooled features of the views of each exam, as if each view were an exam, float32 [V, D].

    An exam of several views pools them, and one foreign image among them would hardly show.

    Args:
        batch: on the device of the encoder.
    """
    rows_M2 = batch.view_mask_BV.nonzero()
    image_M1CHW = batch.image_BVCHW[rows_M2[:, 0], rows_M2[:, 1]][:, None]
    mask_M1 = batch.view_mask_BV.new_ones(len(rows_M2), 1)
    vectors_MD = _pooled(encoder(image_M1CHW, mask_M1)).float().cpu().numpy()
    ends = batch.view_mask_BV.sum(1).cumsum(0).tolist()
    return np.split(vectors_MD, ends[:-1])


def _pooled(features: Features) -> torch.Tensor:
    """One vector per exam, [B, D], also of an encoder that gives patches only."""
    if features.pooled_BD is not None:
        return features.pooled_BD
    mask_BN1 = features.patch_mask_BN[..., None].to(features.patches_BND.dtype)
    return (features.patches_BND * mask_BN1).sum(1) / mask_BN1.sum(1).clamp(min=1)


def write_features(
    accelerator: Accelerator,
    task: Any,
    components: RunComponents,
    recipe: Recipe,
    run: Path,
    before_batch: Callable[[], None] | None = None,
) -> None:
    """Writes both files of the run's model. Called on every process.

    Args:
        task: with the weights of the run's model, unsharded and in eval mode.
        before_batch: called before each batch, equally often on every process.
    """
    train, val = components.exams["train"], components.exams["val"]
    drawn = np.random.default_rng(recipe.train.seed).permutation(len(train))[:MOST_EXAMS]
    kept = sorted(drawn.tolist())
    training = _vectors(accelerator, task, train, kept, recipe, before_batch)
    validation = _vectors(accelerator, task, val, range(len(val)), recipe, before_batch)

    def write() -> None:
        statistics = FeatureStatistics.fit(training, validation)
        vectors_ND = np.stack([_exam_vector(statistics, vectors_VD) for vectors_VD in training])
        publish_model(run / "model", run / "model", {FEATURES: statistics.to_bytes()})
        exams = TrainingExams(vectors_ND, [(train.exams[i].id, train.exams[i].report) for i in kept])
        atomic_write(run / TRAINING_EXAMS, exams.to_bytes(_weights_digest(run / "model")))

    on_main(accelerator, write)


def write_missing_features(
    accelerator: Accelerator, task: Any, components: RunComponents, recipe: Recipe, run: Path
) -> None:
    """`write_features` for a model that was trained by an earlier version. Called on every process."""

    def missing() -> bool:
        return not (run / "model" / FEATURES).is_file() or not _is_of_model(run / TRAINING_EXAMS, run / "model")

    if on_main(accelerator, missing):
        print0(f"notice: writing {run / 'model' / FEATURES} and {run / TRAINING_EXAMS}, which the run lacks")
        write_features(accelerator, task, components, recipe, run)


@lost_workers_reported()
def _vectors(
    accelerator: Accelerator,
    task: Any,
    exams: ExamSet,
    kept: Sequence[int],
    recipe: Recipe,
    before_batch: Callable[[], None] | None,
) -> list[np.ndarray]:
    """`view_vectors` of the exams with the numbers `kept`, in their order, the same on every process."""
    size, processes = recipe.evaluate.batch_size, accelerator.num_processes
    batches = [list(kept[start : start + size]) for start in range(0, len(kept), size)]
    rounds = range(0, len(batches), processes)
    mine = batches[accelerator.process_index :: processes]
    loader = iter(build_loader(exams, mine, recipe.data.num_workers))
    found: list[tuple[str, np.ndarray]] = []
    for _ in progress_bar(rounds, total=len(rounds), text="features"):
        if before_batch is not None:
            before_batch()
        batch = next(loader, None)
        if batch is not None:  # else this process has none left
            found += zip(batch.exam_ids, view_vectors(task.encoder, batch.to(accelerator.device)), strict=True)
    by_id = dict(gather(accelerator, found))
    return [by_id[exams.exams[number].id] for number in kept]
