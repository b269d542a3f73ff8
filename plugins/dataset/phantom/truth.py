"""The truth of an exam, sampled before its images and report, so that they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ORGANS = ("breast", "thyroid", "liver")


@dataclass(frozen=True)
class Lesion:
    """One lesion in three dimensions: width and length across the skin, height into the depth."""

    kind: str
    side: str | None  # None in the isthmus of the thyroid
    place: str | None  # a quadrant or pole; None in the liver
    clock: int | None  # breast, as seen by someone facing the patient
    echogenicity: str
    shape: str
    margin: str
    orientation: str | None
    posterior: str
    calcification: bool
    doppler: bool
    width_mm: int
    length_mm: int
    height_mm: int
    offset: float  # place across the image, -1 to 1
    depth: float  # place in the depth its layer leaves, 0 to 1
    contrast: float  # where in the band of its echogenicity, -1 to 1
    form: int  # seed of the surface, the same in every plane

    @property
    def diameters_mm(self) -> tuple[int, int]:
        """The two diameters a report gives: the longer first."""
        across = max(self.width_mm, self.length_mm)
        return max(across, self.height_mm), min(across, self.height_mm)

    def attributes(self) -> dict[str, Any]:
        values = {
            "kind": self.kind,
            "side": self.side,
            "place": self.place,
            "clock": self.clock,
            "echogenicity": self.echogenicity,
            "shape": self.shape,
            "margin": self.margin,
            "orientation": self.orientation,
            "posterior": self.posterior,
            "calcification": "present" if self.calcification else "absent",
            "doppler": "present" if self.doppler else "absent",
            "diameters_mm": list(self.diameters_mm),
        }
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class Setup:
    """The machine and the body, the same in every view of an exam."""

    field_mm: float  # what the width of the image spans
    gain_db: float
    range_db: float
    curve: float  # exponent of the grey map
    gain_slope_db: float  # what the time-gain compensation gets wrong from top to bottom
    noise_db: float
    focus: float  # depth of the focus, 0 to 1
    body: tuple[float, float, float, float]  # four shares from 0 to 1: thickness of the organ's layers


@dataclass(frozen=True)
class Truth:
    """Everything from which an exam's views and report are generated."""

    organ: str
    gland: str
    size_gland: str | None
    steatosis: bool
    lesions: tuple[Lesion, ...]  # the largest first
    surgery: str | None  # the operated side
    lymph_node: str
    mentions_doppler: bool  # the report mentions a finding that no view shows
    mentions_nodes: bool
    setup: Setup

    @property
    def category(self) -> int | None:
        """BI-RADS (breast) or TI-RADS (thyroid) of the worst lesion, None where there is none to give."""
        if self.organ == "liver" or not self.lesions:
            return None
        return max((birads if self.organ == "breast" else tirads)(lesion) for lesion in self.lesions)

    def attributes(self) -> dict[str, Any]:
        """For `Exam.attributes`: JSON-able, in the words of the findings metric."""
        found: dict[str, Any] = {"organ": self.organ, "gland": self.gland}
        if self.size_gland:
            found["size_gland"] = self.size_gland
        if self.organ == "liver":
            found["steatosis"] = "present" if self.steatosis else "absent"
        found["lesion"] = "present" if self.lesions else "absent"
        if self.lesions:
            found["count"] = "multiple" if len(self.lesions) > 1 else "single"
        found["lesions"] = [lesion.attributes() for lesion in self.lesions]
        found["surgery"] = "present" if self.surgery else "absent"
        if self.surgery:
            found["surgery_side"] = self.surgery
        found["lymph_node"] = self.lymph_node
        found["doppler"] = "present" if self.lesions and self.lesions[0].doppler else "absent"
        if self.category:
            found["birads" if self.organ == "breast" else "tirads"] = str(self.category)
        found["unseen"] = [
            name
            for name, mentioned in (("doppler", self.mentions_doppler), ("lymph_node", self.mentions_nodes))
            if mentioned
        ]
        return found


def birads(lesion: Lesion) -> int:
    """A category in the spirit of BI-RADS (ACR, 5th edition, ultrasound), from what B-mode shows."""
    calm = lesion.margin == "circumscribed" and lesion.shape != "irregular"
    if calm and lesion.echogenicity == "anechoic":
        return 2
    if calm and lesion.orientation == "parallel" and not lesion.calcification:
        return 3
    return 5 if lesion.margin == "spiculated" and lesion.shape == "irregular" else 4


def tirads(lesion: Lesion) -> int:
    """Level by the points of ACR TI-RADS (Tessler et al., 2017, doi:10.1016/j.jacr.2017.01.046)."""
    points = {"anechoic": 0, "mixed": 2, "isoechoic": 3, "hyperechoic": 3, "hypoechoic": 4}[lesion.echogenicity]
    points += 3 if lesion.orientation == "not parallel" else 0
    points += 2 if lesion.margin in ("lobulated", "spiculated") or lesion.shape == "irregular" else 0
    points += 3 if lesion.calcification else 0
    return 1 if points < 2 else 2 if points == 2 else 3 if points == 3 else 4 if points < 7 else 5


@dataclass(frozen=True)
class Kind:
    """Frequencies of a kind of lesion and its appearance. Weights need not sum to 1."""

    weight: float
    echogenicity: Mapping[str, float]
    shape: Mapping[str, float]
    margin: Mapping[str, float]
    posterior: Mapping[str, float]
    upright: float  # chance of standing taller than wide
    calcification: float
    doppler: float


CALM = {"oval": 0.75, "round": 0.25}
CLEAR = {"circumscribed": 0.93, "lobulated": 0.07}
CYST = Kind(0.30, {"anechoic": 1}, CALM, {"circumscribed": 1}, {"enhancement": 1}, 0, 0, 0.02)
BENIGN = {"none": 0.85, "enhancement": 0.15}

KINDS: dict[str, dict[str, Kind]] = {
    "breast": {
        "cyst": CYST,
        "fibroadenoma": Kind(0.34, {"hypoechoic": 0.85, "isoechoic": 0.15}, CALM, CLEAR, BENIGN, 0.02, 0.01, 0.4),
        "lipoma": Kind(0.08, {"hyperechoic": 1}, {"oval": 1}, {"circumscribed": 1}, {"none": 1}, 0, 0, 0.05),
        "complex cyst": Kind(0.08, {"mixed": 1}, CALM, {"circumscribed": 0.7, "indistinct": 0.3}, BENIGN, 0, 0, 0.3),
        "carcinoma": Kind(
            0.20,
            {"hypoechoic": 1},
            {"irregular": 1},
            {"spiculated": 0.5, "indistinct": 0.35, "lobulated": 0.15},
            {"shadow": 0.75, "none": 0.25},
            0.5,
            0.22,
            0.85,
        ),
    },
    "thyroid": {
        "cyst": CYST,
        "adenoma": Kind(
            0.30, {"isoechoic": 0.4, "hypoechoic": 0.35, "hyperechoic": 0.25}, CALM, CLEAR, {"none": 1}, 0, 0.06, 0.6
        ),
        "colloid nodule": Kind(0.20, {"mixed": 1}, CALM, CLEAR, BENIGN, 0, 0.05, 0.4),
        "carcinoma": Kind(
            0.20,
            {"hypoechoic": 1},
            {"irregular": 1},
            {"indistinct": 0.5, "lobulated": 0.35, "spiculated": 0.15},
            {"none": 0.6, "shadow": 0.4},
            0.55,
            0.6,
            0.7,
        ),
    },
    "liver": {
        "cyst": CYST,
        "hemangioma": Kind(0.35, {"hyperechoic": 1}, CALM, {"circumscribed": 1}, {"none": 1}, 0, 0.02, 0.1),
        "metastasis": Kind(
            0.22,
            {"hypoechoic": 1},
            {"round": 0.5, "irregular": 0.5},
            {"indistinct": 0.7, "circumscribed": 0.3},
            {"none": 1},
            0,
            0.1,
            0.4,
        ),
        "carcinoma": Kind(
            0.13, {"mixed": 1}, {"irregular": 0.6, "round": 0.4}, {"indistinct": 1}, {"none": 1}, 0, 0.05, 0.8
        ),
    },
}

# Shares of reports, counted on published breast and thyroid reports; the liver's are set between the two.
SHARES: dict[str, dict[str, float]] = {
    "breast": {"lesion": 0.51, "several": 0.02, "surgery": 0.15, "doppler": 0.61, "nodes": 0.99, "heterogeneous": 0.2},
    "thyroid": {"lesion": 0.76, "several": 0.14, "surgery": 0.06, "doppler": 0.98, "nodes": 0.99, "heterogeneous": 0.2},
    "liver": {"lesion": 0.50, "several": 0.08, "surgery": 0.06, "doppler": 0.80, "nodes": 0.90, "heterogeneous": 0.18},
}
FIELD_MM = {"breast": (40.0, 46.0), "thyroid": (38.0, 44.0), "liver": (156.0, 168.0)}
PLACES = {
    "breast": {"upper outer": 0.4, "upper inner": 0.2, "lower outer": 0.18, "lower inner": 0.12, "retroareolar": 0.1},
    "thyroid": {"middle": 0.42, "lower pole": 0.31, "upper pole": 0.21, "isthmus": 0.06},
}
# The hours of a quadrant on the right breast; the left is its mirror image.
HOURS = {"upper outer": (10, 11), "upper inner": (1, 2), "lower inner": (4, 5), "lower outer": (7, 8)}


def choose(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    """Samples a key of `weights` in proportion to its weight."""
    rest = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        rest -= weight
        if rest < 0:
            return name
    return name  # rounding error


def _setup(organ: str, difficulty: float, rng: np.random.Generator) -> Setup:
    variation = 0.4 + 1.2 * difficulty  # 1 at the default
    body = rng.random(4)
    return Setup(
        field_mm=float(rng.uniform(*FIELD_MM[organ])),
        gain_db=float(rng.uniform(-8, 8) * variation),
        range_db=float(58 + rng.uniform(-9, 9) * variation),
        curve=float(np.exp(rng.uniform(-0.28, 0.28) * variation)),
        gain_slope_db=float(rng.uniform(-5, 5) * variation),
        noise_db=float(-40 + 10 * (difficulty - 0.5) + rng.uniform(-8, 8) * variation),
        focus=float(rng.uniform(0.25, 0.6)),
        body=(float(body[0]), float(body[1]), float(body[2]), float(body[3])),
    )


def _measure(
    organ: str, shape: str, upright: bool, enlarged: bool, field_mm: float, rng: np.random.Generator
) -> tuple[int, int, int]:
    """Width, length and height in mm, such that the eye would call the shape and orientation what they are called."""
    tallest = {"breast": 0.38 * field_mm, "thyroid": 20.0 if enlarged else 14.0, "liver": 46.0}[organ]
    flat = {"round": (0.92, 1.0), "oval": (0.52, 0.72), "irregular": (0.62, 0.82)}[shape]
    ratio = 1 / rng.uniform(0.62, 0.8) if upright else rng.uniform(*flat)
    width = field_mm * (0.16 + 0.27 * rng.beta(1.4, 1.7))
    width = max(min(width, tallest / ratio), 0.12 * field_mm)
    length = width * (rng.uniform(0.97, 1.03) if shape == "round" else rng.uniform(0.86, 1.0 if upright else 1.12))
    return round(width), round(length), max(1, round(width * ratio))


def _spot(side: str, rng: np.random.Generator, places: Mapping[str, float]) -> tuple[str, int | None]:
    """A place, and in the breast its hour as seen by someone facing the patient."""
    place = choose(rng, places)
    hours = HOURS.get(place)
    if hours is None:
        return place, None
    hour = int(rng.choice(hours))
    return place, 12 - hour if side == "left" else hour


def draw_spots(organ: str, rng: np.random.Generator) -> dict[str, tuple[str | None, int | None]]:
    """Probe position in a normal gland by side: place and hour."""
    places = {place: share for place, share in PLACES.get(organ, {}).items() if place != "isthmus"}
    return {side: _spot(side, rng, places) if places else (None, None) for side in ("left", "right")}


def _lesion(organ: str, side: str, enlarged: bool, field_mm: float, largest: float, rng: np.random.Generator) -> Lesion:
    kinds = KINDS[organ]
    name = choose(rng, {name: kind.weight for name, kind in kinds.items()})
    kind = kinds[name]
    shape = choose(rng, kind.shape)
    upright = bool(rng.random() < kind.upright) and shape != "round"
    width, length, height = _measure(organ, shape, upright, enlarged, field_mm * largest, rng)
    place, clock = _spot(side, rng, PLACES[organ]) if organ in PLACES else (None, None)
    orientation = None if organ == "liver" else "not parallel" if upright else "parallel"
    return Lesion(
        kind=name,
        side=None if place == "isthmus" else side,
        place=place,
        clock=clock,
        echogenicity=choose(rng, kind.echogenicity),
        shape=shape,
        margin=choose(rng, kind.margin),
        orientation=orientation,
        posterior=choose(rng, kind.posterior),
        calcification=bool(rng.random() < kind.calcification),
        doppler=bool(rng.random() < kind.doppler),
        width_mm=width,
        length_mm=length,
        height_mm=height,
        offset=float(rng.uniform(-1, 1)),
        depth=float(rng.random()),
        contrast=float(rng.uniform(-1, 1)),
        form=int(rng.integers(2**31)),
    )


def _sides(count: int, rng: np.random.Generator) -> Sequence[str]:
    return [str(side) for side in rng.choice(["left", "right"], size=count)]


def draw_truth(organ: str, unseen: float, difficulty: float, rng: np.random.Generator) -> Truth:
    """Samples an exam. `unseen` affects only the report, so that exams of other settings stay comparable."""
    shares = SHARES[organ]
    setup = _setup(organ, difficulty, rng)
    mentions = rng.random() < unseen
    mentions_doppler, mentions_nodes = rng.random() < shares["doppler"], rng.random() < shares["nodes"]
    gland = "heterogeneous" if rng.random() < shares["heterogeneous"] else "homogeneous"
    enlarged, fatty = bool(rng.random() < 0.14), bool(rng.random() < 0.25)
    several = bool(rng.random() < shares["several"])
    lesion = several or bool(rng.random() < (shares["lesion"] - shares["several"]) / (1 - shares["several"]))
    count = 0 if not lesion else 1 if not several else int(rng.choice([2, 3], p=[0.7, 0.3]))
    sides = _sides(max(count, 1), rng)
    drawn = [
        _lesion(organ, sides[index], enlarged, setup.field_mm, 1.0 if count < 2 else 0.8, rng) for index in range(count)
    ]
    drawn.sort(key=lambda lesion: -lesion.diameters_mm[0])
    # The operated side is shown: an invisible scar would be unseen content.
    shown = [lesion.side for lesion in drawn if lesion.side] or (sides[:1] if not drawn else [])
    operated = bool(rng.random() < shares["surgery"])
    return Truth(
        organ=organ,
        gland=gland,
        size_gland=None if organ == "breast" else "enlarged" if enlarged else "normal",
        steatosis=organ == "liver" and fatty,
        lesions=tuple(drawn),
        surgery=shown[0] if operated and shown else None,
        lymph_node="visible" if rng.random() < 0.06 else "not enlarged",
        mentions_doppler=bool(mentions and mentions_doppler),
        mentions_nodes=bool(mentions and mentions_nodes),
        setup=setup,
    )
