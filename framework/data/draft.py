"""Drafts a recipe for a table of exams: finds images, reports, exams, patients and splits by content and names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from framework.data.cells import id_of, text_of
from framework.data.check import SPLITS, nearest_split
from framework.data.image_folder import PATTERN, SUFFIXES, ImageFolder
from framework.data.patient_split import split_of
from framework.data.table_file import Table, read_table
from framework.recipe.source import SHIPPED
from framework.registry.types import TABLES
from framework.runtime.errors import UserError

SAMPLE = 100  # rows in which images are looked for
DEPTH = 3  # of folders below the one given
MOST_FOLDERS = 200
SHORTEST_REPORT = 8  # characters on average
LONGEST_ID = 64
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
BASE = f"{SHIPPED}base/sgf.yaml"
SEEDS = 100
MOST_HASHES = 1_000_000
TOPICS = 18  # of the base
BATCH = 16  # of the base
STEPS = 4  # of an epoch, at least
EXAMS_PER_TOPIC = 6  # of training
# Words in the names of columns: English, German, French, Spanish, Chinese.
REPORT = re.compile(r"report|finding|text|befund|compte|rapport|informe|hallazgo|所见|报告|诊断|描述", re.IGNORECASE)
EXAM = re.compile(
    r"exam|study|visit|accession|uid|untersuchung|auftrag|estudio|检查|流水|^(?!.*pat).*\bid$", re.IGNORECASE
)
PATIENT = re.compile(r"patient|subject|person|mrn|pid|paciente|病人|患者|病历|住院|门诊", re.IGNORECASE)


@dataclass
class Draft:
    """A recipe, and how it came about.

    Attributes:
        recipe: the text of the file.
        assumed: (what, how it was found).
        not_found: what a person should look at.
    """

    recipe: str
    assumed: list[tuple[str, str]]
    not_found: list[str]


@dataclass
class _Images:
    """Columns of images, and the folder and the prefix with which most of their files exist."""

    root: Path
    prefix: str | None = None
    columns: list[str] = field(default_factory=list)
    cells: int = 0
    files: int = 0  # cells whose file exists


def draft_recipe(source: Path) -> Draft:
    """A recipe for the table `source`, or for the table in this folder whose images are found.

    Raises:
        UserError: there is no table, or none with columns of images and reports.
    """
    file, table, images, others = _find_table(source)
    texts = {name: [text_of(_first(row.cells[name])) for row in table.rows] for name in table.columns if name}
    assumed = [("table", f"{file}{f' ({table.form})' if table.form else ''}, {len(table.rows)} rows")]
    not_found: list[str] = []
    where = f"{images.root}{f', in place of {images.prefix}' if images.prefix else ''}"
    assumed.append(("images", f"{_columns(images.columns)}: {images.files} of {images.cells} paths exist in {where}"))
    free = {name: values for name, values in texts.items() if name not in images.columns}
    report = _report(free, file)
    reports = free.pop(report)
    assumed.append(("report", f"column {report}: {_length(reports):.0f} characters on average"))
    columns: dict[str, Any] = {"image": images.columns if len(images.columns) > 1 else images.columns[0]}
    columns["report"] = report
    split, meaning = _split(free, not_found)
    if split is not None:
        free.pop(split)
    exam = _exam(free, reports)
    exams = [f"{number}" for number in range(len(table.rows))]
    if exam is not None:
        exams = [_id(value) or "" for value in free.pop(exam)]
        columns["exam"] = exam
        repeated = len(set(exams)) < len(exams)
        assumed.append(("exam", f"column {exam}: {'rows with the same value have one report' if repeated else 'ids'}"))
    else:
        not_found.append("a column of exam ids: each row is an exam")
    patient = _patient(free, exams)
    patients = exams
    if patient is not None:
        named = free.pop(patient)
        patients = [_id(value) or own for value, own in zip(named, exams)]
        columns["patient"] = patient
        assumed.append(("patient", f"column {patient}: {len(set(patients))} patients of {len(set(exams))} exams"))
        if nobody := named.count(None):
            not_found.append(f"the patient of {nobody} rows: each of their exams counts as another patient")
    else:
        not_found.append("a column of patients: each exam counts as a patient, so one person may be in two splits")
    dataset: dict[str, Any] = {"name": "table", "file": os.path.abspath(file), "columns": columns}  # noqa: PTH100 - keeps links
    if images.root != file.parent:
        dataset["images"] = os.path.abspath(images.root)  # noqa: PTH100
    if images.prefix is not None:
        dataset["prefix"] = images.prefix
    if split is not None:
        columns["split"] = split
        changed = {value: name for value, name in meaning.items() if value != name}
        if changed:
            dataset["splits"] = changed
        how = ", ".join(f"{value} is {name or 'left out'}" for value, name in changed.items())
        assumed.append(("splits", f"column {split}{f': {how}' if how else ''}"))
        train = len({each for each, value in zip(exams, texts[split]) if value and meaning[value] == "train"})
    else:
        seed, train = _seed(patients, exams)
        dataset |= {"shares": SHARES, "split_seed": seed}
        assumed.append(("splits", f"made by {'patient' if patient else 'exam'}, {SHARES}".replace("'", "")))
    if others:
        not_found.append(f"a use for {', '.join(map(str, others))}")
    if free:
        not_found.append(f"a use for {_columns(list(free))}")
    return Draft(_text(file, dataset, train), assumed, not_found)


def _find_table(source: Path) -> tuple[Path, Table, _Images, list[Path]]:
    """The table with the most images, where these are, and the other tables."""
    if not source.exists():
        raise UserError("no-such-file", "no such file or folder", place=source)
    folders = [source, *_folders(source)] if source.is_dir() else [source.parent, *_folders(source.parent)]
    files = [source]
    if source.is_dir():
        names = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLES]
        files = [path for path in names if path.is_file() and not path.name.startswith((".", "~$"))]
    if not files:
        has_json = any(path.suffix == ".json" for path in source.iterdir())
        hint = "The dataset 'manifest' reads JSON: docs/data.md." if has_json else ""
        raise UserError(
            "no-such-file",
            "no table in this folder",
            place=source,
            expected=f"a file with {', '.join(TABLES)}",
            hint=hint,
        )
    roots = [folder for folder in folders if any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())]
    best: tuple[Path, Table, _Images] | None = None
    errors: list[UserError] = []
    for file in files:
        try:
            table = read_table(file)
        except UserError as error:
            errors.append(error)
            continue
        images = _find_images(table, list(dict.fromkeys([file.parent, *roots, *(root.parent for root in roots)])))
        if images.columns and (best is None or images.files > best[2].files):
            best = file, table, images
        elif not images.columns:
            columns = ", ".join(f"{name} ({_example(table, name)})" for name in table.columns if name)
            found = f"no column has paths of images that exist. Columns: {columns}"
            expected = f"paths of images ({', '.join(SUFFIXES)}) in {folders[0]}"
            errors.append(UserError("no-such-file", found, place=file, expected=expected))
    if best is None:
        raise UserError.of(problem for error in errors for problem in error.problems)
    return *best, [file for file in files if file != best[0]]


def _find_images(table: Table, roots: Sequence[Path]) -> _Images:
    """The columns whose cells are names of images, and the folder and prefix with which most of these exist."""
    best = _Images(roots[0])
    names = {name: _image_names(table, name) for name in table.columns if name}
    names = {column: found for column, found in names.items() if found}
    folders = [ImageFolder(root) for root in roots]
    prefixes = list(dict.fromkeys(each for found in names.values() for each in _prefixes(found)))
    # Of equal ones the first: without a prefix, or else from the table's own folder.
    tries = [(folder, "") for folder in folders] + [(folder, prefix) for folder in folders for prefix in prefixes]
    for folder, prefix in tries:
        now = _Images(folder.root, prefix.rstrip("/") or None)
        for column, found in names.items():
            count = sum(folder.has(name.removeprefix(prefix)) for name in found)
            if 2 * count > len(found):
                now.columns.append(column)
                now.cells += len(found)
                now.files += count
        if now.files > best.files:
            best = now
    return best


def _image_names(table: Table, column: str) -> list[str]:
    """The cells of a column, in the first rows, if most are names or patterns of images."""
    cells = [text_of(_first(row.cells[column])) for row in table.rows[:SAMPLE]]
    names = [name.replace("\\", "/") for name in cells if name is not None]
    like = [name for name in names if name.lower().endswith(SUFFIXES) or PATTERN.search(name)]
    return names if 2 * len(like) > len(names) else []


def _prefixes(names: Sequence[str]) -> Iterator[str]:
    """The folders in which all paths of a column are, the innermost first: parts of another machine's."""
    parts = [name.split("/")[:-1] for name in names]
    shared = [len(set(level)) == 1 for level in zip(*parts)]
    common = parts[0][: [*shared, False].index(False)] if parts else []
    for length in range(len(common), 0, -1):
        if any(common[:length]):
            yield "/".join(common[:length]) + "/"


def _report(texts: dict[str, list[str | None]], file: Path) -> str:
    """The column with the longest texts; among those named like a report, if there are any."""
    long = [name for name, values in texts.items() if _length(values) >= SHORTEST_REPORT]
    named = [name for name in long if REPORT.search(name)]
    if not long:
        columns = ", ".join(texts) or "none"
        raise UserError(
            "empty-report", f"no column has reports, texts of some words. Other columns: {columns}", place=file
        )
    return max(named or long, key=lambda name: _length(texts[name]))


def _split(texts: dict[str, list[str | None]], not_found: list[str]) -> tuple[str | None, dict[str, str | None]]:
    """The column whose values are names of all three splits, and what they mean."""
    for name, values in texts.items():
        meaning = {value: nearest_split(value) for value in dict.fromkeys(values) if value is not None}
        known = set(meaning.values()) - {None}
        if known == set(SPLITS) and None not in values and len(meaning) <= LONGEST_ID:
            return name, meaning
        if len(known) > 1:
            not_found.append(f"split {', '.join(sorted(set(SPLITS) - known))} in column {name}, which is not used")
    not_found.append("a column with train, val and test")
    return None, {}


def _exam(texts: dict[str, list[str | None]], reports: Sequence[str | None]) -> str | None:
    """The column of ids of which each has one report; among those named like an exam, if there are any."""
    fitting = []
    for name, values in texts.items():
        found: dict[str, set[str]] = {}
        for value, report in zip(values, reports):
            found.setdefault(_id(value) or "", set()).update([report] if report else [])
        if _is_id(values) and all(len(each) == 1 for each in found.values()):
            fitting.append((name, len(found)))
    named = [name for name, _ in fitting if EXAM.search(name)]
    grouping = [name for name, count in fitting if count < len(reports) and not PATIENT.search(name)]
    return next(iter([*named, *grouping]), None)


def _patient(texts: dict[str, list[str | None]], exams: Sequence[str]) -> str | None:
    """The column named like a patient, with one value for each exam."""
    for name, values in texts.items():
        patients: dict[str, set[str | None]] = {}
        for exam, value in zip(exams, values):
            patients.setdefault(exam, set()).add(value)
        if PATIENT.search(name) and any(values) and all(len(each) == 1 for each in patients.values()):
            return name
    return None


def _seed(patients: Sequence[str], exams: Sequence[str]) -> tuple[int, int]:
    """The seed whose numbers of exams are nearest to the shares, and its number of training exams."""
    pairs = set(zip(exams, patients))

    def off(counts: Counter[str]) -> float:
        return sum(abs(counts[name] - share * len(pairs)) for name, share in SHARES.items())

    counts = [
        Counter(split_of(patient, SHARES, seed) for _, patient in pairs)
        for seed in range(max(1, min(SEEDS, MOST_HASHES // len(pairs))))
    ]
    seed = min(range(len(counts)), key=lambda each: off(counts[each]))
    return seed, counts[seed]["train"]


def _text(file: Path, dataset: dict[str, Any], train: int) -> str:
    topics = max(2, min(TOPICS, train // EXAMS_PER_TOPIC))
    recipe: dict[str, Any] = {"data": {"dataset": dataset, "augment": {"name": "jitter"}}}
    if topics < TOPICS:
        recipe["distiller"] = {"topics": topics}
    batch = min(BATCH, 2 ** max(0, (train // STEPS).bit_length() - 1))
    if batch < BATCH:
        recipe["train"] = {"batch_size": batch}
    written = yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False, width=100, default_flow_style=None)
    head = f"# The exams of {file.name}, drafted by `launch.py data init`; docs/data.md explains the keys."
    return f"{head}\n_base_: {BASE}\n{written}"


def _is_id(values: Sequence[str | None]) -> bool:
    return all(value is not None and len(value) <= LONGEST_ID for value in values)


def _id(value: str | None) -> str | None:
    try:
        return id_of(value)
    except ValueError:
        return value


def _first(cell: Any) -> Any:
    """The value of a cell, or the first of a list of JSON Lines or Parquet."""
    return cell if not isinstance(cell, list) else cell[0] if cell else None


def _length(values: Sequence[str | None]) -> float:
    found = [len(value) for value in values if value is not None]
    return sum(found) / max(1, len(found))


def _example(table: Table, name: str) -> str:
    return next((text[:40] for row in table.rows if (text := text_of(_first(row.cells[name])))), "empty")


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' * (len(names) != 1)} {', '.join(names)}"


def _folders(source: Path, depth: int = DEPTH) -> list[Path]:
    """The folders below one, up to a depth."""
    inner = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    found = [each for path in inner for each in [path, *(_folders(path, depth - 1) if depth > 1 else [])]]
    return found[:MOST_FOLDERS]
