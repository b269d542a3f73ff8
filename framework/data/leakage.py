"""Which patients a model has seen, told beside it, so that nothing which builds on it is scored on them.

Patients are told as hashes of the data set's name and their id, which keeps names out of what is handed on. Whoever can
guess an id can still look it up; a data set's ids should mean nothing outside of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from framework.data.loading import ExamSet
from framework.models.external_weights import read_metadata
from framework.recipe import Recipe
from framework.runtime.console import print0

NOTES = "patients"  # beside a model, see ModelTexts
# What a model learns from and what it is chosen by, and the splits of a later stage that must not be among them.
SCORED = {"train": ("val", "test"), "val": ("test",)}


def _hash_of(dataset: str, patient: str) -> str:
    return hashlib.sha256(json.dumps([dataset, patient], ensure_ascii=False).encode()).hexdigest()


def patients_seen(recipe: Recipe, exams: Mapping[str, ExamSet], before: Path | None) -> dict[str, list[str]]:
    """What is told beside a model: data sets, and hashes of the patients by split.

    Args:
        before: the model that the run begins with or goes on from, whose patients were seen too; None: it begins anew.
    """
    told = {} if before is None else read_metadata(before, NOTES)
    dataset = recipe.data.dataset.name
    found = {"datasets": sorted({*told.get("datasets", ()), dataset})}
    return found | {split: sorted({*told.get(split, ()), *_hashes(dataset, exams[split])}) for split in SCORED}


def require_unseen(asked: str, model: Path, before: Recipe, recipe: Recipe, exams: Mapping[str, ExamSet]) -> None:
    """Holds a run's splits to the patients that another model has seen. What cannot be told is said.

    Args:
        asked: what asks for that model, for messages.
        before: the model's recipe.
        exams: the splits that are looked at.

    Raises:
        ValueError: it has learned from patients of val or test, or was chosen by patients of test.
    """
    dataset, told = recipe.data.dataset, read_metadata(model, NOTES)
    if not told and before.data.dataset == dataset:
        return  # written before models told their patients, and split as here
    if dataset.name not in told.get("datasets", ()):
        of = f"has seen data sets of '{', '.join(told['datasets'])}' alone" if told else "does not tell its patients"
        scored = " and ".join(split for split in ("val", "test") if split in exams)
        print0(
            f"notice: {asked}: {model} {of}, so they are not compared with those of this run's {scored} (dataset "
            f"'{dataset.name}'); see to it that none is in both"
        )
        return
    for seen, splits in SCORED.items():
        for split in (name for name in splits if name in exams):
            if shared := _hashes(dataset.name, exams[split]) & set(told.get(seen, ())):
                raise ValueError(
                    f"{asked}: {len(shared)} patients of this run's {split} were in {seen} of {model}, so {split} "
                    f"would tell nothing.{_differing(before, recipe)} Take the same splits; or, where these are other "
                    "people with the same ids, give them ids of their own"
                )


def _differing(before: Recipe, recipe: Recipe) -> str:
    theirs, ours = before.data.dataset, recipe.data.dataset
    if theirs.name != ours.name:
        return ""  # they were seen in a stage before
    words = [
        f"data.dataset.{key} ({theirs.keys.get(key)!r} there, {value!r} here)"
        for key, value in ours.keys.items()
        if theirs.keys.get(key) != value
    ]
    return f" These differ: {', '.join(words)}." if words else ""


def _hashes(dataset: str, exams: ExamSet) -> set[str]:
    return {_hash_of(dataset, exam.patient) for exam in exams.exams}
