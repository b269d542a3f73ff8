"""Simulated ultrasound exams with known truth, for training and tests without a download."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from framework.exam import Exam, LazyExams
from framework.registry import register
from framework.registry.types import Fraction
from framework.runtime.errors import UserError

from .anatomy import Plan, draw_view
from .chinese import write_chinese
from .english import write_english
from .marks import draw_marks
from .simulate import Probe
from .truth import ORGANS, Truth, draw_spots, draw_truth

VERSION = 2  # increase it when the images or texts of a seed change
SPLITS = ("train", "val", "test")
WRITE = {"en": write_english, "zh": write_chinese}
MAX_VIEWS = 4
BOTH_PLANES = 0.4  # share of exams that show a side in two orthogonal planes
# Random streams of an exam; the views start at VIEWS.
TRUTH, VIEW_PLAN, REPORT, REWORDING, VIEWS = range(5)


@dataclass(frozen=True)
class PhantomView:
    """One image, simulated on load."""

    name: str
    truth: Truth = field(repr=False)
    plan: Plan
    size: int
    difficulty: float
    key: tuple[int, ...]

    def load(self) -> np.ndarray:
        """Grey levels, uint8, size x size."""
        scan = draw_view(self.truth, self.plan, self.size, self.difficulty, self.key)[0]
        probe = Probe(self.size, self.truth.setup.field_mm, self.truth.organ == "liver")
        plan = self.plan
        grey = np.round(scan).astype(np.uint8)
        return draw_marks(grey, probe, self.truth.organ, plan.side, plan.place, plan.clock, plan.plane)

    def lesion_mask(self) -> np.ndarray:
        """Lesion mask, bool, size x size; all False in a view without a lesion."""
        return draw_view(self.truth, self.plan, self.size, self.difficulty, self.key)[1]


class PhantomSplit(LazyExams):
    """The exams of one split, created on access and cached."""

    def __init__(self, source: Phantom, split: int, count: int) -> None:
        self.source, self.split, self.exams = source, split, count
        self._cache: dict[int, Exam] = {}

    def __len__(self) -> int:
        return self.exams

    def make(self, number: int) -> Exam:
        if number not in self._cache:
            self._cache[number] = self.source.make(self.split, number)
        return self._cache[number]


@register("dataset", "phantom")
class Phantom:
    """Simulated breast, thyroid or liver exams with known truth, in English or Chinese; no download.

    An exam depends only on (seed, organ, split, index), not on order, machine or number of processes.

    Source:
        Sonoscribe; content of reports and its frequency as in the texts of Li et al. 2024, arXiv 2406.00644.

    Args:
        organ: Examined organ.
        exams: Number of exams in `train`. [exams]
        val_exams: Number of exams in `val`. [exams]
        test_exams: Number of exams in `test`. [exams]
        language: Language of the reports.
        measures: `written` ("18 x 12 mm"), or `masked` as in published data (`_2DS_`, `_Loc_`).
        unseen: Share of exams whose report mentions findings that no view shows (Doppler, lymph nodes). [share]
        difficulty: 0 for clear images, 1 for noisy ones with strongly varying gain and faint lesions.
        size: Side of the square images, at which textures are simulated. [px]
        seed: Random seed.
    """

    mentions = ("side",)

    def __init__(
        self,
        *,
        organ: Literal["breast", "thyroid", "liver"] = "breast",
        exams: PositiveInt = 1200,
        val_exams: PositiveInt = 150,
        test_exams: PositiveInt = 300,
        language: Literal["en", "zh"] = "en",
        measures: Literal["written", "masked"] = "written",
        unseen: Fraction = 0.25,
        difficulty: Fraction = 0.5,
        size: PositiveInt = 160,
        seed: NonNegativeInt = 9233,
    ) -> None:
        if size < 48:
            raise UserError("out-of-range", f"found {size}", place="data.dataset.size", expected="at least 48 pixels")
        self.organ, self.language, self.measures = organ, language, measures
        self.counts = (exams, val_exams, test_exams)
        self.unseen, self.difficulty, self.size, self.seed = unseen, difficulty, size, seed

    def splits(self) -> dict[str, Sequence[Exam]]:
        return {name: PhantomSplit(self, number, self.counts[number]) for number, name in enumerate(SPLITS)}

    @property
    def cache_key(self) -> str:
        settings: dict[str, Any] = {**vars(self), "version": VERSION}
        return "phantom-" + hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def make(self, split: int, index: int) -> Exam:
        """One exam of a split (0 train, 1 val, 2 test)."""
        base = (self.seed, ORGANS.index(self.organ), split, index)

        def stream(number: int) -> np.random.Generator:
            return np.random.default_rng([*base, number])

        truth = draw_truth(self.organ, self.unseen, self.difficulty, stream(TRUTH))
        write, masked = WRITE[self.language], self.measures == "masked"
        views = []
        for number, plan in enumerate(_plans(truth, stream(VIEW_PLAN))):
            name = " ".join(filter(None, (plan.side, plan.place, _plane(self.organ, plan))))
            key = (*base, VIEWS + number)
            views.append(PhantomView(name, truth, plan, self.size, self.difficulty, key))
        exam_id = f"{self.organ}-{self.seed}-{SPLITS[split]}-{index:05d}"
        return Exam(
            id=exam_id,
            patient=exam_id,  # one exam per patient
            views=tuple(views),
            report=write(truth, masked, stream(REPORT)),
            attributes=truth.attributes(),
            rewording=write(truth, masked, stream(REWORDING)),
        )


def telling_view(exam: Exam) -> PhantomView:
    """The first view that shows the largest lesion; the first view of a normal exam."""
    views = [view for view in exam.views if isinstance(view, PhantomView)]
    return next((view for view in views if view.plan.lesion == 0), views[0])


def _plane(organ: str, plan: Plan) -> str:
    """Planes of the breast are radial or antiradial to the nipple, except behind it."""
    return (("radial", "antiradial") if organ == "breast" and plan.clock else ("transverse", "longitudinal"))[
        plan.plane
    ]


def _plans(truth: Truth, rng: np.random.Generator) -> list[Plan]:
    """Plans 2 to 4 views. Both sides are always shown, so that the marks do not reveal a lesion.

    A share of exams shows one side in both planes: that of the lesion, or any side of a normal exam. Each of several
    lesions is shown. The scar of an operation is in the first view of its side.
    """
    shown: list[tuple[int | None, int, str | None]] = []  # lesion, plane, side
    spots = draw_spots(truth.organ, rng)
    both_planes = rng.random() < BOTH_PLANES
    sides = rng.permutation(["left", "right"]).tolist()
    if truth.lesions:
        unseen = [side for side in sides if side not in {lesion.side for lesion in truth.lesions}]
        unseen = unseen[: MAX_VIEWS - len(truth.lesions)]
        room = MAX_VIEWS - len(truth.lesions) - len(unseen)
        for index, drawn in enumerate(truth.lesions):
            twice = index == 0 and both_planes and room > 0
            shown += [(index, plane, drawn.side) for plane in rng.permutation(2).tolist()[: 1 + twice]]
        shown += [(None, int(rng.integers(2)), side) for side in unseen]
    else:
        shown = [(None, plane, sides[0]) for plane in rng.permutation(2).tolist()[: 1 + both_planes]]
        shown.append((None, int(rng.integers(2)), sides[1]))
    if rng.random() < 0.5:
        shown.reverse()  # the side of the first view must not reveal it either
    plans, scarred = [], False
    for number, plane, side in shown:
        lesion = None if number is None else truth.lesions[number]
        scar = truth.surgery is not None and side == truth.surgery and not scarred
        scarred = scarred or scar
        # Normal glands get a probe position too, so that the position does not reveal a lesion.
        place, clock = (lesion.place, lesion.clock) if lesion else spots[str(side)]
        plans.append(Plan(side, place, clock, plane, number, scar))
    return plans
