"""BUS-BRA: what is measured on drawn lesions, what is composed of it, and how patients are split."""

import dataclasses
import json

import numpy as np
import pytest
from harness import ROOT, problem
from mini_busbra import COLS, ROWS, draw, ellipse, scan
from PIL import Image

from framework.data.check import CheckResult, check
from plugins.dataset.busbra import Busbra
from plugins.dataset.busbra.compose import RANKS, Thresholds, attributes, compose, describe
from plugins.dataset.busbra.measure import Measures, measure

ARCHIVE = ROOT.parent / "shared" / "data" / "BUSBRA"
LIMITS = Thresholds(  # about those of the training patients of fold 1
    dented=0.88,
    lobed=0.92,
    toothed=1.2,
    scalloped=1.11,
    irregular=1.16,
    uneven=0.55,
    streaked=0.3,
    marked=0.45,
    shallow=0.25,
    deep=0.4,
)


def star(radius=40, teeth=12, depth=0.35):
    angle, far = np.arctan2(ROWS - 90, COLS - 130), np.hypot(ROWS - 90, COLS - 130)
    return far <= radius * (1 - depth * (0.5 + 0.5 * np.cos(teeth * angle)))


def words(mask, **greys):
    return attributes(measure(scan(mask, **greys), mask), LIMITS)


def test_a_smooth_flat_ellipse_is_measured_as_benign():
    found = words(ellipse(40, 80))
    assert found == {
        "lesion": "present",
        "shape": "oval",
        "orientation": "parallel",
        "margin": "circumscribed",
        "echogenicity": "hypoechoic",
        "hypoechogenicity": "moderate",
        "posterior": "none",
        "place": "central depth",
        "size": "about one third",
    }


def test_lengths_are_relative_to_frame_and_lesion():
    mask = ellipse(40, 80)
    found = measure(scan(mask), mask)
    assert found.width == pytest.approx(81 / 260, abs=0.01)
    assert found.depth == pytest.approx(90.5 / 240, abs=0.01)
    assert found.ratio == pytest.approx(0.5, abs=0.02)
    assert found.elongation == pytest.approx(2.0, abs=0.06)
    assert found.solidity > 0.96
    assert found.roughness == pytest.approx(1.05, abs=0.03)


def test_elongation_is_invariant_to_rotation():
    turned = ((ROWS - 90 + COLS - 130) / 2**0.5 / 20) ** 2 + ((ROWS - 90 - COLS + 130) / 2**0.5 / 40) ** 2 <= 1
    assert measure(scan(turned), turned).elongation == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    "mask, key, value",
    [
        (ellipse(60, 60), "shape", "round"),
        (ellipse(80, 40), "orientation", "not parallel"),
        (star(), "margin", "spiculated"),
        (star(), "shape", "irregular"),
        (star(50, 6, 0.22), "margin", "lobulated"),
        (ellipse(30, 40, row=30), "place", "superficial"),
        (ellipse(30, 40, row=150), "place", "deep"),
        (ellipse(20, 40), "size", "less than one quarter"),
        (ellipse(60, 200), "size", "about two thirds or more"),
    ],
)
def test_shape_and_position_are_measured_from_the_contour(mask, key, value):
    assert words(mask)[key] == value


@pytest.mark.parametrize(
    "greys, key, value",
    [
        ({"inside": 3}, "echogenicity", "anechoic"),
        ({"inside": 40}, "hypoechogenicity", "marked"),
        ({"inside": 112}, "echogenicity", "isoechoic"),
        ({"inside": 170}, "echogenicity", "hyperechoic"),
        ({"inside": 108}, "margin", "indistinct"),
        ({"behind": 180}, "posterior", "enhancement"),
        ({"behind": 50}, "posterior", "shadow"),
    ],
)
def test_echogenicity_is_measured_relative_to_the_tissue(greys, key, value):
    assert words(ellipse(40, 80), **greys)[key] == value


def test_a_half_fluid_lesion_is_mixed():
    mask = ellipse(60, 90)
    image = scan(mask, inside=80)
    image[mask & (COLS < 125)] = 4
    assert attributes(measure(image, mask), LIMITS)["echogenicity"] == "mixed"


def test_burnt_in_text_is_not_enhancement():
    mask = ellipse(40, 80)
    image = scan(mask)
    image[118:126, 95:165:3] = 255
    assert attributes(measure(image, mask), LIMITS)["posterior"] == "none"


def test_a_dark_lesion_without_a_smooth_wall_is_not_fluid():
    assert words(star(), inside=3)["echogenicity"] == "hypoechoic"


def test_masks_without_a_lesion_are_refused():
    image = scan(ellipse(40, 80))
    with pytest.raises(ValueError, match="too few for a lesion"):
        measure(image, np.zeros_like(image, bool))
    with pytest.raises(ValueError, match="differ in size"):
        measure(image, np.ones((5, 5), bool))
    with pytest.raises(ValueError, match="fills the frame"):
        measure(image, np.ones_like(image, bool))


def test_a_report_states_every_finding_and_only_the_seed_changes_its_wording():
    mask = star()
    truth = describe(
        measure(scan(mask, inside=40), mask),
        LIMITS,
        birads="5",
        pathology="malignant",
        histology="invasive ductal carcinoma",
        device="GE",
    )
    texts = {compose(truth, str(seed), True) for seed in range(40)}
    assert len(texts) > 20
    for text in texts:
        assert "rregular" in text and "spiculated" in text and "markedly hypoechoic" in text and "parallel" in text
        assert "BI-RADS category 5" in text and "malignant (invasive ductal carcinoma)" in text
        assert " left" not in text and " right" not in text
        assert "{" not in text and text.endswith(".")
    assert compose(truth, "7", True) == compose(truth, "7", True)
    assert "histology" not in compose(truth, "7", False) and "malignant" not in compose(truth, "7", False)


@pytest.fixture
def archive(tmp_path):
    flat, tall = ellipse(40, 80), ellipse(80, 40)
    rows = [
        ("0001-l", 2, 1, "NaN", flat),
        ("0001-r", 3, 1, "NaN", flat),
        ("0002-l", 2, 2, "0", flat),
        ("0002-r", 2, 2, "1", flat),  # the official column tears this patient apart
        ("0003-s", 4, 3, "1", tall),
    ]
    return draw(tmp_path / "BUSBRA", rows)


def build(archive, **settings):
    return Busbra(root=str(archive), cache_dir=str(archive.parent / "cache"), **settings)


def test_patients_are_in_one_split_and_views_share_a_report(archive):
    source = build(archive)
    splits = source.splits()
    assert {split: [exam.id for exam in exams] for split, exams in splits.items()} == {
        "train": ["bus_0003"],
        "val": ["bus_0002"],
        "test": ["bus_0001"],
    }
    exam = splits["test"][0]
    assert [view.name for view in exam.views] == ["bus_0001-l.png", "bus_0001-r.png"]
    assert exam.attributes["birads"] == "3", "the graver category leads"
    assert "BI-RADS category 3" in exam.report and "cyst" not in exam.report
    assert exam.rewording and "BI-RADS category 3" in exam.rewording
    assert splits["train"][0].attributes["orientation"] == "not parallel"
    assert check(source) == CheckResult()
    assert "cyst" in build(archive, histology=True).splits()["test"][0].report


def test_cached_measures_are_read_and_damaged_ones_measured_again(archive, monkeypatch, caplog):
    first = build(archive).splits()
    (file,) = (archive.parent / "cache").iterdir()
    calls = []
    monkeypatch.setattr("plugins.dataset.busbra.measuring.measure", lambda *a: calls.append(a) or measure(*a))
    assert build(archive).splits() == first and not calls
    file.write_text(file.read_text()[:100])
    assert build(archive).splits() == first and len(calls) == 5
    assert "damaged" in caplog.text
    assert set(json.loads(file.read_text())["bus_0003-s"]) == {f.name for f in dataclasses.fields(Measures)}


def test_the_cache_key_follows_files_and_fold(archive):
    before = build(archive).cache_key
    assert before == build(archive).cache_key != build(archive, fold=2).cache_key
    Image.fromarray(scan(ellipse(50, 50))).save(archive / "Images" / "bus_0003-s.png")
    assert build(archive).cache_key != before


@pytest.fixture
def scanners(tmp_path):
    flat = ellipse(40, 80)
    rows = [
        ("0001-s", 2, 1, "NaN", flat, "GE Logiq 7 @10-14MHz"),
        ("0002-l", 2, 2, "1", flat, "GE Logiq 7 @10-14MHz"),
        ("0002-r", 2, 2, "1", flat, "U-Systems @10-14MHz"),  # a patient of two scanners
        ("0003-s", 4, 3, "1", star(), "GE Logiq 7 @10-14MHz"),
        ("0004-s", 5, 1, "NaN", star(50, 6, 0.22), "U-Systems @10-14MHz"),
        ("0005-s", 4, 4, "0", ellipse(80, 40), "GE Logiq 7 @10-14MHz"),
    ]
    return draw(tmp_path / "BUSBRA", rows)


def test_a_scanner_that_is_left_out_is_in_no_other_split(scanners):
    source = build(scanners, split="device", device="U-Systems")
    assert {split: [exam.id for exam in exams] for split, exams in source.splits().items()} == {
        "train": ["bus_0003", "bus_0005"],
        "val": ["bus_0001"],
        "test": ["bus_0002", "bus_0004"],
    }
    assert check(source) == CheckResult()
    keys = {build(scanners, split="device", device=name).cache_key for name in ("U-Systems", "GE Logiq 7")}
    assert len(keys | {build(scanners).cache_key}) == 3


def test_an_unknown_scanner_is_answered_with_those_of_the_archive(scanners):
    with problem("unknown-name", place="data.dataset.device") as problems:
        build(scanners, split="device", device="u systems").splits()
    assert "'U-Systems'" in problems[0].hint and "GE Logiq 7 (4 patients), U-Systems (2 patients)" in problems[0].hint
    with problem("missing-key", place="data.dataset.device") as problems:
        build(scanners, split="device").splits()
    assert "U-Systems (2 patients)" in problems[0].hint


def test_a_scanner_beside_the_official_split_is_refused(scanners):
    with problem("ignored-setting", place="data.dataset.device"):
        build(scanners, device="U-Systems")


@pytest.mark.parametrize("settings", [{}, {"split": "device", "device": "U-Systems"}])
def test_only_training_patients_set_thresholds(scanners, settings):
    before = build(scanners, **settings).splits()
    (file,) = (scanners.parent / "cache").iterdir()
    rows = json.loads(file.read_text())
    for split in ("val", "test"):
        for view in (view for exam in before[split] for view in exam.views):
            rows[view.name.removesuffix(".png")].update(roughness=2.0, depth=0.9, solidity=0.2, echo=0.01)
    file.write_text(json.dumps(rows))
    after = build(scanners, **settings).splits()
    assert after["train"] == before["train"]
    assert [exam.report for exam in after["test"]] != [exam.report for exam in before["test"]]


def test_a_threshold_is_a_quantile_of_its_measure():
    mask = ellipse(40, 80)
    first = measure(scan(mask), mask)
    patients = [dataclasses.replace(first, roughness=1 + number / 100) for number in range(101)]
    found = Thresholds.fit(patients)
    assert found.toothed == pytest.approx(1 + RANKS["toothed"][1])
    assert found.dented == pytest.approx(first.solidity)


def test_a_missing_archive_is_refused_with_the_place_of_publication(tmp_path):
    with problem("no-such-file", place="nowhere") as problems:
        build(tmp_path / "nowhere").splits()
    assert "zenodo.org/records/8231412" in problems[0].hint


def test_missing_and_broken_images_are_listed_together(archive):
    (archive / "Images" / "bus_0001-l.png").unlink()
    (archive / "Masks" / "mask_0002-r.png").unlink()
    with problem("no-such-file", place="bus_0001-l") as problems:
        build(archive).splits()
    assert len(problems) == 2 and "bus_0002-r" in problems[1].place
    Image.fromarray(scan(ellipse(50, 50))).save(archive / "Images" / "bus_0001-l.png")
    (archive / "Masks" / "mask_0002-r.png").write_bytes(b"nothing")
    Image.new("1", (260, 240)).save(archive / "Masks" / "mask_0003-s.png")
    with problem("broken-image", place="bus_0002-r") as problems:
        build(archive).splits()
    assert len(problems) == 2 and "bus_0003-s" in problems[1].place


def test_rows_that_differ_from_the_published_format_are_listed(archive):
    table = (archive / "bus_data.csv").read_text()
    (archive / "bus_data.csv").write_text(table.replace("bus_0003-s", "bus_../../x-s").replace("benign,3", "benign,7"))
    with problem("wrong-format", place="bus_data.csv") as problems:
        build(archive).splits()
    assert len(problems) == 2


def test_an_unknown_fold_is_refused():
    with problem("out-of-range", place="data.dataset.fold"):
        Busbra(root="x", fold=7, cache_dir="cache")


@pytest.mark.skipif(not ARCHIVE.is_dir(), reason=f"the BUS-BRA archive is not at {ARCHIVE}")
def test_the_real_archive_is_measured_as_seen_by_eye():
    def measured(name):
        image = np.array(Image.open(ARCHIVE / "Images" / f"bus_{name}.png"))
        return attributes(measure(image, np.array(Image.open(ARCHIVE / "Masks" / f"mask_{name}.png"))), LIMITS)

    cyst = measured("0848-l")
    assert (cyst["echogenicity"], cyst["posterior"], cyst["margin"]) == ("anechoic", "enhancement", "circumscribed")
    tumour = measured("0281-l")
    assert (tumour["margin"], tumour["posterior"], tumour["orientation"]) == ("spiculated", "shadow", "not parallel")


@pytest.mark.skipif(not ARCHIVE.is_dir(), reason=f"the BUS-BRA archive is not at {ARCHIVE}")
@pytest.mark.parametrize("folds, fold, sizes", [(5, 1, (680, 172, 212)), (10, 4, (770, 188, 106))])
def test_the_real_partition_is_by_patient(folds, fold, sizes, tmp_path):
    source = Busbra(root=str(ARCHIVE), folds=folds, fold=fold, cache_dir=str(tmp_path))
    found = list(source._homes.values())  # without measuring, which takes a minute
    assert tuple(found.count(split) for split in ("train", "val", "test")) == sizes


@pytest.mark.skipif(not ARCHIVE.is_dir(), reason=f"the BUS-BRA archive is not at {ARCHIVE}")
@pytest.mark.parametrize(
    "device, sizes",
    [
        ("GE Logiq 5", (452, 122, 490)),
        ("GE Logiq 7", (466, 110, 488)),
        ("Toshiba Aplio 300", (797, 195, 72)),
        ("U-Systems", (841, 209, 14)),
    ],
)
def test_each_real_scanner_can_be_left_out(device, sizes, tmp_path):
    source = Busbra(root=str(ARCHIVE), split="device", device=device, cache_dir=str(tmp_path))
    found = list(source._homes.values())
    assert tuple(found.count(split) for split in ("train", "val", "test")) == sizes


def test_a_view_has_the_mask_of_its_lesion(tmp_path):
    flat = ellipse(40, 80)
    root = draw(
        tmp_path / "BUSBRA", [("0001-l", 2, 1, "NaN", flat), ("0002-l", 2, 2, "0", flat), ("0003-s", 3, 2, "1", flat)]
    )
    for exams in Busbra(root=str(root), cache_dir=str(tmp_path)).splits().values():
        for exam in exams:
            assert [np.array_equal(view.lesion_mask(), flat) for view in exam.views] == [True]
