"""DDTI: what of a frame is kept, what is composed of the descriptors, and how patients are split."""

from collections import Counter

import numpy as np
import pytest
from harness import ROOT, problem
from mini_ddti import CATEGORIES, COMPLETE, SCAN, frame, write_archive, write_case
from PIL import Image

from framework.data.check import check
from framework.data.image_file import FileView
from framework.recipe.laterality import side_in
from plugins.dataset.ddti import Ddti
from plugins.dataset.ddti.compose import attributes, compose
from plugins.dataset.ddti.scan import ScanView, scan_area

ARCHIVE = ROOT.parent / "shared" / "data" / "DDTI"
real = pytest.mark.skipif(not ARCHIVE.is_dir(), reason=f"the DDTI archive is not at {ARCHIVE}")


@pytest.mark.parametrize("double", [False, True])
def test_the_scan_area_contains_the_scan_without_margins(double):
    image = np.asarray(frame(double=double))
    area = scan_area(image)
    left, top, right, bottom = SCAN
    scan = np.zeros_like(area)
    scan[top:bottom, left : 527 if double else right] = True
    assert not (area & ~scan).any(), "no text, bar or icon"
    assert (area & scan).sum() > 0.95 * scan.sum(), "the scan, its cyst and its faded depth"
    assert area[150, 250], "a cyst is as dark as the margin, and belongs to the scan"


def test_a_view_is_cropped_to_its_scan_area(tmp_path):
    frame(1).save(tmp_path / "plain.png")
    frame(1, text="TIRADS 5 (5)").save(tmp_path / "other.png")
    plain, other = (ScanView(FileView(str(tmp_path / f"{n}.png"), n)).load() for n in ("plain", "other"))
    assert np.array_equal(plain, other), "two frames that differ in their text are one image"
    assert plain.dtype == np.uint8 and plain.shape < (310, 360)


def test_a_frame_without_a_scan_is_broken(tmp_path):
    blank = np.zeros((360, 560), np.uint8)
    blank[330:345, 50:60] = 255
    Image.fromarray(blank).save(tmp_path / "blank.png")
    with pytest.raises(OSError, match="shows no scan area"):
        ScanView(FileView(str(tmp_path / "blank.png"), "blank")).load()


def test_a_report_states_every_known_finding_and_only_the_seed_changes_its_wording():
    words = {
        "composition": "predominantly cystic",
        "echogenicity": "markedly hypoechoic",
        "margins": "ill-defined",
        "calcifications": "none",
        "tirads": "4c",
    }
    truth = attributes(words)
    assert (truth["echogenicity"], truth["hypoechogenicity"]) == ("hypoechoic", "marked")
    texts = {compose(truth, str(seed)) for seed in range(60)}
    assert len(texts) > 20
    for text in texts:
        assert "predominantly cystic markedly hypoechoic nodule" in text and "ill-defined" in text
        assert "alcification" in text and "icrocalc" not in text and "TI-RADS category 4c." in text
        assert "{" not in text and "None" not in text and side_in(text) is None
    known = attributes({**dict.fromkeys(words), "margins": "spiculated", "tirads": "5"})
    assert "echoic" not in compose(known, "1") and "alcific" not in compose(known, "1")


def test_spelling_variants_are_read_as_one_word(tmp_path):
    write_archive(tmp_path, 5)
    write_case(tmp_path, 6, COMPLETE, images=(6,))
    (exam,) = [exam for exams in Ddti(root=str(tmp_path)).splits().values() for exam in exams if exam.id == "ddti_006"]
    assert exam.attributes == {
        "lesion": "present",
        "composition": "solid",
        "echogenicity": "hypoechoic",
        "hypoechogenicity": "marked",
        "margin": "ill-defined",
        "calcification": "microcalcifications",
        "tirads": "4a",
        "age": 44,
        "sex": "female",
    }


def test_cases_with_a_common_image_are_one_patient_and_a_repeated_view_counts_once(tmp_path):
    write_archive(tmp_path, 4)
    write_case(tmp_path, 20, images=(50, 50, 51))
    write_case(tmp_path, 21, {}, images=(51, 52))  # no descriptors: left out, yet it ties 20 and 22 together
    write_case(tmp_path, 22, images=(52,))
    source = Ddti(root=str(tmp_path))
    splits = source.splits()
    home = {exam.id: (split, exam.patient) for split, exams in splits.items() for exam in exams}
    assert home["ddti_020"] == home["ddti_022"] and home["ddti_020"][1] == "ddti_020" and "ddti_021" not in home
    views = {exam.id: [view.name for view in exam.views] for exams in splits.values() for exam in exams}
    assert views["ddti_020"] == ["20_1.jpg", "20_3.jpg"]
    assert "split-leak" not in {problem.code for problem in check(source).errors}


def test_incomplete_cases_are_read_on_request_and_change_no_fold(tmp_path):
    write_archive(tmp_path, 15)
    write_case(tmp_path, 16, {"margins": "spiculated", "calcifications": "non", "tirads": "5"}, images=(16,), sex="u")
    write_case(tmp_path, 17, {}, images=(17,), age="")

    def homes(**keys):
        splits = Ddti(root=str(tmp_path), **keys).splits()
        return {exam.id: split for split, exams in splits.items() for exam in exams}

    all_of_them, whole = homes(complete=False), homes()
    assert set(all_of_them) - set(whole) == {"ddti_016"}
    assert whole.items() <= all_of_them.items()


def test_folds_are_stratified_and_every_patient_is_tested_once(tmp_path):
    write_archive(tmp_path, 30)
    tested = []
    for fold in (1, 2, 3, 4, 5):
        splits = Ddti(root=str(tmp_path), fold=fold).splits()
        assert {name: len(exams) for name, exams in splits.items()} == {"train": 18, "val": 6, "test": 6}
        for name in ("val", "test"):
            assert Counter(exam.attributes["tirads"] for exam in splits[name]) == dict.fromkeys(CATEGORIES, 1)
        tested += [exam.id for exam in splits["test"]]
        following = Ddti(root=str(tmp_path), fold=fold % 5 + 1).splits()
        assert {exam.id for exam in splits["val"]} == {exam.id for exam in following["test"]}
    assert len(tested) == len(set(tested)) == 30
    other = Ddti(root=str(tmp_path), split_seed=1).splits()["test"]
    assert {exam.id for exam in other} != {exam.id for exam in Ddti(root=str(tmp_path)).splits()["test"]}


def test_the_cache_key_follows_the_images(tmp_path):
    write_archive(tmp_path, 3)
    before = Ddti(root=str(tmp_path)).cache_key
    assert before == Ddti(root=str(tmp_path)).cache_key
    frame(99).save(tmp_path / "2_1.jpg")
    assert Ddti(root=str(tmp_path)).cache_key != before


def test_a_missing_archive_is_refused_with_the_expected_layout(tmp_path):
    with problem("no-such-file", place="nowhere") as problems:
        Ddti(root=str(tmp_path / "nowhere")).splits()
    assert "SPIE 9287" in problems[0].hint


def test_all_invalid_cases_are_listed(tmp_path):
    write_archive(tmp_path, 6)
    (tmp_path / "1.xml").write_text("<case><number>1")
    (tmp_path / "2.xml").write_text('<!DOCTYPE case [<!ENTITY a "b">]><case/>')
    write_case(tmp_path, 3, {**COMPLETE, "margins": "spiculatd"})
    (tmp_path / "4_1.jpg").unlink()
    (tmp_path / "5.xml").write_text("<case><mark><image>../../etc</image></mark></case>")
    (tmp_path / "6.xml").write_text("<case></case>")
    with problem("wrong-format", place="1.xml") as problems:
        Ddti(root=str(tmp_path)).splits()
    assert [each.place.rpartition("exam ")[2] for each in problems] == [f"{number}.xml" for number in range(1, 7)]
    assert "Did you mean 'spiculated'?" in problems[2].found


def test_folds_with_an_empty_split_are_refused():
    with problem("out-of-range", place="data.dataset.folds"):
        Ddti(root="x", folds=2)
    with problem("out-of-range", place="data.dataset.fold"):
        Ddti(root="x", fold=6)


@real
def test_the_real_archive_is_split_by_patient():
    source = Ddti(root=str(ARCHIVE), complete=False)
    splits = source.splits()
    exams = [exam for each in splits.values() for exam in each]
    assert len(exams) == 298 and len(Ddti(root=str(ARCHIVE))._splits["test"]) == 40
    assert {name: len(each) for name, each in splits.items()} == {"train": 178, "val": 60, "test": 60}
    assert {source._patients[number] for number in (150, 233, 323, 326, 349)} == {150}
    assert source._patients[396] == source._patients[353] == 353
    assert all(side_in(exam.report) is None for exam in exams)
    names = {view.name for exam in exams for view in exam.views}
    assert "80_1.jpg" in names and "80_2.jpg" not in names, "80_2 has words on the tissue"


@real
@pytest.mark.parametrize("name", ["28_1", "62_1", "213_1", "338_1", "342_1", "369_1", "389_1", "88_2"])
def test_real_frames_have_no_burnt_in_category(name):
    """Text is below the scan, from row 337, and the grey bar is left of it."""
    image = FileView(str(ARCHIVE / f"{name}.jpg"), name).load()
    area = scan_area(image.mean(2).astype(np.uint8) if image.ndim == 3 else image)
    assert not area[337:].any() and not area[:, :30].any() and area.mean() > 0.3
