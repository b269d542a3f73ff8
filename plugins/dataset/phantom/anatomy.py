"""Paints the layers of each organ, and places lesions in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .lesions import paint_lesion
from .simulate import Probe, Scene, render
from .truth import Lesion, Truth

UNIFORM_DB = {"homogeneous": 1.3, "heterogeneous": 4.8}
FATTY_DB = 5.0  # how much brighter steatosis makes a liver


@dataclass(frozen=True)
class Plan:
    """Content of one view of an exam."""

    side: str | None
    place: str | None
    clock: int | None
    plane: int  # 0: across (transverse, radial), 1: along (longitudinal, antiradial)
    lesion: int | None  # index in the truth
    scar: bool


def draw_view(truth: Truth, plan: Plan, size: int, difficulty: float, key: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """The scan without marks (float H x W, 0 to 255) and the lesion's mask (bool H x W)."""
    rng = np.random.default_rng(list(key))
    scene = Scene(Probe(size, truth.setup.field_mm, truth.organ == "liver"), rng)
    lesion = None if plan.lesion is None else truth.lesions[plan.lesion]
    centre = {"breast": _breast, "thyroid": _thyroid, "liver": _liver}[truth.organ](scene, truth, plan, lesion)
    if lesion is not None:
        base_db = FATTY_DB if truth.steatosis else 0.0
        paint_lesion(scene, lesion, plan.plane, centre, base_db, difficulty)
    if plan.scar:
        _scar(scene, centre[0])
    _lose_contact(scene, difficulty)
    mask = scene.probe.to_image(scene.lesion[::2].astype(np.float32)) > 0.5
    return render(scene, truth.setup), mask


def _skin(scene: Scene, thickness_mm: float) -> None:
    scene.paint(scene.z < thickness_mm, 4.0)
    scene.interface(scene.z - thickness_mm, 0.25, 8.0, mirror=0.3)
    scene.interface(scene.z, 0.5, 12.0, mirror=0.3)


def _fat(scene: Scene, where: np.ndarray, level_db: float, septa: int) -> None:
    """Dark lobules between thin bright septa (in the breast: Cooper's ligaments)."""
    scene.paint(where, level_db + scene.texture(10, 12) * 1.5)
    for _ in range(2):
        walls = np.exp(-((scene.texture(septa, septa + 2) / 0.07) ** 2)) * where
        scene.echo_db += np.clip(4.0 - scene.echo_db, 0, None) * walls * 0.8


def _muscle(scene: Scene, where: np.ndarray, level_db: float, spacing_mm: float) -> None:
    """Dark with bright striations along the fibres."""
    fibre = np.sin((scene.z + scene.curve(1.2)) * (2 * np.pi / spacing_mm) + scene.texture(4, 4) * 1.5)
    scene.paint(where, level_db + 6.0 * np.clip(fibre, 0, None) ** 3 + scene.texture(12, 5))


def _breast(scene: Scene, truth: Truth, plan: Plan, lesion: Lesion | None) -> tuple[float, float]:
    field, depth, body = scene.probe.field_mm, scene.probe.depth_mm, truth.setup.body
    height = lesion.height_mm if lesion else 0.0
    skin = 1.2 + 1.0 * body[0]
    fat = skin + 2.5 + 5.0 * body[1]
    thick = max(0.28 * depth + 0.16 * depth * body[2], height + 3.0)
    fat = min(fat, 0.92 * depth - thick)
    upper = fat + scene.curve(1.1, 6)
    lower = np.maximum(fat + thick + scene.curve(0.9, 4), upper + height)
    chest = lower + 1.5 + 2.5 * body[3]

    uneven = UNIFORM_DB[truth.gland]
    scene.paint(np.ones_like(scene.z, bool), scene.texture(9, 7) * uneven + scene.texture(34, 7) * 2.2)
    if truth.gland == "heterogeneous":  # islands of fat between the glandular cords
        islands = 1 / (1 + np.exp(-(scene.texture(11, 8) - 0.9) * 7))
        scene.echo_db -= 9 * islands
    _fat(scene, scene.z < upper, -10.0, 4)
    _fat(scene, scene.z > lower, -10.0, 6)
    _muscle(scene, scene.z > chest, -7.0, 2.6)
    scene.interface(scene.z - chest, 0.4, 7.0)
    scene.interface(scene.z - upper, 0.25, 4.0, mirror=0.3)
    if scene.rng.random() < 0.4:
        _rib(scene, chest + 4.0 + 2 * scene.rng.random())
    _skin(scene, skin)
    share = lesion.depth if lesion else 0.5
    room = max(0.0, thick - height - 2.0)
    return (lesion.offset if lesion else 0.3) * 0.14 * field, fat + 1.0 + room * share + height / 2


def _rib(scene: Scene, top: np.ndarray) -> None:
    """A bright cap and nothing behind it."""
    across = scene.rng.uniform(-0.4, 0.4) * scene.probe.field_mm
    half = scene.rng.uniform(4.0, 6.5)
    cap = top + ((scene.x - across) / half) ** 2 * 2.0
    over = np.abs(scene.x - across) < half
    scene.interface(np.where(over, scene.z - cap, 99.0), 0.6, 15.0)
    scene.loss += np.where(over & (np.abs(scene.z - cap - 1) < 1.0), 14.0, 0.0)


def _thyroid(scene: Scene, truth: Truth, plan: Plan, lesion: Lesion | None) -> tuple[float, float]:
    body, depth = truth.setup.body, scene.probe.depth_mm
    height = lesion.height_mm if lesion else 0.0
    isthmus = plan.place == "isthmus"
    normal = 22.5 + 2.0 * body[2] if truth.size_gland == "enlarged" else 13.5 + 2.5 * body[2]
    thick = max(4.0, height + 2.0) if isthmus else max(normal, height + 1.5)
    skin, strap = 1.2 + 0.8 * body[0], 3.4 + 1.5 * body[1]
    top = strap + 2.2 + 1.6 * body[3]
    top = min(top, 0.93 * depth - thick)
    middle = top + thick / 2

    _muscle(scene, np.ones_like(scene.z, bool), -9.0, 3.0)
    _fat(scene, (scene.z < strap) & (scene.z > skin), -7.0, 3)
    scene.interface(scene.z - strap - scene.curve(0.3), 0.3, 3.0)
    medial = -1.0 if plan.side == "left" else 1.0  # the patient's right lies at the image's left
    place = (lesion.offset if lesion else 0.3) * 0.1 * scene.probe.field_mm
    if plan.plane == 0 and not isthmus:
        half = max(9.5 + 2.5 * body[2], (lesion.width_mm / 2 + 1.5) if lesion else 0.0)
        half *= 1.2 if truth.size_gland == "enlarged" else 1.0
        _lobe(scene, truth, (0.0, middle), (half, thick / 2), 2.0)
        _trachea(scene, medial * (half + 6.0), top + 2.0)
        _carotid(scene, -medial * (half + 3.5), middle + 1.0)
        place = np.clip(place, -0.5, 0.5)
    elif isthmus:
        _trachea(scene, 0.0, top + thick + 0.5)
        _lobe(scene, truth, (0.0, middle), (25.0, thick / 2), 4.0)
    else:
        _lobe(scene, truth, (0.0, middle), (22.0, thick / 2), 2.6)
        place += {"upper pole": -0.2, "lower pole": 0.2}.get(plan.place or "", 0.0) * scene.probe.field_mm
    _skin(scene, skin)
    room = 0.5 * max(0.0, thick - height - 1.5)
    return float(place), middle + room * ((lesion.depth if lesion else 0.5) - 0.5)


def _lobe(scene: Scene, truth: Truth, centre: tuple[float, float], half: tuple[float, float], square: float) -> None:
    across, deep = np.abs(scene.x - centre[0]) / half[0], np.abs(scene.z - centre[1] - scene.curve(0.35)) / half[1]
    radius = (across**square + deep**square) ** (1 / square)
    level = scene.texture(8, 8) * UNIFORM_DB[truth.gland] * 0.8 + scene.texture(18, 18)
    if truth.gland == "heterogeneous":
        level = level - 3.0
    scene.paint(radius < 1, level, loss=0.0)
    scene.interface((radius - 1) * half[1], 0.25, 3.5, mirror=0.3)


def _trachea(scene: Scene, across: float, top: float) -> None:
    """A bright curve; behind it only echoes of echoes, which fade."""
    wall = top + ((scene.x - across) / 9.0) ** 2 * 5.0
    behind = (np.abs(scene.x - across) < 9.5) & (scene.z > wall)
    rings = 4 * np.sin((scene.z - wall) * 2.4) - 8 - 1.1 * (scene.z - wall) + scene.texture(12, 8) * 4
    scene.paint(behind, rings, loss=0.2)
    scene.interface(np.where(np.abs(scene.x - across) < 9.5, scene.z - wall, 99.0), 0.45, 10.0)


def _carotid(scene: Scene, across: float, deep: float) -> None:
    distance = np.hypot(scene.x - across, scene.z - deep)
    radius = scene.rng.uniform(2.6, 3.4)
    scene.paint(distance < radius, -38.0, loss=-0.6)
    scene.interface(distance - radius, 0.3, 4.0, mirror=0.3)


def _liver(scene: Scene, truth: Truth, plan: Plan, lesion: Lesion | None) -> tuple[float, float]:
    body, rng = truth.setup.body, scene.rng
    height = lesion.height_mm if lesion else 0.0
    wall = 9.0 + 6.0 * body[0]
    # The left lobe is thinner than the right; an enlarged liver reaches deeper than either.
    reach = 104.0 + 6 * body[1] if truth.size_gland == "enlarged" else 80.0 + 7 * body[1]
    reach = max(reach - (8.0 if plan.side == "left" else 0.0), wall + height + 8.0)
    fatty = truth.steatosis
    coarse = truth.gland == "heterogeneous"
    level = scene.texture(22, 20) * (4.5 if coarse else 0.5) + scene.texture(7, 6) * (2.5 if coarse else 0.8)
    scene.paint(np.ones_like(scene.z, bool), level + (FATTY_DB if fatty else 0.0), loss=0.20 if fatty else 0.0)
    for _ in range(int(rng.integers(3, 6))):
        _vessel(scene, portal=bool(rng.random() < 0.5), dim=fatty, top=wall + 12, bottom=reach - 6)
    dome = reach - ((scene.x - 12) / 70.0) ** 2 * 22 + scene.curve(0.8)
    scene.paint(scene.z > dome, -11.0 + scene.texture(8, 8) * 3, loss=0.15)
    scene.interface(scene.z - dome, 1.2, 10.0)
    if plan.side == "right" and rng.random() < 0.45:
        (_gallbladder if rng.random() < 0.5 else _kidney)(scene, reach)
    _fat(scene, scene.z < wall * 0.5, -7.0, 3)
    _muscle(scene, (scene.z >= wall * 0.5) & (scene.z < wall), -6.0, 3.5)
    edge = scene.curve(0.9, 14) if coarse else scene.curve(0.3, 4)
    scene.interface(scene.z - wall - edge, 0.7, 7.0)
    _skin(scene, 2.0)
    room = max(0.0, reach - wall - height - 12.0)
    across = (lesion.offset if lesion else 0.3) * 0.11 * scene.probe.field_mm
    return across, wall + 4.0 + room * (0.15 + 0.6 * (lesion.depth if lesion else 0.5)) + height / 2


def _vessel(scene: Scene, portal: bool, dim: bool, top: float, bottom: float) -> None:
    """A tapering tube: portal veins have bright walls, hepatic veins none. Fat blurs both."""
    rng = scene.rng
    start = np.array([rng.uniform(-55, 55), rng.uniform(top, bottom)])
    turn, length = rng.uniform(-0.9, 0.9) + (np.pi if rng.random() < 0.5 else 0), rng.uniform(25, 55)
    along = (scene.x - start[0]) * np.cos(turn) + (scene.z - start[1]) * np.sin(turn)
    beside = (scene.z - start[1]) * np.cos(turn) - (scene.x - start[0]) * np.sin(turn)
    beside = beside + 9 * rng.uniform(-1, 1) * (along / length) ** 2
    share = np.clip(along / length, 0, 1)
    radius = rng.uniform(2.4, 5.0) * (1 - 0.65 * share) * np.sqrt(np.clip(4 * share * (1 - share) + 0.25, 0, 1))
    distance = np.hypot(beside, along - share * length) - radius
    level = -12.0 if dim else -32.0
    scene.paint(1 / (1 + np.exp(np.clip(distance / 0.4, -30, 30))), level)
    if portal and not dim:
        scene.interface(distance - 0.8, 1.0, 6.0, mirror=0.4)


def _gallbladder(scene: Scene, reach: float) -> None:
    """A long dark pear with a bright wall, on the side away from the dome."""
    across, deep = (
        (scene.x + 38) * 0.8 + (scene.z - reach + 24) * 0.6,
        (scene.z - reach + 24) * 0.8 - (scene.x + 38) * 0.6,
    )
    half = scene.rng.uniform(22, 28), scene.rng.uniform(7, 10)
    radius = np.hypot(across / half[0], deep / (half[1] * (1 - 0.3 * across / half[0])))
    scene.paint(radius < 1, -40.0, loss=-0.35)
    scene.interface((radius - 1) * half[1], 1.2, 9.0, mirror=0.4)


def _kidney(scene: Scene, reach: float) -> None:
    """A dark rim around a bright sinus, on the side away from the dome."""
    across, deep = (scene.x + 36) / 34.0, (scene.z - reach + 8) / 17.0
    radius = np.hypot(across, deep) + scene.texture(6, 6) * 0.05
    scene.paint(radius < 1, -7.0 + scene.texture(12, 12), loss=0.0)
    scene.paint(radius < 0.5, 7.0 + scene.texture(12, 12) * 3)
    scene.interface((radius - 1) * 17, 0.8, 7.0)


def _scar(scene: Scene, away_from: float) -> None:
    """A slanting dark band from the skin with bright clips, each with a fading tail."""
    pixel, depth = scene.probe.pixel_mm, scene.probe.depth_mm
    start = (-0.30 if away_from > 0 else 0.30) * scene.probe.field_mm
    lean = -0.25 * np.sign(start)
    aside = np.abs(scene.x - start - lean * scene.z)
    band = np.exp(-((aside / (5.0 * pixel)) ** 2)) * (scene.z < 0.5 * depth)
    scene.echo_db -= 11 * band
    for share in (0.18, 0.30, 0.42):
        z = share * depth
        x = start + lean * z
        near = np.abs(scene.x - x)
        tail = (near < 1.3 * pixel) & (scene.z > z) & (scene.z < z + 0.14 * depth)
        scene.paint(tail, 9.0 - 16.0 * (scene.z - z) / (0.14 * depth))
        scene.interface(np.hypot(near / 2.5, scene.z - z), 1.2 * pixel, 22.0, mirror=0.9)


def _lose_contact(scene: Scene, difficulty: float) -> None:
    """Where the probe lifts off at an edge of the skin, the lines below fade; normal and lesion exams alike."""
    if scene.rng.random() < 0.2 + 0.5 * difficulty:
        lines = scene.x.shape[1]
        width = scene.rng.uniform(0.03, 0.22) * lines
        depth = scene.rng.uniform(10, 36)
        edge = np.arange(lines) if scene.rng.random() < 0.5 else np.arange(lines)[::-1]
        scene.echo_db -= (depth / (1 + np.exp(np.clip((edge - width) / (0.035 * lines), -30, 30)))).astype(np.float32)
