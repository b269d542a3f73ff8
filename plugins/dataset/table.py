"""Exams in a table, as hospitals export them: CSV, TSV, Excel, Parquet or JSON Lines, with a folder of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from framework.data.cells import id_of, text_of
from framework.data.check import SPLITS, DatasetError, nearest_split
from framework.data.columns import named_columns, require_columns, shares_problems, split_leaks
from framework.data.image_file import FileView, files_key, is_absolute
from framework.data.image_folder import ImageFolder, searched
from framework.data.patient_split import split_of
from framework.data.table_file import LARGEST, Row, Table, read_table
from framework.exam import Exam
from framework.registry import did_you_mean, register
from framework.registry.types import Fraction, TableFile
from framework.runtime.console import print0
from framework.runtime.errors import Problem, UserError
from framework.runtime.files import read_bounded

KEY = "data.dataset"


@dataclass
class _Draft:
    """An exam of which some rows are read."""

    place: str
    patient: str
    split: str
    report: str | None
    images: dict[str, str] = field(default_factory=dict)  # name -> place of its row


@register("dataset", "table")
class ExamTable:
    """Your own exams: a table from Excel, a database or pandas, and a folder of images.

    A row is an image, or an exam with several columns of images, or with a pattern such as `17/*.png`. Rows with the
    same exam id are views of one exam, and their reports must agree; a report that is empty in all rows but one counts
    for all. Without a column `exam`, each row is an exam with the name of its first image. 17.0 as an id is 17; empty
    cells, `NaN`, `NULL`, `None`, `NA` and `N/A` are missing values; rows without any value do not count.

    Splits are those of a column, or `shares` of the patients. The split of a patient then depends on `split_seed` and
    the patient's id alone, so that new patients leave the others where they are.

    Source:
        CSV as in RFC 4180; missing values as `read_csv` of pandas reads them.

    Args:
        file: CSV, TSV or JSON Lines; Excel (.xlsx) and Parquet need sonoscribe[table].
        columns: Names of the columns: `image` (one name or a list) and `report`; optional are `exam`, `patient` (who
            appears in only one split; without it, each exam is another patient) and `split`.
        images: Folder from which image names count; null for the folder of the table.
        prefix: Start of the image names in the table that stands for `images`, such as `D:\\export`.
        splits: Split of each other value of the column `split` than train, val and test; null leaves its rows out.
        shares: Shares of train, val and test among patients, in place of a column `split`; their sum is 1.
        split_seed: Seed of the assignment of patients by `shares`.
        encoding: Encoding of a text file, such as gb18030; null: found among UTF-8, UTF-16, GB18030 and Latin-1.
        separator: Separator of a text file; null: found.
        sheet: Sheet of a workbook; null for the first.
        window: Values of 16-bit and floating-point images that become black and white, such as [0, 4095]; null: 0 and
            the largest value of 8, 10, 12, 14 or 16 bits, by the file.
        get_from: Source of these exams, printed if they are missing.
    """

    def __init__(
        self,
        *,
        file: TableFile,
        columns: dict[Literal["image", "report", "exam", "patient", "split"], str | list[str]],
        images: str | None = None,
        prefix: str | None = None,
        splits: dict[str, Literal["train", "val", "test"] | None] | None = None,
        shares: dict[Literal["train", "val", "test"], Fraction] | None = None,
        split_seed: int = 0,
        encoding: str | None = None,
        separator: Literal["comma", "semicolon", "tab", "bar"] | None = None,
        sheet: str | None = None,
        window: tuple[float, float] | None = None,
        get_from: str | None = None,
    ) -> None:
        self.file = Path(file)
        self.folder = ImageFolder(self.file.parent if images is None else Path(images), window)
        self.prefix = None if prefix is None else _slashed(prefix).rstrip("/") + "/"
        self.form = {"encoding": encoding, "separator": separator, "sheet": sheet}
        self.meaning: Mapping[str, str | None] = {**{name: name for name in SPLITS}, **(splits or {})}
        self.shares: Mapping[str, float] | None = dict(shares.items()) if shares is not None else None
        self.split_seed = split_seed
        self.get_from = "" if get_from is None else f"Get it from {get_from}."
        self.image_columns, self.columns, problems = named_columns(dict(columns.items()), KEY)
        if ("split" in columns) == (shares is not None):
            code, found = ("conflicting-settings", "both") if shares is not None else ("missing-key", "neither")
            found = f"{found} {KEY}.columns.split and {KEY}.shares are set"
            hint = "Example: shares: {train: 0.7, val: 0.1, test: 0.2}"
            problems.append(Problem(code, found, f"{KEY}.shares", "one of the two", hint))
        problems += shares_problems(self.shares, KEY)
        if splits and "split" not in columns:
            problems.append(Problem("ignored-setting", "there is no column of splits", f"{KEY}.splits"))
        if problems:
            raise UserError.of(problems)

    def splits(self) -> dict[str, Sequence[Exam]]:
        """The exams in the order of the table. Checks that the images exist, and prints how the table was read.

        Raises:
            UserError: the file or folder is missing, unreadable, or lacks a column; or rows cannot be used, with one
                problem for each.
        """
        return self._splits

    def reports(self) -> dict[str, list[str]]:
        """The reports of each split, whether or not the images are on this machine.

        Raises:
            UserError: as `splits`, except for images.
        """
        found, _ = self._list(images=False)
        return {split: [exam.report for exam in exams] for split, exams in found.items()}

    @property
    def cache_key(self) -> str:
        """Hash of the file, and of name, size and time of every image."""
        return f"table-{files_key(read_bounded(self.file, LARGEST), self._splits)}"

    @cached_property
    def _splits(self) -> dict[str, Sequence[Exam]]:
        found, summary = self._list(images=True)
        print0(summary)
        return found

    def _list(self, *, images: bool) -> tuple[dict[str, Sequence[Exam]], str]:
        table = self._read()
        if images and not self.folder.root.is_dir():
            found = f"no such folder of images ({KEY}.images){searched(self.folder.root)}"
            raise UserError("no-such-file", found, place=self.folder.root, hint=self.get_from)
        problems = list(table.problems)
        drafts: dict[str, _Draft] = {}
        unknown: dict[str, list[str]] = {}  # values of the column of splits, and the places of their rows
        left_out: Counter[str] = Counter()
        for row in table.rows:
            try:
                self._add(row, drafts, unknown, left_out)
            except UserError as error:
                problems.append(error)
        problems += [self._unknown_split(value, places) for value, places in unknown.items()]
        exams: dict[str, list[Exam]] = {name: [] for name in SPLITS}
        for exam_id, draft in drafts.items():
            views = self._views(draft, problems) if images else []
            if draft.report is None:
                found = f"exam {exam_id} has no {self.columns['report']}"
                problems.append(UserError("empty-report", found, place=draft.place))
            exams[draft.split].append(Exam(exam_id, draft.patient, tuple(views), draft.report or ""))
        problems += split_leaks((draft.patient, draft.split, draft.place) for draft in drafts.values())
        counts = ", ".join(f"{name} {len(found)}" for name, found in exams.items())
        if problems:
            raise DatasetError.of_exams(sorted(problems, key=_row_number), self.file, exams)
        if empty := [name for name in SPLITS if not exams[name]]:
            way = "take another split_seed or other shares" if self.shares else f"see {KEY}.splits"
            found = f"split {', '.join(empty)} has no exams ({counts})"
            raise UserError("empty-split", found, place=self.file, hint=f"Add exams, or {way}.")
        left = "".join(f"; left out: {count} row{'s' * (count != 1)} of {value}" for value, count in left_out.items())
        empty_rows = f"; {table.empty} empty row{'s' * (table.empty != 1)}" if table.empty else ""
        by = (
            f"by {'patient' if 'patient' in self.columns else 'exam'}, seed {self.split_seed}"
            if self.shares
            else "given"
        )
        form = f" ({table.form})" if table.form else ""
        summary = f"{self.file.name}{form}: {len(table.rows)} rows{empty_rows}{left}; splits {by}: {counts}"
        return {name: tuple(found) for name, found in exams.items()}, summary

    def _read(self) -> Table:
        """The table. Raises UserError if it lacks a column."""
        try:
            table = read_table(self.file, **self.form)
        except FileNotFoundError:
            beside = [str(path) for path in self.file.parent.iterdir()] if self.file.parent.is_dir() else []
            hint = f"{self.get_from}{did_you_mean(str(self.file), beside)}".strip()
            found = f"no such table ({KEY}.file){searched(self.file)}"
            raise UserError("no-such-file", found, place=self.file, hint=hint) from None
        require_columns(self.image_columns, self.columns, table.columns, self.file.name, KEY)
        return table

    def _add(self, row: Row, drafts: dict[str, _Draft], unknown: dict[str, list[str]], left_out: Counter[str]) -> None:
        """Adds a row to its exam. Raises UserError if the row cannot be used."""
        value = self._text(row, "split") if "split" in self.columns else None
        if "split" in self.columns and value is None:
            raise UserError(
                "missing-key", f"no {self.columns['split']}", place=row.place, expected="train, val or test"
            )
        if value is not None and value not in self.meaning:
            unknown.setdefault(value, []).append(row.place)
            return
        if value is not None and self.meaning[value] is None:
            left_out[value] += 1
            return
        names = [name for column in self.image_columns for name in self._names(row, column)]
        if not names:
            raise UserError(
                "missing-key", f"no {' or '.join(self.image_columns)}", place=row.place, expected="an image"
            )
        exam_id = self._id(row, "exam") if "exam" in self.columns else names[0].rpartition(".")[0] or names[0]
        if exam_id is None:
            raise UserError("missing-key", f"no {self.columns['exam']}", place=row.place, expected="the id of an exam")
        patient = self._id(row, "patient") if "patient" in self.columns else None
        report = self._text(row, "report")
        split = self.meaning[value] if value is not None else None
        if split is None:
            assert self.shares is not None
            split = split_of(patient or exam_id, self.shares, self.split_seed)
        draft = drafts.setdefault(exam_id, _Draft(row.place, patient or exam_id, split, report))
        now = {"patient": patient or exam_id, "split": split, "report": report}
        for key, found in now.items():
            earlier = getattr(draft, key)
            if key == "report" and (found is None or earlier is None):
                draft.report = earlier or found
            elif found != earlier:
                what = f"exam {exam_id} has another {self.columns.get(key, key)} than in {draft.place}"
                hint = "" if "exam" in self.columns else f"Set {KEY}.columns.exam if rows are views of one exam."
                raise UserError("conflicting-settings", what, place=row.place, hint=hint)
        if twice := [name for name in names if name in draft.images]:
            raise UserError("duplicate-id", f"exam {exam_id} has the image {twice[0]} twice", place=row.place)
        draft.images |= dict.fromkeys(names, row.place)

    def _views(self, draft: _Draft, problems: list[UserError]) -> list[FileView]:
        views: list[FileView] = []
        for name, place in draft.images.items():
            try:
                views += self.folder.views(name)
            except UserError as error:
                (found,) = error.problems
                hint = f"{found.hint} {KEY}.prefix removes the start of a path." if is_absolute(name) else found.hint
                problems.append(UserError(found.code, found.found, place=place, hint=hint.strip()))
        return views

    def _names(self, row: Row, column: str) -> list[str]:
        """The names of images in a cell: one, or in JSON Lines and Parquet a list."""
        cell = row.cells[column]
        names = [text_of(value) for value in (cell if isinstance(cell, list) else [cell])]
        return [self._without_prefix(name) for name in names if name is not None]

    def _without_prefix(self, name: str) -> str:
        name = _slashed(name)
        has_prefix = self.prefix is not None and name.casefold().startswith(self.prefix.casefold())
        return name[len(self.prefix or "") :] if has_prefix else name

    def _text(self, row: Row, key: str) -> str | None:
        return text_of(row.cells[self.columns[key]])

    def _id(self, row: Row, key: str) -> str | None:
        try:
            return id_of(row.cells[self.columns[key]])
        except ValueError as error:
            hint = "Format the column as text before the ids are entered, and export it again."
            raise UserError("wrong-format", f"{self.columns[key]}: {error}", place=row.place, hint=hint) from None

    def _unknown_split(self, value: str, places: list[str]) -> UserError:
        near = nearest_split(value)
        add = f"{KEY}.splits: {{{value}: {near or 'null'}}}"
        hint = f"Did you mean {near}? Set {add}" if near else f"{add} leaves these rows out."
        found = f"{len(places)} rows have the {self.columns['split']} '{value}', first in {places[0]}"
        return UserError(
            "unknown-name", found, place=f"column {self.columns['split']}", expected=", ".join(SPLITS), hint=hint
        )


def _row_number(error: UserError) -> int:
    number = error.place.rpartition(" ")[2]
    return int(number) if number.isdecimal() else 0


def _slashed(name: str) -> str:
    return name.replace("\\", "/")
