"""Exams in one JSON file with a folder of images: the format of the published reports, and of R2Gen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from framework.data.cells import present
from framework.data.check import SPLIT_ALIASES, SPLITS, DatasetError
from framework.data.image_file import FileView, files_key
from framework.data.image_folder import ImageFolder, searched
from framework.exam import Exam, ExamError
from framework.registry import did_you_mean, register
from framework.registry.types import JsonFile
from framework.runtime.errors import UserError
from framework.runtime.files import read_bounded

LARGEST = 1_000_000_000  # bytes of the file of exams
LAYOUT = """\
  a JSON file    {"train": [...], "val": [...], "test": [...]} of exams such as
                 {"uid": 7, "finding": "...", "image_path": ["7_1.jpeg", "7_2.jpeg"]}
  a folder       7_1.jpeg 7_2.jpeg ...
Set data.dataset.file and data.dataset.images to their paths. recipes/breast.yaml runs without any download."""


@register("dataset", "manifest")
class Manifest:
    """Your own exams: a JSON file of reports, and a folder of images.

    The file is `{"train": [...], "val": [...], "test": [...]}`, or a flat list of exams with their split: as JSON, or
    one exam per line in a `.jsonl` file. An exam is `{"uid": 7, "finding": "...", "image_path": ["7_1.jpeg",
    "7_2.jpeg"]}`, or in R2Gen's format `{"id": ..., "report": ..., "image_path": [...]}`, or with the keys named below.
    A single view may be a string. `labels` becomes an attribute; other keys are ignored. `validation`, `validate`,
    `valid` and `dev` are read as `val`. A file that a trained model is scored on may have that split alone.

    Source:
        The data format of Li et al. 2024, arXiv 2406.00644, and of R2Gen: Chen et al. 2020, arXiv 2010.16056.

    Args:
        file: JSON or JSON Lines file in UTF-8, such as pandas writes with `to_json(file, orient="records")`.
        images: Folder to which image paths are relative.
        id_key: Key of the exam id; null for `uid` or `id`.
        report_key: Key of the report; null for `finding`, `findings` or `report`.
        images_key: Key of the images; null for `image_path`, `images` or `image`.
        patient_key: Key of the patient, who appears in only one split; an exam without a value is another patient.
        split_key: Key of the split in a flat list.
        window: Values of 16-bit and floating-point images that become black and white, such as [0, 4095]; null: 0 and
            the largest value of 8, 10, 12, 14 or 16 bits, by the file.
        get_from: Source of these exams, printed if they are missing.
    """

    def __init__(
        self,
        *,
        file: JsonFile,
        images: str,
        id_key: str | None = None,
        report_key: str | None = None,
        images_key: str | None = None,
        patient_key: str = "patient",
        split_key: str = "split",
        window: tuple[float, float] | None = None,
        get_from: str | None = None,
    ) -> None:
        self.file, self.images = Path(file), Path(images)
        self.folder = ImageFolder(self.images, window)
        self.id_keys = (id_key,) if id_key else ("uid", "id")
        self.report_keys = (report_key,) if report_key else ("finding", "findings", "report")
        self.images_keys = (images_key,) if images_key else ("image_path", "images", "image")
        self.patient_key, self.split_key = patient_key, split_key
        self.layout = f"{'' if get_from is None else f'Get it from {get_from}. '}Expected:\n{LAYOUT}"

    def splits(self) -> dict[str, Sequence[Exam]]:
        """The exams as listed; of splits that are never used, their number only. Checks that the images exist.

        Raises:
            UserError: the file or folder is missing, not JSON (with line and column), or lacks a split; or exams cannot
                be used, with one problem for each.
        """
        return self._splits

    def reports(self) -> dict[str, list[str]]:
        """The reports of each split, whether or not the images are on this machine.

        Raises:
            UserError: as `splits`, except for images.
        """
        return {split: [exam.report for exam in exams] for split, exams in self._list(images=False).items()}

    @property
    def cache_key(self) -> str:
        """Hash of the file, and of name, size and time of every image."""
        return f"manifest-{files_key(read_bounded(self.file, LARGEST), self._splits)}"

    @cached_property
    def _splits(self) -> dict[str, Sequence[Exam]]:
        return self._list(images=True)

    def _list(self, *, images: bool) -> dict[str, Sequence[Exam]]:
        listed = self._read()
        if images and not self.images.is_dir():
            raise UserError(
                "no-such-file",
                f"no such folder of images (data.dataset.images){searched(self.images)}",
                place=self.images,
                hint=self.layout,
            )
        found: dict[str, Sequence[Exam]] = {}
        problems: list[ExamError] = []
        home: dict[str, str] = {}
        patients: dict[str, str] = {}
        for split in SPLITS:
            exams = []
            for number, entry in enumerate(listed[split], 1):
                name = f"number {number} of {split}"
                try:
                    exam = self._exam(entry, split, name, problems, images=images)
                    _check_unique(exam, split, home, patients, problems)
                    exams.append(exam)
                except ExamError as error:
                    problems.append(error)
            found[split] = tuple(exams)
        for split in [name for name, entries in listed.items() if name not in SPLITS and isinstance(entries, list)]:
            # Never used, only counted, so their problems do not matter.
            ids = [f"{split}/{number}" for number, _ in enumerate(listed[split], 1)]
            found[split] = tuple(Exam(exam_id, exam_id, (), "") for exam_id in ids)
        if problems:
            raise DatasetError.of_exams(problems, self.file, found)
        return found

    def _read(self) -> Mapping[str, list[Any]]:
        """The entries of each split, by the names `train`, `val` and `test`."""
        try:
            text = read_bounded(self.file, LARGEST).decode("utf-8-sig")
        except FileNotFoundError:
            raise UserError(
                "no-such-file",
                f"no such manifest (data.dataset.file){searched(self.file)}",
                place=self.file,
                hint=self.layout,
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(
                "unreadable-file", f"not UTF-8 at byte {error.start}", place=self.file, hint="Save it as UTF-8."
            ) from None
        if self.file.suffix == ".jsonl":
            lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            found: Any = [self._parse(line, number) for number, line in lines]
        else:
            found = self._parse(text, 1)
        if isinstance(found, list):
            found = self._by_split(found)
        if not isinstance(found, dict):
            raise UserError(
                "wrong-type",
                f"it is a {_kind(found)}",
                place=self.file,
                expected=f"{{train: [...], val: [...], test: [...]}}, or a list of exams with a {self.split_key}",
            )
        named: dict[str, Any] = {}
        for name, entries in found.items():
            split: Any = SPLIT_ALIASES.get(name, name)
            if split in named:
                raise UserError("conflicting-settings", f"the splits {name} and {split} are the same", place=self.file)
            named[split] = entries
        lacking = [split for split in SPLITS if split not in named]
        if lacking and (len(lacking) == len(SPLITS) or not set(named) <= set(SPLITS)):  # a name may be misspelled
            raise UserError(
                "missing-key",
                f"no split {', '.join(lacking)}; found {', '.join(found) or 'nothing'}",
                place=self.file,
                expected=", ".join(SPLITS),
            )
        for split in SPLITS:
            if not isinstance(named.setdefault(split, []), list):
                found = f"split {split} is a {_kind(named[split])}"
                raise UserError("wrong-type", found, place=self.file, expected="a list of exams")
        return named

    def _parse(self, text: str, line: int) -> Any:
        """Parses JSON that starts at this line of the file."""
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            place = f"{self.file}:{line + error.lineno - 1}:{error.colno}"
            raise UserError("wrong-format", f"not JSON: {error.msg}", place=place) from None
        except RecursionError:
            raise UserError("wrong-format", "nested too deeply", place=self.file) from None
        except _DuplicateKeyError as error:
            raise UserError("duplicate-key", f"the key '{error}' occurs twice in one object", place=self.file) from None

    def _by_split(self, entries: list[Any]) -> dict[str, list[Any]]:
        """A flat list of exams, grouped by split."""
        found: dict[str, list[Any]] = {}
        for number, entry in enumerate(entries, 1):
            split = entry.get(self.split_key) if isinstance(entry, dict) else None
            if not isinstance(split, str):
                what = f"has no {self.split_key}" if isinstance(entry, dict) else f"is a {_kind(entry)}"
                raise UserError(
                    "missing-key",
                    f"item {number} of the list {what}",
                    place=self.file,
                    hint="In a flat list every exam has a split; data.dataset.split_key names its key.",
                )
            found.setdefault(split, []).append(entry)
        return found

    def _exam(self, entry: Any, split: str, name: str, problems: list[ExamError], *, images: bool) -> Exam:
        """An exam, without views unless `images`; appends to `problems`. Raises `ExamError` if it has no id."""
        if not isinstance(entry, dict):
            raise ExamError(name, "wrong-type", f"is a {_kind(entry)}, expected {{uid, finding, image_path}}")
        entry = {key: present(value) for key, value in entry.items()}
        id_key = next((key for key in self.id_keys if entry.get(key) is not None), None)
        found = None if id_key is None else entry[id_key]
        if isinstance(found, bool) or not isinstance(found, (str, int)):
            if found is None:
                raise ExamError(name, "missing-key", f"has no {' or '.join(self.id_keys)}")
            raise ExamError(name, "wrong-type", f"its {id_key} is {found!r}", expected="a number or text")
        exam_id = str(found)
        named = [key for key in self.report_keys if key in entry]
        key = next((key for key in named if entry[key] is not None), named[0] if named else None)
        report = ("" if entry[key] is None else entry[key]) if key is not None else None
        if key is None:
            near = did_you_mean(self.report_keys[0], list(entry))
            other = ", or name another key: data.dataset.report_key" if len(self.report_keys) > 1 else ""
            found = f"has no {', '.join(self.report_keys)} ({split}){near or other}"
            problems.append(ExamError(exam_id, "missing-key", found))
        elif not isinstance(report, str) or not report.strip():
            what = "is empty" if isinstance(report, str) else f"is a {_kind(report)}, expected text"
            code = "empty-report" if isinstance(report, str) else "wrong-type"
            problems.append(ExamError(exam_id, code, f"{key} {what} ({split})"))
        own_split = entry.get(self.split_key) or split
        if (SPLIT_ALIASES.get(own_split, own_split) if isinstance(own_split, str) else own_split) != split:
            problems.append(
                ExamError(exam_id, "conflicting-settings", f"has split {own_split}, but is listed in {split}")
            )
        patient = entry.get(self.patient_key)
        patient = exam_id if patient is None else patient
        if isinstance(patient, bool) or not isinstance(patient, (str, int)):
            what = f"{self.patient_key} is a {_kind(patient)}, expected a number or text ({split})"
            problems.append(ExamError(exam_id, "wrong-type", what))
        key = next((key for key in self.images_keys if entry.get(key) is not None), self.images_keys[0])
        views = self._views(exam_id, key, entry.get(key), split, problems) if images else ()
        attributes = {"labels": entry["labels"]} if entry.get("labels") is not None else {}
        return Exam(exam_id, str(patient), views, report if isinstance(report, str) else "", attributes)

    def _views(self, exam_id: str, key: str, paths: Any, split: str, problems: list[ExamError]) -> tuple[FileView, ...]:
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
            problems.append(
                ExamError(exam_id, "wrong-type", f"{key} is {str(paths)[:80]} ({split})", expected="file names")
            )
            return ()
        views = []
        for path in paths:
            try:
                views.append(self.folder.view(path))
            except UserError as error:
                (found,) = error.problems
                problems.append(ExamError(exam_id, found.code, f"{found.found} ({split})", hint=found.hint))
        return tuple(views)


def _check_unique(
    exam: Exam, split: str, home: dict[str, str], patients: dict[str, str], problems: list[ExamError]
) -> None:
    """Records the split of an exam, and a problem if its id or patient has occurred elsewhere."""
    if exam.id in home:
        where = f"twice in {split}" if home[exam.id] == split else f"in {home[exam.id]} and in {split}"
        problems.append(ExamError(exam.id, "duplicate-id", f"is listed {where}"))
    elif patients.get(exam.patient, split) != split:
        problems.append(
            ExamError(exam.id, "split-leak", f"patient {exam.patient} is in {patients[exam.patient]} and in {split}")
        )
    home.setdefault(exam.id, split)
    patients.setdefault(exam.patient, split)


class _DuplicateKeyError(ValueError):
    """Holds the key."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. A duplicate key would silently drop exams."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _DuplicateKeyError(twice)
    return found


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")
