"""Records beside a model which patients it was trained on, so that later stages are not scored on them.

Patients are stored as hashes of the data set's name and their id, so that a published model does not contain ids. A
short id can still be guessed from its hash: ids should mean nothing outside the data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from typing_extensions import TypedDict

from framework.data.loading import ExamSet
from framework.models.external_weights import read_metadata
from framework.recipe import Recipe
from framework.runtime.console import print0
from framework.runtime.errors import UserError

PATIENTS_FILE = "patients"  # metadata file beside a model, see ModelTexts
# A split that a model has seen -> splits of a later stage that must not contain its patients.
MUST_BE_UNSEEN = {"train": ("val", "test"), "val": ("test",)}


class Patients(TypedDict):
    """The metadata of a model: names of its data sets, and hashes of its patients by split."""

    datasets: list[str]
    train: list[str]
    val: list[str]


def patients_seen(recipe: Recipe, exams: Mapping[str, ExamSet], before: Path | None) -> dict[str, list[str]]:
    """`Patients` of a run.

    Args:
        before: the model that the run starts or resumes from, whose patients are included; None for a new model.
    """
    seen = {} if before is None else read_metadata(before, PATIENTS_FILE, Patients)
    dataset = recipe.data.dataset.name
    merged = {"datasets": sorted({*seen.get("datasets", ()), dataset})}
    return merged | {split: sorted({*seen.get(split, ()), *_hashes(dataset, exams[split])}) for split in MUST_BE_UNSEEN}


def require_unseen(
    used_by: str, model: Path, model_recipe: Recipe, recipe: Recipe, exams: Mapping[str, ExamSet]
) -> None:
    """Checks that a model was not trained or selected on patients of splits that it will be scored on.

    Prints a notice if the model has no record of this data set.

    Args:
        used_by: the command or key that uses the model, for messages.
        exams: the splits to check.

    Raises:
        UserError: it was trained on patients of val or test, or selected on patients of test.
    """
    dataset, seen = recipe.data.dataset, read_metadata(model, PATIENTS_FILE, Patients)
    if not seen and model_recipe.data.dataset == dataset:
        return  # written before models recorded patients, and with the same splits
    if dataset.name not in seen.get("datasets", ()):
        reason = f"was trained on the data sets {', '.join(seen['datasets'])} only" if seen else "records no patients"
        splits = " and ".join(split for split in ("val", "test") if split in exams)
        print0(
            f"notice: {used_by}: {model} {reason}, so its patients are not compared with {splits} of data set "
            f"'{dataset.name}'. Make sure that they are different people"
        )
        return
    for seen_split, splits_to_check in MUST_BE_UNSEEN.items():
        for split in (name for name in splits_to_check if name in exams):
            if common := _hashes(dataset.name, exams[split]) & set(seen.get(seen_split, ())):
                raise UserError(
                    "split-leak",
                    f"{len(common)} patients of {split} are in {seen_split} of {model}",
                    place=used_by,
                    hint=f"{_differing_keys(model_recipe, recipe)}Use the same splits. If they are different people "
                    "with the same ids, give them different ids.",
                )


def _differing_keys(model_recipe: Recipe, recipe: Recipe) -> str:
    """A sentence about the keys of the data set that may explain the leak; empty if there are none."""
    old, new = model_recipe.data.dataset, recipe.data.dataset
    if old.name != new.name:
        return ""  # the patients come from an earlier stage
    keys = [
        f"data.dataset.{key} ({old.keys.get(key)!r} there, {value!r} here)"
        for key, value in new.keys.items()
        if old.keys.get(key) != value
    ]
    return f"These keys differ: {', '.join(keys)}. " if keys else ""


def _hashes(dataset: str, exams: ExamSet) -> set[str]:
    return {
        hashlib.sha256(json.dumps([dataset, exam.patient], ensure_ascii=False).encode()).hexdigest()
        for exam in exams.exams
    }
