"""Generates the reports of many exams and writes them as JSON Lines, which an interrupted command continues."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from framework.checkpoint.export import COPY, FEATURES, MANIFEST, WEIGHTS
from framework.data.image_file import inside
from framework.data.image_folder import SUFFIXES, by_number
from framework.evaluation.model_selection import BEST, ModelSelection
from framework.evaluation.predict import Predictor
from framework.exam import ExamError
from framework.runtime.console import print0
from framework.runtime.errors import Problem, UserError
from framework.runtime.files import atomic_write, named_in_errors, read_bounded, read_lines, read_object
from framework.runtime.live import ProgressBar
from framework.runtime.memory import is_out_of_memory
from framework.text.findings.confidence import Finding

IDS, IMAGES = ("uid", "id"), ("image_path", "images", "image")  # keys of an exam, as the data set `manifest` reads them
EXPECTED = '{"id": "7", "images": ["7_1.png", "7_2.png"]}'
LARGEST = 1_000_000_000  # bytes of the file of exams


@dataclass(frozen=True)
class ListedExam:
    """An exam without a report: its id, and the names of its images in a folder."""

    id: str
    folder: Path
    images: tuple[str, ...]

    def files(self) -> list[Path]:
        """The paths of the images. Raises UserError if there is none, or one is outside of the folder."""
        if not self.images:
            raise UserError("broken-image", "the folder has no image", place=self.folder, expected=", ".join(SUFFIXES))
        try:
            return [inside(self.folder, name) for name in self.images]
        except ValueError as error:
            raise UserError("no-such-file", str(error)) from None


def list_exams(path: Path, images: Path | None = None) -> list[ListedExam]:
    """The exams of a file or folder.

    Args:
        path: JSON Lines of `EXPECTED`; a file as the data set `manifest` reads it, of all splits; or a folder, in which
            each folder is an exam with its images in the order of their names, or each image is an exam if there is no
            folder.
        images: the folder to which the names in a file are relative; None is the folder of the file.

    Raises:
        UserError: there is no exam, or an exam has no id, no list of images, or the id of another one.
    """
    exams = _from_folder(path) if path.is_dir() else list(_from_file(path, images or path.parent))
    if not exams:
        raise UserError("empty-split", "no exams", place=path, expected=f"images, or lines such as {EXPECTED}")
    counts = Counter(exam.id for exam in exams)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UserError.of(Problem("duplicate-id", "two exams have this id", f"{path}, exam {name}") for name in twice)
    return exams


def _from_folder(path: Path) -> list[ListedExam]:
    entries = _in_order(entry for entry in path.iterdir() if not entry.name.startswith("."))
    loose = [entry.name for entry in entries if _is_image(entry)]
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        return [ListedExam(name, path, (name,)) for name in loose]
    if loose:
        print0(f"notice: {path}: {len(loose)} images beside the folders belong to no exam, such as {loose[0]}")
    inner = {folder: _in_order(filter(_is_image, folder.iterdir())) for folder in folders}
    return [ListedExam(folder.name, folder, tuple(each.name for each in images)) for folder, images in inner.items()]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")


def _in_order(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: by_number(path.name))


def _from_file(path: Path, folder: Path) -> Iterator[ListedExam]:
    try:
        text = read_bounded(path, LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("unreadable-file", f"not UTF-8 at byte {error.start}", place=path) from None
    problems: list[Problem] = []
    for place, entry in _entries(path, text):
        entry = entry if isinstance(entry, dict) else {}
        exam_id = next((entry[key] for key in IDS if entry.get(key) is not None), None)
        images = next((entry[key] for key in IMAGES if entry.get(key) is not None), None)
        images = [images] if isinstance(images, str) else images
        if isinstance(exam_id, bool) or not isinstance(exam_id, (str, int)):
            problems.append(Problem("missing-key", f"the exam has no {' or '.join(IDS)}", place, EXPECTED))
        elif not (isinstance(images, list) and images and all(isinstance(name, str) for name in images)):
            problems.append(Problem("missing-key", f"the exam has no {' or '.join(IMAGES)}", place, EXPECTED))
        else:
            yield ListedExam(str(exam_id), folder, tuple(images))
    if problems:
        raise UserError.of(problems)


def _entries(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The exams of a file, each with its place."""
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"{path}:{number}", _parsed(line, path, number)
        return
    found = _parsed(text, path, 1)
    splits = {"the list": found} if isinstance(found, list) else found
    if not isinstance(splits, dict) or not all(isinstance(entries, list) for entries in splits.values()):
        raise UserError("wrong-type", "neither a list of exams nor one for each split", place=path, expected=EXPECTED)
    for split, entries in splits.items():
        for number, entry in enumerate(entries, 1):
            yield f"{path}, number {number} of {split}", entry


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}:{error.colno}"
        hint = "A file of one exam per line is named .jsonl." if "Extra data" in error.msg else ""
        raise UserError("wrong-format", f"not JSON: {error.msg}", place=place, hint=hint) from None
    except RecursionError:
        raise UserError("wrong-format", "nested too deeply", place=f"{path}:{line}") from None


def predict_exams(
    run: Path,
    exams: Sequence[ListedExam],
    out: Path,
    num_beams: int | None = None,
    selection: ModelSelection = BEST,
    batch_size: int | None = None,
    unsure: float | None = None,
) -> None:
    """Appends a line to `out` for each exam that it does not contain: `{id, report, model}`, with `warnings` if there
    are any, or `{id, error, model}`.

    Lines with an error are removed first, so that these exams are tried again.

    Args:
        unsure: adds `unsure` to each line, the findings with less confidence: `{finding, confidence, words}`; None does
            not.
        batch_size: exams at a time; None takes the recipe's `evaluate.batch_size`.

    Raises:
        UserError: `out` is of another model; or, after all other exams are done, images cannot be used.
    """
    predictor = Predictor(run, num_beams, selection)
    model = _model_key(run, selection, predictor)
    size = batch_size or predictor.recipe.evaluate.batch_size
    with _opened(out):
        done = _done(out, model)
    todo = [exam for exam in exams if exam.id not in done]
    errors: list[Problem] = []
    bar = ProgressBar(todo, total=len(exams), text="exams", done=len(exams) - len(todo))
    with bar, _opened(out) as file:
        for start in range(0, len(todo), size):
            rows = _predicted(predictor, todo[start : start + size], errors, unsure)
            file.write("".join(json.dumps({**row, "model": model}, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            bar.update(len(rows))
    print0(f"{len(todo) - len(errors)} reports written to {out}, {len(exams) - len(todo)} were there")
    if errors:
        raise UserError.of(errors)


@contextmanager
def _opened(out: Path) -> Iterator[TextIO]:
    """Opens a file to append to, which no other process can open meanwhile."""
    with named_in_errors(out), out.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("in-use", "another process is writing to this file", place=out) from None
        yield file


def _predicted(
    predictor: Predictor, exams: Sequence[ListedExam], errors: list[Problem], unsure: float | None
) -> list[dict[str, Any]]:
    """A row for each exam, and a problem in `errors` for each that cannot be used."""
    found: dict[str, dict[str, Any]] = {}
    images = {}
    for exam in exams:
        try:
            images[exam.id] = predictor.load(exam.files())
        except UserError as error:
            reason = error.problems[0].message
            errors += ExamError(exam.id, error.code, reason).problems
            found[exam.id] = {"id": exam.id, "error": reason}
    try:
        reports = predictor.reports_of(list(images.values()), words=unsure is not None) if images else []
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        hint = f"Set --batch-size {max(1, len(images) // 2)}, or a smaller --num-beams."
        raise UserError("out-of-memory", f"{len(images)} exams at a time", place="--batch-size", hint=hint) from error
    for exam_id, report in zip(images, reports, strict=True):
        found[exam_id] = {"id": exam_id, "report": report.text}
        if report.warnings:
            found[exam_id]["warnings"] = list(report.warnings)
        if unsure is not None:
            found[exam_id]["unsure"] = finding_rows(report.unsure(unsure))
    return [found[exam.id] for exam in exams]


def finding_rows(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings as JSON holds them."""
    return [
        {"finding": f"{each}", "confidence": each.confidence and round(each.confidence, 4), "words": each.words}
        for each in findings
    ]


def _model_key(run: Path, selection: ModelSelection, predictor: Predictor) -> str:
    """12 hex digits that change with the models and the search."""
    folders = [run if (run / WEIGHTS).is_file() else run / "model", *(other / "model" for other in selection.others)]
    search = {**predictor.recipe.evaluate.search, "num_beams": predictor.num_beams}
    manifests = [read_object(folder / MANIFEST, COPY) for folder in folders]
    for manifest in manifests:
        manifest.pop(FEATURES, None)  # `evaluate` adds it to a model that lacks it
    key = [manifests, selection.average, selection.ensemble, search]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def _done(out: Path, model: str) -> set[str]:
    """The ids of the exams with a report in `out`, from which a line that was cut short and errors are removed."""
    lines, done, kept = read_lines(out, errors="replace"), set[str](), []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            continue
        try:
            row = json.loads(line)
            exam_id, by, is_report = str(row["id"]), row["model"], "report" in row
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            hint = "Name another file, or delete the line."
            raise UserError("damaged-file", f"not a report ({error!r})", place=f"{out}:{number}", hint=hint) from None
        if by != model:
            raise UserError(
                "conflicting-settings", f"the report is by model {by}, and this is model {model}",
                place=f"{out}:{number}", hint="Name another file: the run, its model or the beam width differs.",
            )  # fmt: skip
        if is_report:
            done.add(exam_id)
            kept.append(line)
    if len(kept) < len(lines):
        atomic_write(out, "".join(kept))
    return done
