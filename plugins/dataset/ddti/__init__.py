"""DDTI, the public thyroid ultrasound archive, as exams whose reports are composed from the experts' descriptors."""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from framework.data.check import listing
from framework.data.image_file import FileView, inside
from framework.exam import Exam, ExamError
from framework.registry import did_you_mean, register
from plugins.dataset.ddti import scan
from plugins.dataset.ddti.compose import SPELLINGS, attributes, compose

LAYOUT = """\
  1.xml 2.xml ...        a case each: descriptors, TI-RADS, and the number of each of its images
  1_1.jpg 1_2.jpg ...    its images
It is described in Pedraza, Vargas, Narvaez, Duran, Munoz, Romero, "An open access thyroid ultrasound-image database",
Proceedings of SPIE 9287, 2015. Get it from its authors and set data.dataset.root to the folder that holds 1.xml.
Without it, recipes/thyroid.yaml runs on simulated exams."""
# Frames with words on the tissue itself, which no mask of the margins reaches: 80_2 says that it shows adenopathy.
WORDS_ON_TISSUE = frozenset({"80_2.jpg"})
LARGEST = 1_000_000  # bytes of a case's file, which is a thousand times smaller


@dataclass(frozen=True)
class Case:
    """One case of the archive: what its file says, and its images."""

    number: int
    words: dict[str, str | None]  # by descriptor, spelled as one word is spelled here; None where it is left out
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
    """DDTI: real thyroid exams with a nodule; their reports are composed, not written by a physician.

    A report is the experts' descriptors (composition, echogenicity, margins, calcifications) and their TI-RADS category
    in words, in English. It names no side. Of the 390 cases 198 have all descriptors and a category, and 100 more a
    category and some of them. The other 92 have no category, 91 of them nothing at all, and are left out.

    Everything outside of the scan area is black: text burnt into the margins tells the category (docs/data.md).

    Cases that share an image are one patient. Patients are dealt to `folds` folds, each TI-RADS category by itself, in
    an order drawn from `split_seed`: fold `fold` is for testing, the next one for validation.

    Source:
        Images and descriptors: Pedraza et al. 2015, Proceedings of SPIE 9287. The scan areas, the splits and the
        reports: Sonoscribe.

    Args:
        root: folder of the unpacked archive, which holds 1.xml.
        complete: whether cases that lack a descriptor are left out; else their reports leave it unsaid.
        fold: the fold to test on, from 1.
        folds: how many parts the patients are dealt to, from 3. [folds]
        split_seed: what the order of patients is drawn from.
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
            raise ValueError(f"data.dataset.folds: {folds}, expected at least 3: to train, to validate, to test")
        if fold > folds:
            raise ValueError(f"data.dataset.fold: {fold} of {folds} folds; write 1 to {folds}")
        self.root, self.complete = Path(root), complete
        self.fold, self.folds, self.split_seed = fold, folds, split_seed

    def splits(self) -> dict[str, Sequence[Exam]]:
        """`train`, `val` and `test` by patient.

        Raises:
            ValueError: the archive is not there or not as it was published; lists every bad case.
        """
        return self._splits

    @property
    def cache_key(self) -> str:
        """From the bytes of all images, and from how scan areas are found."""
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
                views=tuple(scan.ScanView(view) for view in self._different(case.images)),
                report=compose(truth, case.name),
                attributes=truth,
                rewording=compose(truth, f"{case.name} again"),
            )
            found[homes[patient]].append(exam)
        return {split: tuple(exams) for split, exams in found.items()}

    @cached_property
    def _patients(self) -> dict[int, int]:
        """The patient of each case, named by the first of their cases: those that share an image are one."""
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
        """The split of each patient with a category, the same whether incomplete cases are read or not."""
        gravest: dict[int, str] = {}
        for case in self._cases:
            category = case.words["tirads"]
            if category is not None:
                patient = self._patients[case.number]
                gravest[patient] = max(gravest.get(patient, ""), category)

        def drawn(patient: int) -> str:
            return hashlib.sha256(f"{self.split_seed}/{patient}".encode()).hexdigest()

        order = sorted(gravest, key=lambda patient: (gravest[patient], drawn(patient)))
        names = {self.fold - 1: "test", self.fold % self.folds: "val"}
        return {patient: names.get(place % self.folds, "train") for place, patient in enumerate(order)}

    def _different(self, images: tuple[FileView, ...]) -> list[FileView]:
        """Images of a case without words on the tissue, and without those that repeat one before, byte by byte."""
        first: dict[str, FileView] = {}
        for view in (view for view in images if view.name not in WORDS_ON_TISSUE):
            first.setdefault(self._digests[view], view)
        return list(first.values())

    @cached_property
    def _digests(self) -> dict[FileView, str]:
        views = [view for case in self._cases for view in case.images]
        return {view: hashlib.sha256(Path(view.path).read_bytes()).hexdigest() for view in views}

    @cached_property
    def _cases(self) -> tuple[Case, ...]:
        files = {int(path.stem): path for path in self.root.glob("*.xml") if path.stem.isdecimal()}
        if not files:
            raise ValueError(f"{self.root}: no DDTI archive here, 1.xml and its like are missing. Expected:\n{LAYOUT}")
        found: list[Case | None] = []
        problems: defaultdict[int, list[str]] = defaultdict(list)
        for number, path in sorted(files.items()):
            found.append(self._case(number, path, problems[number]))
        if lines := [
            ExamError(f"{number}.xml", "wrong-format", text) for number, texts in problems.items() for text in texts
        ]:
            raise ValueError(f"{self.root}: {len(lines)} problems of the archive\n{listing(lines)}")
        return tuple(case for case in found if case is not None)

    def _case(self, number: int, path: Path, problems: list[str]) -> Case | None:
        text = path.read_bytes()
        try:
            if len(text) > LARGEST or b"<!DOCTYPE" in text:
                raise ValueError("too long, or declares a document type, which no case does")
            tree = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError) as error:
            problems.append(f"cannot be read as a case: {error}")
            return None
        said = {name: " ".join((tree.findtext(name) or "").split()) for name in (*SPELLINGS, "age", "sex")}
        words: dict[str, str | None] = {}
        for name, spellings in SPELLINGS.items():
            words[name] = spellings.get(said[name].lower())
            if said[name] and words[name] is None:
                known = did_you_mean(said[name], spellings) or f" Known: {', '.join(spellings)}"
                problems.append(f"{name} is '{said[name]}', which is no word of the archive.{known}")
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
        age = int(said["age"]) if said["age"].isdecimal() else None
        sex = {"F": "female", "M": "male"}.get(said["sex"])
        return Case(number, words, age, sex, tuple(images))
