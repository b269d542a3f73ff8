"""BUS-BRA, the public breast ultrasound archive, with reports composed from its annotation."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from framework.data.check import first_problems
from framework.data.image_file import FileView, inside
from framework.exam import Exam, ExamError
from framework.registry import did_you_mean, register
from framework.runtime.errors import UserError
from framework.runtime.files import atomic_write
from plugins.dataset.busbra import compose
from plugins.dataset.busbra import measure as measuring

log = logging.getLogger("sonoscribe")

LAYOUT = """\
  Images/bus_0001-l.png ...   1875 images
  Masks/mask_0001-l.png ...   one mask per image
  bus_data.csv  5-fold-cv.csv  10-fold-cv.csv
It is published at https://zenodo.org/records/8231412 (Gomez-Flores, Gregorio-Calas, Coelho de Albuquerque Pereira,
"BUS-BRA: A breast ultrasound dataset for assessing computer-aided diagnosis systems", Medical Physics 51(4), 2024).
Unpack it and set data.dataset.root to the folder of bus_data.csv."""


@dataclass(frozen=True, kw_only=True)
class MaskedView(FileView):
    """An image of the archive with the outline of its lesion."""

    mask: FileView

    def lesion_mask(self) -> np.ndarray:
        """Lesion mask, bool [H, W]."""
        return self.mask.load() > 127


@dataclass(frozen=True)
class Lesion:
    """One image of the archive and its annotation."""

    id: str
    patient: str
    birads: str
    pathology: str
    histology: str
    device: str
    image: MaskedView

    @property
    def scanner(self) -> str:
        """The device without its frequency."""
        return self.device.partition("@")[0].strip()


@register("dataset", "busbra")
class Busbra:
    """BUS-BRA: 1064 breast exams with one or two views. Reports are composed, not written by a physician.

    A report states in English the experts' annotation (BI-RADS category, optionally histology) and measures of the mask
    and the image (docs/data.md).

    With `split: official`, test patients are those of the official fold. The official validation column is by image and
    separates the views of some patients; here all views of a patient follow the first one. With `split: device`, all
    patients of one scanner are the test split, as if they came from another hospital.

    Thresholds of the measures are quantiles over training patients, or constants where the lexicon defines them.

    Source:
        Images and annotation: Gómez-Flores et al. 2024, Medical Physics 51(4). The measures and the reports:
        Sonoscribe.

    Args:
        root: Folder of the unpacked archive, with bus_data.csv.
        split: What the test split is: an official fold, or a scanner.
        device: With `split: device`, the scanner that is left out: GE Logiq 5, GE Logiq 7, Toshiba Aplio 300 or
            U-Systems.
        fold: Official fold that is the test split, from 1. With `split: device`, its patients of the other scanners are
            the validation split.
        folds: Official partition, of 5 or 10 folds. [folds]
        histology: Adds the result of the biopsy to the impression, which no image shows for certain.
        cache: Folder for the measures, so that the 1875 images are measured once (about a minute); null:
            data.cache_dir.
    """

    def __init__(
        self,
        *,
        root: str,
        split: Literal["official", "device"] = "official",
        device: str | None = None,
        fold: PositiveInt = 1,
        folds: Literal[5, 10] = 5,
        histology: bool = False,
        cache: str | None = None,
        cache_dir: str,
    ) -> None:
        if fold > folds:
            raise UserError("out-of-range", f"found {fold}", place="data.dataset.fold", expected=f"1 to {folds}")
        if split == "official" and device is not None:
            hint = "Set split: device, or remove it."
            raise UserError(
                "ignored-setting", f"split: official ignores '{device}'", place="data.dataset.device", hint=hint
            )
        self.split, self.device = split, device
        self.root, self.fold, self.folds, self.histology = Path(root), fold, folds, histology
        self.cache = Path(cache_dir if cache is None else cache)

    def splits(self) -> dict[str, Sequence[Exam]]:
        """`train`, `val` and `test` by patient. The first call on a machine measures every image.

        Raises:
            UserError: the archive is missing, incomplete or changed; one problem for each exam.
        """
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Sequence[Exam]]:
        homes = self._homes
        by_view = self._measures()
        measures = {
            patient: measuring.Measures.mean([by_view[lesion.id] for lesion in lesions])
            for patient, lesions in self._patients.items()
        }
        training = [measures[patient] for patient, home in homes.items() if home == "train"]
        if not training:
            raise UserError("empty-split", "no patient is in the training split", place="data.dataset")
        limits = compose.Thresholds.fit(training)
        found: dict[str, list[Exam]] = {"train": [], "val": [], "test": []}
        for patient, lesions in self._patients.items():
            found[homes[patient]].append(self._exam(patient, lesions, measures[patient], limits))
        return {split: tuple(exams) for split, exams in found.items()}

    def _exam(
        self, patient: str, lesions: list[Lesion], measures: measuring.Measures, limits: compose.Thresholds
    ) -> Exam:
        truth = compose.describe(
            measures,
            limits,
            birads=max(lesion.birads for lesion in lesions),  # one patient has 4 and 5: the higher one counts
            pathology=lesions[0].pathology,
            histology=lesions[0].histology,
            device=lesions[0].device,
        )
        if self.histology:
            truth["histology"] = truth["pathology"]
        return Exam(
            id=patient,
            patient=patient,
            views=tuple(lesion.image for lesion in lesions),
            report=compose.compose(truth, patient, self.histology),
            attributes=truth,
            rewording=compose.compose(truth, f"{patient} again", self.histology),
        )

    @cached_property
    def _patients(self) -> dict[str, list[Lesion]]:
        found: dict[str, list[Lesion]] = defaultdict(list)
        for lesion in self._lesions:
            found[lesion.patient].append(lesion)
        return found

    @cached_property
    def _homes(self) -> dict[str, str]:
        """The split of each patient."""
        return {patient: self._home(lesions) for patient, lesions in self._patients.items()}

    def _home(self, lesions: list[Lesion]) -> str:
        if self.split == "official":
            return self._official(lesions[0])
        if any(lesion.scanner == self._left_out for lesion in lesions):
            return "test"
        return "val" if self._row(lesions[0])["kFold"] == str(self.fold) else "train"

    @cached_property
    def _left_out(self) -> str:
        """The scanner of the test split."""
        patients = Counter(scanner for views in self._patients.values() for scanner in {v.scanner for v in views})
        if self.device is not None and self.device in patients:
            return self.device
        known = ", ".join(f"{scanner} ({count} patients)" for scanner, count in sorted(patients.items()))
        place, hint = "data.dataset.device", f"The scanners are {known}."
        if self.device is None:
            raise UserError("missing-key", "split: device leaves out one scanner", place=place, hint=hint)
        hint = f"{did_you_mean(self.device, patients)} {hint}".strip()
        raise UserError("unknown-name", f"unknown scanner '{self.device}'", place=place, hint=hint)

    def _official(self, lesion: Lesion) -> str:
        row = self._row(lesion)
        if row["kFold"] == str(self.fold):
            return "test"
        drawn = row[f"valid_{self.fold}"]
        if drawn not in {"0", "1"}:
            raise UserError(
                "damaged-file",
                f"{lesion.id} has valid_{self.fold} = '{drawn}'",
                place=self._partition_file,
                expected="0 or 1",
            )
        return "train" if drawn == "1" else "val"  # 1 is training: four of five have it

    def _row(self, lesion: Lesion) -> dict[str, str]:
        """A lesion's row of the partition."""
        row = self._partition.get(lesion.id)
        if row is None:
            raise UserError(
                "damaged-file", f"no row for {lesion.id}, which bus_data.csv lists", place=self._partition_file
            )
        return row

    @property
    def _partition_file(self) -> Path:
        return self.root / f"{self.folds}-fold-cv.csv"

    @cached_property
    def _partition(self) -> dict[str, dict[str, str]]:
        rows = _read(self._partition_file, {"ID", "kFold", f"valid_{self.fold}"})
        return {row["ID"]: row for row in rows}

    @cached_property
    def _lesions(self) -> tuple[Lesion, ...]:
        missing = [
            name
            for name in ("bus_data.csv", self._partition_file.name, "Images", "Masks")
            if not (self.root / name).exists()
        ]
        if missing:
            raise UserError(
                "no-such-file",
                f"no BUS-BRA archive: {', '.join(missing)} missing",
                place=self.root,
                hint=f"Expected:\n{LAYOUT}",
            )
        rows = _read(self.root / "bus_data.csv", {"ID", "Case", "Histology", "Pathology", "BIRADS", "Device"})
        found, problems = [], []
        for row in rows:
            try:
                found.append(self._lesion(row))
            except ValueError as error:
                problems.append(ExamError(row["ID"], "wrong-format", str(error)))
        if problems:
            raise UserError.of(first_problems(problems, self.root / "bus_data.csv"))
        return tuple(found)

    def _lesion(self, row: dict[str, str]) -> Lesion:
        exam, sign, _ = row["ID"].partition("-")
        if not sign or not exam.startswith("bus_"):
            raise ValueError("expected an ID such as bus_0001-l")
        if row["BIRADS"] not in {"2", "3", "4", "5"}:
            raise ValueError(f"BIRADS is '{row['BIRADS']}', expected 2 to 5")
        if row["Pathology"] not in {"benign", "malignant"}:
            raise ValueError(f"Pathology is '{row['Pathology']}', expected benign or malignant")
        image, mask = f"{row['ID']}.png", f"mask_{row['ID'].removeprefix('bus_')}.png"
        return Lesion(
            id=row["ID"],
            patient=exam,
            birads=row["BIRADS"],
            pathology=row["Pathology"],
            histology=row["Histology"],
            device=row["Device"],
            image=MaskedView(
                str(inside(self.root / "Images", image)),
                image,
                mask=FileView(str(inside(self.root / "Masks", mask)), mask),
            ),
        )

    @property
    def cache_key(self) -> str:
        """Hash of sizes and times of all images and masks, the fold, and the scanner that is left out."""
        name = "" if self.split == "official" else f"{self._left_out.lower().replace(' ', '-')}-"
        return f"busbra-{name}{self.folds}-{self.fold}-{self._files}"

    @cached_property
    def _files(self) -> str:
        seen = hashlib.sha256(f"{measuring.VERSION}".encode())
        problems = []
        for lesion in self._lesions:
            for view in (lesion.image, lesion.image.mask):
                try:
                    stat = Path(view.path).stat()
                except OSError as error:
                    problems.append(ExamError(lesion.id, "no-such-file", f"{view.path}: {error.strerror}"))
                else:
                    seen.update(f"{view.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        if problems:
            raise UserError.of(first_problems(problems, self.root))
        return seen.hexdigest()[:20]

    def _measures(self) -> dict[str, measuring.Measures]:
        """The measures of every image, from the cache if it is valid."""
        file = self.cache / f"busbra-measures-{self._files}.json"
        names = [field.name for field in fields(measuring.Measures)]
        if file.is_file():
            try:
                rows = json.loads(file.read_text(encoding="utf-8"))
                return {v.id: measuring.Measures(*(float(rows[v.id][name]) for name in names)) for v in self._lesions}
            except (ValueError, KeyError, TypeError) as error:
                log.warning("%s is damaged (%s: %s); measuring again", file, type(error).__name__, error)
        log.info("Measuring %d lesions, once (about a minute); kept in %s", len(self._lesions), file)
        found, problems = {}, []
        for lesion in self._lesions:
            try:
                image = lesion.image.load()
                grey = image if image.ndim == 2 else image.mean(2).astype("uint8")
                found[lesion.id] = measuring.measure(grey, lesion.image.lesion_mask())
            except (OSError, ValueError) as error:
                problems.append(ExamError(lesion.id, "broken-image", str(error)))
        if problems:
            raise UserError.of(first_problems(problems, self.root))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps({key: asdict(value) for key, value in found.items()}))
        except OSError as error:
            log.warning("%s cannot be written (%s): the next run measures again", file, error.strerror)
        return found


def _read(file: Path, columns: set[str]) -> list[dict[str, str]]:
    """Rows of a CSV file, in which all `columns` have a value."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        lacking = columns - set(reader.fieldnames or ())
        if lacking:
            raise UserError(
                "damaged-file", f"no column {', '.join(sorted(lacking))}", place=file, hint=f"Expected:\n{LAYOUT}"
            )
        rows = []
        for row in reader:
            if any(row[column] is None for column in columns):
                raise UserError("damaged-file", "the line is truncated", place=f"{file}:{reader.line_num}")
            rows.append(row)
    return rows
