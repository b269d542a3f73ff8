"""DDTI, the public thyroid ultrasound archive, with reports composed from the experts' descriptors."""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from framework.data.check import first_problems
from framework.data.image_file import FileView, inside
from framework.exam import Exam, ExamError
from framework.registry import did_you_mean, register
from framework.runtime.errors import UserError
from framework.runtime.files import read_bounded
from plugins.dataset.ddti import scan
from plugins.dataset.ddti.compose import SPELLINGS, attributes, compose

LAYOUT = """\
  1.xml 2.xml ...        one case each: descriptors, TI-RADS, and the numbers of its images
  1_1.jpg 1_2.jpg ...    its images
It is described in Pedraza, Vargas, Narvaez, Duran, Munoz, Romero, "An open access thyroid ultrasound-image database",
Proceedings of SPIE 9287, 2015. Get it from its authors and set data.dataset.root to the folder of 1.xml.
Without it, recipes/thyroid.yaml runs on simulated exams."""
# Frames with text on the tissue, which masking the margins does not remove: 80_2 names adenopathy.
WORDS_ON_TISSUE = frozenset({"80_2.jpg"})
LARGEST = 1_000_000  # maximum size of a case's file, a thousand times the usual [bytes]


@dataclass(frozen=True)
class Case:
    """One case of the archive: its descriptors and images."""

    number: int
    words: dict[str, str | None]  # by descriptor, in our spelling; None if missing
    age: int | None
    sex: str | None
    images: tuple[FileView, ...]

    @property
    def name(self) -> str:
        return f"ddti_{self.number:03d}"

    @property
    def complete(self) -> bool:
        return None not in self.words.values()


@register("dataset", "ddti")
class Ddti:
    """DDTI: real thyroid exams with a nodule. Reports are composed, not written by a physician.

    A report states in English the experts' descriptors (composition, echogenicity, margins, calcifications) and their
    TI-RADS category, without a side. Of the 390 cases, 198 have all descriptors and a category, and 100 a category and
    some descriptors. The other 92 have no category, 91 of them no descriptor either, and are left out.

    Pixels outside of the scan area are set to black, since burnt-in text in the margins names the category
    (docs/data.md).

    Cases that share an image are one patient. Patients are assigned to `folds` folds, stratified by TI-RADS category,
    in an order drawn from `split_seed`: fold `fold` is the test split, the next one the validation split.

    Source:
        Images and descriptors: Pedraza et al. 2015, Proceedings of SPIE 9287. The scan areas, the splits and the
        reports: Sonoscribe.

    Args:
        root: Folder of the unpacked archive, with 1.xml.
        complete: Leaves out cases that lack a descriptor; otherwise their reports do not state it.
        fold: Test fold, from 1.
        folds: Number of folds, from 3. [folds]
        split_seed: Random seed of the order of patients.
    """

    def __init__(
        self,
        *,
        root: str,
        complete: bool = True,
        fold: PositiveInt = 1,
        folds: PositiveInt = 5,
        split_seed: NonNegativeInt = 0,
    ) -> None:
        if folds < 3:
            raise UserError("out-of-range", f"found {folds}", place="data.dataset.folds", expected="at least 3")
        if fold > folds:
            raise UserError("out-of-range", f"found {fold}", place="data.dataset.fold", expected=f"1 to {folds}")
        self.root, self.complete = Path(root), complete
        self.fold, self.folds, self.split_seed = fold, folds, split_seed

    def splits(self) -> dict[str, Sequence[Exam]]:
        """`train`, `val` and `test` by patient.

        Raises:
            UserError: the archive is missing or changed; one problem for each case.
        """
        return self._splits

    @property
    def cache_key(self) -> str:
        """Hash of all images, and the version of the scan-area detection."""
        seen = "".join(f"{view.name} {digest}\n" for view, digest in sorted(self._digests.items(), key=str))
        return f"ddti-{scan.VERSION}-{hashlib.sha256(seen.encode()).hexdigest()[:20]}"

    @cached_property
    def _splits(self) -> dict[str, Sequence[Exam]]:
        patients, homes = self._patients, self._homes
        found: dict[str, list[Exam]] = {"train": [], "val": [], "test": []}
        for case in self._cases:
            if case.words["tirads"] is None or (self.complete and not case.complete):
                continue
            patient = patients[case.number]
            truth = attributes(case.words) | {"age": case.age, "sex": case.sex}
            exam = Exam(
                id=case.name,
                patient=f"ddti_{patient:03d}",
                views=tuple(scan.ScanView(view) for view in self._distinct(case.images)),
                report=compose(truth, case.name),
                attributes=truth,
                rewording=compose(truth, f"{case.name} again"),
            )
            found[homes[patient]].append(exam)
        return {split: tuple(exams) for split, exams in found.items()}

    @cached_property
    def _patients(self) -> dict[int, int]:
        """The patient of each case, named by its first case: cases that share an image are one patient."""
        first: dict[int, int] = {case.number: case.number for case in self._cases}
        owners: dict[str, int] = {}
        for case in self._cases:
            for view in case.images:
                one, other = first[case.number], first[owners.setdefault(self._digests[view], case.number)]
                if one != other:
                    together = min(one, other)
                    first = {key: together if value in (one, other) else value for key, value in first.items()}
        return first

    @cached_property
    def _homes(self) -> dict[int, str]:
        """The split of each patient with a category; does not depend on `complete`."""
        highest: dict[int, str] = {}
        for case in self._cases:
            category = case.words["tirads"]
            if category is not None:
                patient = self._patients[case.number]
                highest[patient] = max(highest.get(patient, ""), category)

        def drawn(patient: int) -> str:
            return hashlib.sha256(f"{self.split_seed}/{patient}".encode()).hexdigest()

        order = sorted(highest, key=lambda patient: (highest[patient], drawn(patient)))
        names = {self.fold - 1: "test", self.fold % self.folds: "val"}
        return {patient: names.get(place % self.folds, "train") for place, patient in enumerate(order)}

    def _distinct(self, images: tuple[FileView, ...]) -> list[FileView]:
        """Images of a case without text on the tissue and without exact duplicates."""
        first: dict[str, FileView] = {}
        for view in (view for view in images if view.name not in WORDS_ON_TISSUE):
            first.setdefault(self._digests[view], view)
        return list(first.values())

    @cached_property
    def _digests(self) -> dict[FileView, str]:
        views = [view for case in self._cases for view in case.images]
        return {view: hashlib.sha256(read_bounded(Path(view.path))).hexdigest() for view in views}

    @cached_property
    def _cases(self) -> tuple[Case, ...]:
        files = {int(path.stem): path for path in self.root.glob("*.xml") if path.stem.isdecimal()}
        if not files:
            raise UserError(
                "no-such-file", "no DDTI archive: no files such as 1.xml", place=self.root, hint=f"Expected:\n{LAYOUT}"
            )
        found: list[Case | None] = []
        problems: defaultdict[int, list[str]] = defaultdict(list)
        for number, path in sorted(files.items()):
            found.append(self._case(number, path, problems[number]))
        if lines := [
            ExamError(f"{number}.xml", "wrong-format", text) for number, texts in problems.items() for text in texts
        ]:
            raise UserError.of(first_problems(lines, self.root))
        return tuple(case for case in found if case is not None)

    def _case(self, number: int, path: Path, problems: list[str]) -> Case | None:
        try:
            text = read_bounded(path, LARGEST)
            if b"<!DOCTYPE" in text:
                raise ValueError("it declares a document type")
            tree = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError) as error:
            problems.append(f"not a case: {error}")
            return None
        text_of = {name: " ".join((tree.findtext(name) or "").split()) for name in (*SPELLINGS, "age", "sex")}
        words: dict[str, str | None] = {}
        for name, spellings in SPELLINGS.items():
            words[name] = spellings.get(text_of[name].lower())
            if text_of[name] and words[name] is None:
                known = did_you_mean(text_of[name], spellings) or f" Known: {', '.join(spellings)}"
                problems.append(f"{name} is '{text_of[name]}', which the archive does not use.{known}")
        images, marks = [], list(tree.iter("mark"))
        for mark in marks:
            name = f"{number}_{(mark.findtext('image') or '').strip()}.jpg"
            try:
                file = inside(self.root, name)
                if not file.is_file():
                    raise ValueError(f"no image {name} in {self.root}")
                images.append(FileView(str(file), name))
            except ValueError as error:
                problems.append(str(error))
        if not marks:
            problems.append("names no image in a <mark>")
        age = int(text_of["age"]) if text_of["age"].isdecimal() else None
        sex = {"F": "female", "M": "male"}.get(text_of["sex"])
        return Case(number, words, age, sex, tuple(images))
