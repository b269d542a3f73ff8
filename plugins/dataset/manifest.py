"""Exams listed in one JSON file beside a folder of images: the format of the published report sets, and of R2Gen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from framework.data.check import SPLITS, listing
from framework.data.image_file import FileView, inside
from framework.exam import Exam, ExamError
from framework.registry import did_you_mean, register

# What other data sets call a split.
ALSO_CALLED = {
    "training": "train",
    "validation": "val",
    "validate": "val",
    "valid": "val",
    "dev": "val",
    "testing": "test",
}

LAYOUT = """\
  a JSON file    {"train": [...], "val": [...], "test": [...]} of exams such as
                 {"uid": 7, "finding": "...", "image_path": ["7_1.jpeg", "7_2.jpeg"]}
  a folder       7_1.jpeg 7_2.jpeg ...
Set data.dataset.file and data.dataset.images to where they lie. recipes/breast.yaml runs without any download."""


@register("dataset", "manifest")
class Manifest:
    """Your own exams: a JSON file of reports, and a folder of images.

    The file holds `{"train": [...], "val": [...], "test": [...]}`, or a flat list of exams that each say their split:
    in JSON, or one exam a line in a `.jsonl` file. An exam is `{"uid": 7, "finding": "...", "image_path": ["7_1.jpeg",
    "7_2.jpeg"]}`, or in R2Gen's words `{"id": ..., "report": ..., "image_path": [...]}`, or in the words that the keys
    below name. One view may be a plain string. `labels` is kept among the attributes; other keys are left alone.
    `validation`, `validate`, `valid` and `dev` are read as `val`.

    Source:
        The data format of Li et al. 2024, arXiv 2406.00644, and of R2Gen: Chen et al. 2020, arXiv 2010.16056.

    Args:
        file: the JSON or JSON Lines file, in UTF-8.
        images: the folder that the images' paths start from.
        id_key: the key of an exam's id, where it is neither `uid` nor `id`.
        report_key: the key of its report, where it is none of `finding`, `findings` and `report`.
        images_key: the key of its images, where it is none of `image_path`, `images` and `image`.
        patient_key: the key of the patient, whom splits must not share; without it each exam is a patient of its own.
        split_key: the key of its split, in a flat list.
        get_from: who hands these exams out; told where they are not there.
    """

    def __init__(
        self,
        *,
        file: str,
        images: str,
        id_key: str | None = None,
        report_key: str | None = None,
        images_key: str | None = None,
        patient_key: str = "patient",
        split_key: str = "split",
        get_from: str | None = None,
    ) -> None:
        self.file, self.images = Path(file), Path(images)
        self.id_keys = (id_key,) if id_key else ("uid", "id")
        self.report_keys = (report_key,) if report_key else ("finding", "findings", "report")
        self.images_keys = (images_key,) if images_key else ("image_path", "images", "image")
        self.patient_key, self.split_key = patient_key, split_key
        self.missing = f"{'' if get_from is None else f' Get it from {get_from}.'} Expected:\n{LAYOUT}"

    def splits(self) -> dict[str, Sequence[Exam]]:
        """The exams as listed; that the images are there is checked, their content is not.

        Raises:
            ValueError: file or folder missing, not JSON (with line and column), a split missing, or exams that cannot
                be used, all of them listed.
        """
        return self._splits

    @property
    def cache_key(self) -> str:
        """From the manifest's own bytes, and from name, size and time of every image."""
        seen = hashlib.sha256(self.file.read_bytes())
        for exams in self._splits.values():
            for exam in exams:
                for view in exam.views:
                    assert isinstance(view, FileView)
                    stat = Path(view.path).stat()
                    seen.update(f"{exam.id} {view.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return f"manifest-{seen.hexdigest()[:20]}"

    @cached_property
    def _splits(self) -> dict[str, Sequence[Exam]]:
        listed = self._read()
        if not self.images.is_dir():
            raise ValueError(f"{self.images}: no such folder of images (data.dataset.images).{self.missing}")
        found: dict[str, Sequence[Exam]] = {}
        problems: list[ExamError] = []
        home: dict[str, str] = {}
        patients: dict[str, str] = {}
        for split in SPLITS:
            exams = []
            for number, entry in enumerate(listed[split], 1):
                name = f"number {number} of {split}"
                try:
                    exam = self._exam(entry, split, name, problems)
                    _once(exam, split, home, patients, problems)
                    exams.append(exam)
                except ExamError as error:
                    problems.append(error)
            found[split] = tuple(exams)
        if problems:
            raise ValueError(f"{self.file}: {len(problems)} problems\n{listing(problems)}")
        return found

    def _read(self) -> Mapping[str, list[Any]]:
        """The entries of each split, by the names `train`, `val` and `test`."""
        try:
            text = self.file.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise ValueError(f"{self.file}: no such manifest (data.dataset.file).{self.missing}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
        if self.file.suffix == ".jsonl":
            lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
            found: Any = [self._parse(line, number) for number, line in lines]
        else:
            found = self._parse(text, 1)
        if isinstance(found, list):
            found = self._by_split(found)
        if not isinstance(found, dict):
            raise ValueError(
                f"{self.file}: holds a {_kind(found)}, expected {{train: [...], val: [...], test: [...]}}, or a list "
                f"of exams that say their {self.split_key}"
            )
        named: dict[str, Any] = {}
        for name, entries in found.items():
            split: Any = ALSO_CALLED.get(name, name)
            if split in named:
                raise ValueError(f"{self.file}: the splits {name} and {split} are both there, and mean the same")
            named[split] = entries
        lacking = [split for split in SPLITS if split not in named]
        if lacking:
            raise ValueError(
                f"{self.file}: no split {', '.join(lacking)}; found {', '.join(found) or 'nothing'}, expected "
                f"{', '.join(SPLITS)}"
            )
        for split in SPLITS:
            if not isinstance(named[split], list) or not named[split]:
                what = "is empty" if named[split] == [] else f"is a {_kind(named[split])}"
                raise ValueError(f"{self.file}: split {split} {what}, expected a list of exams")
        return named

    def _parse(self, text: str, line: int) -> Any:
        """JSON, where the text begins in this line of the file."""
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.file}:{line + error.lineno - 1}:{error.colno}: not JSON: {error.msg}") from None
        except RecursionError:
            raise ValueError(f"{self.file}: nested too deeply for a manifest") from None
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from None

    def _by_split(self, entries: list[Any]) -> dict[str, list[Any]]:
        """A flat list of exams, sorted by the split that each of them says."""
        found: dict[str, list[Any]] = {}
        for number, entry in enumerate(entries, 1):
            split = entry.get(self.split_key) if isinstance(entry, dict) else None
            if not isinstance(split, str):
                what = f"has no {self.split_key}" if isinstance(entry, dict) else f"is a {_kind(entry)}"
                raise ValueError(
                    f"{self.file}: number {number} of the list {what}; in a flat list every exam says its split, under "
                    "the key that data.dataset.split_key names"
                )
            found.setdefault(split, []).append(entry)
        return found

    def _exam(self, entry: Any, split: str, name: str, problems: list[ExamError]) -> Exam:
        """An exam, with what is wrong with it added to `problems`; raises `ExamError` where it has no id."""
        if not isinstance(entry, dict):
            raise ExamError(name, "wrong-type", f"is a {_kind(entry)}, expected {{uid, finding, image_path}}")
        id_key = next((key for key in self.id_keys if key in entry), None)
        found = None if id_key is None else entry[id_key]
        if isinstance(found, bool) or not isinstance(found, (str, int)) or found == "":
            if found is None:
                raise ExamError(name, "missing-key", f"has no {' or '.join(self.id_keys)}")
            raise ExamError(name, "wrong-type", f"its {id_key} is {found!r}", expected="a number or text")
        exam_id = str(found)
        key = next((key for key in self.report_keys if key in entry), None)
        report = entry[key] if key is not None else None
        if key is None:
            near = did_you_mean(self.report_keys[0], list(entry))
            other = ", or name another key: data.dataset.report_key" if len(self.report_keys) > 1 else ""
            found = f"has no {', '.join(self.report_keys)} ({split}){near or other}"
            problems.append(ExamError(exam_id, "missing-key", found))
        elif not isinstance(report, str) or not report.strip():
            what = "is empty" if isinstance(report, str) else f"is a {_kind(report)}, expected text"
            code = "empty-report" if isinstance(report, str) else "wrong-type"
            problems.append(ExamError(exam_id, code, f"{key} {what} ({split})"))
        said = entry.get(self.split_key, split)
        if (ALSO_CALLED.get(said, said) if isinstance(said, str) else said) != split:
            problems.append(ExamError(exam_id, "conflicting-settings", f"says split {said}, but is listed in {split}"))
        patient = entry.get(self.patient_key, exam_id)
        if isinstance(patient, bool) or not isinstance(patient, (str, int)):
            what = f"{self.patient_key} is a {_kind(patient)}, expected a number or text ({split})"
            problems.append(ExamError(exam_id, "wrong-type", what))
        key = next((key for key in self.images_keys if key in entry), self.images_keys[0])
        views = self._views(exam_id, key, entry.get(key), split, problems)
        attributes = {"labels": entry["labels"]} if "labels" in entry else {}
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
                file = inside(self.images, path)
                if not file.is_file():
                    raise ValueError(f"no image {path} in {self.images}")
            except (ValueError, OSError) as error:
                problems.append(ExamError(exam_id, "no-such-file", f"{error} ({split})"))
                continue
            views.append(FileView(str(file), path))
        return tuple(views)


def _once(exam: Exam, split: str, home: dict[str, str], patients: dict[str, str], problems: list[ExamError]) -> None:
    """Notes where an exam stands, and whether it or its patient stood elsewhere before."""
    if exam.id in home:
        where = f"twice in {split}" if home[exam.id] == split else f"in {home[exam.id]} and in {split}"
        problems.append(ExamError(exam.id, "duplicate-id", f"is listed {where}"))
    elif patients.get(exam.patient, split) != split:
        problems.append(
            ExamError(exam.id, "split-leak", f"patient {exam.patient} is in {patients[exam.patient]} and in {split}")
        )
    home.setdefault(exam.id, split)
    patients.setdefault(exam.patient, split)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that stands twice would silently drop exams."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{twice}' stands twice in one object")
    return found


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")
