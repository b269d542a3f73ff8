"""How unlike the training images an image is, and which training exams are nearest to an exam, by their features.

Training ends with these files, and `evaluate` writes them for a model that lacks one:

    RUN/model/features.safetensors   mean and whitening of `ViewFeatures`, from which no exam can be read
    RUN/training_exams.safetensors   vectors of at most `MOST_EXAMS` training exams, with ids and reports: patient
                                     data like RUN/predictions, so it is not in model/, which is passed on
    RUN/nearest_exams.json           ids of the nearest ones of at most `MOST_SCORED` test exams, for RUN/report.html

Shapes: B batch, V views of an exam, M of several exams, N training exams, C channels, H W image, D width, P layout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from framework.data.loading import ExamSet, lost_workers_reported
from framework.distributed.collectives import gather, on_main
from framework.evaluation.batches import batches_of_process, split_batches
from framework.exam import Batch, Features
from framework.recipe import Recipe
from framework.runtime.console import print0
from framework.runtime.errors import UserError
from framework.runtime.files import atomic_write, read_object, reading

TRAINING_EXAMS, NEAREST_EXAMS = "training_exams.safetensors", "nearest_exams.json"  # in a run's folder
AGAIN = "Delete it; `launch.py evaluate RUN` writes it again."
CELLS = 8  # rows and columns of a view's layout
PERCENTILE = 99  # of validation exams that are not reported as unlike the training images
MOST_EXAMS = 5_000  # training exams that are kept, drawn by the recipe's seed if there are more
MOST_SCORED = 2_000  # test exams whose nearest training exams are kept
NEAREST = 3  # training exams that a report names


class ViewFeatures(NamedTuple):
    """What the views of an exam are compared by.

    Attributes:
        encoder_VD: the encoder's features, which see textures and shapes.
        layout_VP: means and deviations of grey levels in `CELLS` x `CELLS` cells, which see where an image has what; an
            encoder loses that when it pools.
    """

    encoder_VD: np.ndarray
    layout_VP: np.ndarray


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of vectors, whose covariance is shrunk so that it is defined for few vectors."""

    mean_D: np.ndarray
    whitening_DD: np.ndarray

    @classmethod
    def fit(cls, vectors_MD: np.ndarray) -> Gaussian:
        mean_D, deviation_D = vectors_MD.mean(0, np.float64), vectors_MD.std(0, np.float64)
        # What hardly varies, such as black margins, would else outweigh everything.
        scale_D = np.maximum(deviation_D, max(float(deviation_D.mean()), 1e-12))
        fitted = LedoitWolf(assume_centered=True).fit((vectors_MD - mean_D) / scale_D)
        # L of the precision L L^T: the squared length of (x - mean) L is the squared distance.
        whitening_DD = np.linalg.cholesky(fitted.precision_) / scale_D[:, None]
        return cls(mean_D.astype(np.float32), whitening_DD.astype(np.float32))

    def whitened(self, vectors_MD: np.ndarray) -> np.ndarray:
        return (vectors_MD - self.mean_D) @ self.whitening_DD

    def distances(self, vectors_MD: np.ndarray) -> np.ndarray:
        """The distance of Mahalanobis of each vector, [M]."""
        return np.linalg.norm(self.whitened(vectors_MD), axis=1)

    def in_units_of(self, distance: float) -> Gaussian:
        return Gaussian(self.mean_D, self.whitening_DD / np.float32(max(distance, 1e-12)))


@dataclass(frozen=True)
class FeatureStatistics:
    """The distribution of the training views, by `ViewFeatures`.

    The distance of a view is the larger one of both distances. Each of them, and then their maximum, is in units of the
    distance that no view of `PERCENTILE` percent of the validation exams exceeds.

    Source:
        Lee et al. 2018, arXiv 1807.03888, equation 2, without classes; Ledoit and Wolf 2004, Journal of Multivariate
        Analysis 88, the shrinkage. The layout is ours.
    """

    encoder: Gaussian
    layout: Gaussian

    @classmethod
    def fit(cls, training: Sequence[ViewFeatures], validation: Sequence[ViewFeatures]) -> FeatureStatistics:
        """Statistics of training exams, in units of distances of validation exams."""
        fitted = [Gaussian.fit(np.concatenate(each)) for each in zip(*training)]
        parts = [
            part.in_units_of(_percentile(part.distances(vectors).max() for vectors in each))
            for part, each in zip(fitted, zip(*validation))
        ]
        both = cls(*parts)
        unit = _percentile(both.distances(views).max() for views in validation)
        return cls(both.encoder.in_units_of(unit), both.layout.in_units_of(unit))

    def distances(self, views: ViewFeatures) -> np.ndarray:
        """The distance of each view; above 1 it is unlike the training images. [V]"""
        return np.maximum(self.encoder.distances(views.encoder_VD), self.layout.distances(views.layout_VP))

    def to_bytes(self) -> bytes:
        return save(
            {
                f"{name}.{key}": getattr(part, key)
                for name, part in (("encoder", self.encoder), ("layout", self.layout))
                for key in ("mean_D", "whitening_DD")
            }
        )

    @classmethod
    def load(cls, model: Path, width: int, image_size: int) -> FeatureStatistics | None:
        """The statistics of a verified model; None if it was saved without.

        Args:
            width: of the encoder.

        Raises:
            ModelError: they are of another width or image size.
        """
        path = model / FEATURES
        if not path.is_file():
            return None
        arrays, _ = _read(path, COPY)
        sizes = {"encoder": width, "layout": layout(np.zeros((1, 1, image_size, image_size), np.uint8)).shape[1]}
        shapes = {name: array.shape for name, array in arrays.items()}
        expected: dict[str, tuple[int, ...]] = {f"{name}.mean_D": (size,) for name, size in sizes.items()}
        expected |= {f"{name}.whitening_DD": (size, size) for name, size in sizes.items()}
        if shapes != expected:
            raise ModelError("does-not-fit", f"found {shapes}", place=path, expected=f"{expected}", hint=COPY)
        return cls(*(Gaussian(arrays[f"{name}.mean_D"], arrays[f"{name}.whitening_DD"]) for name in sizes))


def _percentile(distances: Iterable[float]) -> float:
    return float(np.percentile(list(distances), PERCENTILE))


class NearExam(NamedTuple):
    """A training exam near an exam.

    Attributes:
        distance: of the exams' encoder features, in the unit of `FeatureStatistics.distances`.
    """

    id: str
    report: str
    distance: float


@dataclass(frozen=True)
class TrainingExams:
    """Ids and reports of training exams, with the whitened mean of the features of their views."""

    vectors_ND: np.ndarray
    exams: list[tuple[str, str]]

    def nearest(self, statistics: FeatureStatistics, views: ViewFeatures) -> tuple[NearExam, ...]:
        """The `NEAREST` exams to one with these views, the nearest first."""
        distances_N = np.linalg.norm(self.vectors_ND - _exam_vector(statistics, views), axis=1)
        order = np.argsort(distances_N, kind="stable")[:NEAREST]
        rows = zip([self.exams[i] for i in order], distances_N[order].tolist())
        return tuple(NearExam(exam_id, report, distance) for (exam_id, report), distance in rows)

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
        if statistics.encoder.mean_D.shape != (width,):
            found = f"vectors of {width} features beside a model of {len(statistics.encoder.mean_D)}"
            raise UserError("does-not-fit", found, place=path, hint=AGAIN)
        return cls(vectors_ND, exams)

    def to_bytes(self, weights: str) -> bytes:
        exams = json.dumps(self.exams, ensure_ascii=False)
        return save({"vectors": self.vectors_ND.astype(np.float16)}, {"weights": weights, "exams": exams})


def _exam_vector(statistics: FeatureStatistics, views: ViewFeatures) -> np.ndarray:
    return statistics.encoder.whitened(views.encoder_VD).mean(0)


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


def layout(image_VCHW: np.ndarray) -> np.ndarray:
    """Mean and deviation of the grey levels in each cell of the views, float32 [V, P].

    Rows and columns that do not fill a cell are left out.
    """
    size = image_VCHW.shape[-1]
    cell = max(1, size // CELLS)
    side = size // cell
    grey_VHW = image_VCHW[..., : side * cell, : side * cell].mean(1, np.float32) / 255
    cells = grey_VHW.reshape(-1, side, cell, side, cell)
    parts = (cells.mean((2, 4)), cells.std((2, 4)))
    return np.concatenate([part.reshape(len(image_VCHW), -1) for part in parts], 1)


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
    """Writes the files of the run's model. Called on every process.

    Args:
        task: with the weights of the run's model, unsharded and in eval mode.
        before_batch: called before each batch, equally often on every process.
    """
    train, val = components.exams["train"], components.exams["val"]
    drawn = np.random.default_rng(recipe.train.seed).permutation(len(train))[:MOST_EXAMS]
    kept = sorted(drawn.tolist())
    training = _features(accelerator, task, train, kept, recipe, before_batch)
    validation = _features(accelerator, task, val, range(len(val)), recipe, before_batch)
    test = components.exams.get("test")
    scored = range(0 if test is None else min(len(test), MOST_SCORED))
    test_features = [] if test is None else _features(accelerator, task, test, scored, recipe, before_batch)

    def write() -> None:
        statistics = FeatureStatistics.fit(training, validation)
        vectors_ND = np.stack([_exam_vector(statistics, views) for views in training])
        publish_model(run / "model", run / "model", {FEATURES: statistics.to_bytes()})
        exams = TrainingExams(vectors_ND, [(train.exams[i].id, train.exams[i].report) for i in kept])
        atomic_write(run / TRAINING_EXAMS, exams.to_bytes(_weights_digest(run / "model")))
        if test is not None:
            near = {
                test.exams[i].id: [near.id for near in exams.nearest(statistics, views)]
                for i, views in zip(scored, test_features)
            }
            atomic_write(run / NEAREST_EXAMS, json.dumps(near, ensure_ascii=False))

    on_main(accelerator, write)


def write_missing_features(
    accelerator: Accelerator, task: Any, components: RunComponents, recipe: Recipe, run: Path
) -> None:
    """`write_features` for a model that was trained by an earlier version. Called on every process."""

    def missing() -> bool:
        expected = [run / "model" / FEATURES, *([run / NEAREST_EXAMS] if "test" in components.exams else [])]
        return not all(path.is_file() for path in expected) or not _is_of_model(run / TRAINING_EXAMS, run / "model")

    if on_main(accelerator, missing):
        print0(f"notice: comparing the run's exams by their features, of which {run} lacks a file")
        write_features(accelerator, task, components, recipe, run)


@lost_workers_reported()
def _features(
    accelerator: Accelerator,
    task: Any,
    exams: ExamSet,
    kept: Sequence[int],
    recipe: Recipe,
    before_batch: Callable[[], None] | None,
) -> list[ViewFeatures]:
    """The features of the exams with the numbers `kept`, in their order, the same on every process."""
    processes = accelerator.num_processes
    batches = split_batches(kept, recipe.evaluate.batch_size)
    of_processes = [batches[rank::processes] for rank in range(processes)]
    found: list[tuple[str, ViewFeatures]] = []
    for batch in batches_of_process(accelerator, exams, recipe, of_processes, "features", before_batch):
        vectors = view_vectors(task.encoder, batch.to(accelerator.device))
        layouts = [layout(exams.cache.images(exam_id)) for exam_id in batch.exam_ids]
        found += zip(batch.exam_ids, map(ViewFeatures, vectors, layouts), strict=True)
    by_id = dict(gather(accelerator, found))
    return [by_id[exams.exams[number].id] for number in kept]
