"""Draws the page of a run again, or one that compares several runs on the same exams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.build import build_exam_sets, build_scorer, build_tokenizer, run_recipe
from framework.checkpoint.export import verify_model
from framework.data.loading import ExamSet
from framework.evaluation.evaluate import paths_from
from framework.pages.compare_page import ComparedRun, Difference, draw_comparison
from framework.pages.run_data import ScoredExam, read_exams
from framework.pages.run_page import write_page
from framework.runtime.console import print0
from framework.runtime.errors import UserError
from framework.runtime.files import atomic_write, read_object
from framework.scoring.bootstrap import PatientStatistics
from framework.scoring.scorer import Rows
from framework.scoring.table import table_columns
from framework.scoring.variety import describe_variety, variety_summary


@dataclass(frozen=True)
class _PageParts:
    """What the page of a run takes of `RunComponents`."""

    exams: dict[str, ExamSet]
    tokenizer: Any


def draw_run(run: Path) -> Path:
    """Writes `run/report.html` again. Without the data set of the run, its page has no images.

    Raises:
        UserError: the run has no scores.
    """
    _require_scores(run)
    verify_model(run / "model")
    return write_page(run, _PageParts(_exams_of(run), build_tokenizer(run_recipe(run), [], run / "model")))


def compare_runs(runs: Sequence[Path], out: Path) -> Path:
    """Writes a page that compares runs on their test exams with the metrics of the first run.

    The interval of a difference to the first run is that of a paired bootstrap over patients, or over exams where the
    data set of the first run is not at hand.

    Raises:
        UserError: a run has no scores, or `exams-differ`: two runs have other test exams or references.
    """
    for run in runs:
        _require_scores(run)
        verify_model(run / "model")
    exams = [read_exams(run) for run in runs]
    for run, own in zip(runs[1:], exams[1:]):
        _require_same_exams(runs[0], exams[0], run, own)
    recipe, images = run_recipe(runs[0]), _exams_of(runs[0]).get("test")
    scorer = build_scorer(recipe, build_tokenizer(recipe, [], runs[0] / "model"))
    scorer.attributes = {exam.id: exam.attributes for exam in exams[0]}
    known = {} if images is None else {exam.id: exam.patient for exam in images.exams}
    ids = [exam.id for exam in exams[0]]
    patients = {exam_id: known.get(exam_id, exam_id) for exam_id in ids}
    statistics = PatientStatistics(scorer, ids, patients)
    bootstrap: Any = {"seed": recipe.train.seed, "bootstrap_samples": recipe.evaluate.bootstrap_samples}
    compared: list[ComparedRun] = []
    for run, own in zip(runs, exams):
        rows: Rows = [(exam.id, exam.report, exam.reference) for exam in own]
        values = scorer.score(rows)
        statistics.add(rows)
        differences = {}
        for name in table_columns({"model": values}) if compared else ():
            written, before = ([exam.report for exam in each] for each in (own, exams[0]))
            ends = statistics.difference(name, written, before, **bootstrap)
            differences[name] = Difference(values[name] - compared[0].values[name], ends)
        lines = describe_variety(variety_summary(scorer, rows))
        compared.append(ComparedRun(f"{run.parent.name} / {run.name}", own, values, differences, lines))
    columns = table_columns({"model": dict(compared[0].values)})
    higher = {name: scorer.higher_is_better(name.removesuffix("_char")) for name in columns}
    unit = "patients" if known else "exams"
    page = draw_comparison(compared, images, higher, f"scores on {scorer.segmentation}", unit)
    atomic_write(out, page)
    return out


def _require_scores(run: Path) -> None:
    path = run / "scores.json"
    hint = f"`launch.py evaluate {run}` scores it."
    if not path.is_file() or "test" not in read_object(path, hint):
        raise UserError("missing-input", "the run has no scores of test", place=run, hint=hint)


def _require_same_exams(first: Path, exams: Sequence[ScoredExam], run: Path, own: Sequence[ScoredExam]) -> None:
    before, now = ({exam.id: exam.reference for exam in each} for each in (exams, own))
    if only := before.keys() ^ now.keys():
        found = f"{len(only)} test exams are in one of the two runs only, such as {min(only)}"
    elif differing := [exam_id for exam_id in before if before[exam_id] != now[exam_id]]:
        found = f"{len(differing)} of {len(before)} test exams have other references, such as {differing[0]}"
    elif list(before) != list(now):
        found = "the test exams are in another order"
    else:
        return
    raise UserError(
        "exams-differ", found, place=run, expected=f"those of {first}", hint="Compare runs of one data set."
    )


def _exams_of(run: Path) -> dict[str, ExamSet]:
    """The exams of a run with their images; empty where its data set is not at hand."""
    recipe = run_recipe(run)
    try:
        return build_exam_sets(run_recipe(run, paths_from(run, recipe)))
    except UserError as error:
        if error.code != "no-such-file":
            raise
        print0(f"notice: the exams of {run} are not here, so the page has no images: {error.problems[0].found}")
        return {}
