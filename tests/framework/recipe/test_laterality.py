"""Reports that name a side are found, and their images are not mirrored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, problem
from PIL import Image

from framework.build import build_components
from framework.cli.recipes import validate
from framework.distributed.launch import start_accelerator
from framework.plan.plan import plan
from framework.recipe import load_recipe
from framework.recipe.laterality import side_in
from plugins.dataset.phantom import Phantom

SMOKE = ROOT / "recipes" / "smoke.yaml"
SHORT_FORMS = (
    "Lt breast", "RT breast 2 o'clock", "Rt. lobe", "L breast", "R lobe", "L. thyroid", "LUOQ", "RUIQ", "LLOQ", "RLIQ",
    "LUQ", "LLQ", "RLQ", "Lt axilla", "R-sided part", "rightmost lobe",
)  # fmt: skip


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("A mass in the left breast.", True),
        ("RIGHT lobe enlarged", True),
        ("A left-sided nodule.", True),
        ("Tenderness in the RUQ.", True),
        *((f"A mass in the {side}.", True) for side in SHORT_FORMS),
        ("The left angle of the jaw.", True),
        ("The leftmost cyst is 4 mm.", True),
        ("In the righthand lobe, and on the left-hand side.", True),
        ("左乳见低回声结节", True),
        ("甲状腺右叶大小正常", True),
        ("左右叶大小正常，左叶见结节", True),
        ("双侧甲状腺大小正常，大小约2cm左右。", False),
        ("左右叶对称。", False),
        ("Both lobes are normal; upright probe, at a right angle, bright and leftover echoes.", False),
        ("Two planes at right angles, right-angled; UOQ; start, built, l and r alone.", False),
        ("A nodule is seen in the thyroid.", False),
        ("", False),
    ],
)
def test_words_for_a_side_are_recognized(report: str, expected: bool) -> None:
    assert (side_in(report) is not None) is expected


def test_a_side_is_shown_with_its_context() -> None:
    report = "No focal lesion is seen in the whole organ. The left lobe of it is of normal size and shape."
    assert side_in(report) == "...he whole organ. The left lobe of it is of no..."


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("organ", ["breast", "thyroid", "liver"])
def test_phantom_reports_name_sides_as_the_data_set_declares(organ: str, language: str) -> None:
    exams = Phantom(organ=organ, language=language, exams=60, val_exams=1, test_exams=1).splits()["train"]
    assert Phantom.mentions == ("side",) and any(side_in(exam.report) for exam in exams)


@pytest.mark.parametrize("name", ["jitter", "crop", "ultrasound"])
def test_mirroring_phantom_exams_is_refused_before_reports_are_read(name: str) -> None:
    augment = f"data.augment={{name: {name}, flip: 0.5}}"
    with problem("mirrored-sides", "data.augment.flip"):
        load_recipe(SMOKE, [augment])
    load_recipe(SMOKE, [augment.replace("0.5", "0")])


@pytest.fixture
def listed(tmp_path: Path) -> list[str]:
    """Overrides that give smoke.yaml four training exams, three of them with a side."""
    Image.fromarray(np.full((12, 16), 90, np.uint8)).save(tmp_path / "1.png")
    found = {
        split: [{"uid": f"{split}{n}", "finding": text, "image_path": "1.png"} for n, text in enumerate(texts)]
        for split, texts in {
            "train": ["No mass.", "左乳结节。", "A mass in the right breast.", "右乳结节。"],
            "val": ["No mass."],
            "test": ["No mass."],
        }.items()
    }
    (tmp_path / "exams.json").write_text(json.dumps(found), encoding="utf-8")
    dataset = f"{{_delete_: true, name: manifest, file: {tmp_path / 'exams.json'}, images: {tmp_path}}}"
    return [
        f"data.dataset={dataset}",
        "train.batch_size=4",
        f"data.cache_dir={tmp_path / 'cache'}",
        "distiller.topics=2",
    ]


def test_a_run_refuses_to_mirror_images_whose_reports_name_sides(listed: list[str], tmp_path: Path) -> None:
    recipe = load_recipe(SMOKE, [*listed, "data.augment={name: jitter, flip: 0.5}"])
    with problem("mirrored-sides", "data.augment.flip") as found:
        build_components(recipe, start_accelerator(recipe), run=tmp_path)
    assert found[0].found.startswith("3 of 4 training reports name a side, such as '左乳结节。'")
    assert not (tmp_path / "cache").exists(), "no image was decoded"
    with problem("mirrored-sides", "data.augment.flip"):
        plan(recipe, 1)


def test_validate_reads_the_reports_of_mirrored_images_and_notes_if_it_cannot(
    listed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirrored = [str(SMOKE), *listed, "data.augment={name: jitter, flip: 0.5}"]
    with problem("mirrored-sides", "data.augment.flip"):
        validate(mirrored)
    validate([*mirrored, "data.augment.flip=0"])
    assert "notice" not in capsys.readouterr().out
    (tmp_path / "exams.json").unlink()
    validate(mirrored)
    assert "notice: data.augment.flip mirrors images" in capsys.readouterr().out
