"""The phantom: exams are reproducible, reports state the truth, and only the image shows it."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import numpy as np
import pytest
from harness import ROOT, problem
from scipy.ndimage import binary_dilation

from framework.exam import Exam
from framework.registry import find, load
from plugins.dataset.phantom import Phantom, telling_view
from plugins.dataset.phantom.anatomy import draw_view
from plugins.dataset.phantom.truth import SHARES

ECHOES = {"anechoic", "hypoechoic", "isoechoic", "hyperechoic", "mixed cystic and solid"}
ZH_ECHO = {
    "anechoic": "无回声",
    "hypoechoic": "低回声",
    "isoechoic": "等回声",
    "hyperechoic": "高回声|(?<!点状)强回声",
    "mixed": "混合回声|囊实性",
}
PRINT_EXAM = """
import hashlib, sys
from plugins.dataset.phantom import Phantom, telling_view
exam = Phantom(organ="thyroid", size=64).splits()["test"][7]
images = b"".join(view.load().tobytes() for view in exam.views)
print(hashlib.sha256(exam.report.encode() + images).hexdigest())
"""


@cache
def texts(organ: str, exams: int = 400, **settings: object) -> list[Exam]:
    """The first exams of `train`; no image is made."""
    return list(Phantom(organ=organ, exams=exams, **settings).splits()["train"])


@cache
def scans(organ: str) -> list[tuple[Exam, np.ndarray, np.ndarray]]:
    """Exam, the scan of its telling view without the marks below it, and the lesion's mask."""
    source, found = Phantom(organ=organ, exams=320, size=64), []
    for exam in source.splits()["train"]:
        view = telling_view(exam)
        scan, mask = draw_view(view.truth, view.plan, view.size, view.difficulty, view.key)
        found.append((exam, scan[: round(0.84 * 64)], mask[: round(0.84 * 64)]))
    return found


def fingerprint(place: int) -> tuple[str, bytes]:
    exam = Phantom(size=64).splits()["val"][place]
    return exam.report, exam.views[1].load().tobytes()


def test_the_phantom_is_found_by_its_name() -> None:
    assert load(find("dataset", "phantom")) is Phantom


def test_exams_do_not_depend_on_the_order_of_access_or_on_how_many_there_are() -> None:
    few, many = Phantom(exams=10, size=64).splits()["train"], Phantom(exams=500, size=64).splits()["train"]
    backwards = [many[place] for place in reversed(range(10))][::-1]
    assert [exam.report for exam in few] == [exam.report for exam in backwards]
    assert few[3] == backwards[3]
    assert np.array_equal(few[3].views[0].load(), backwards[3].views[0].load())
    assert few[-1] == few[9] and len(few[2:5]) == 3
    with pytest.raises(IndexError, match="has 10 exams"):
        few[10]


def test_spawned_processes_generate_the_same_exams() -> None:
    here = [fingerprint(place) for place in range(4)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(fingerprint, range(4))) == here


def test_a_new_interpreter_with_another_hash_seed_generates_the_same_exam() -> None:
    out = [
        subprocess.run(
            [sys.executable, "-c", PRINT_EXAM],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert out[0] == out[1] and len(out[0].strip()) == 64


def test_views_pickle_and_load_the_same_afterwards() -> None:
    view = Phantom(organ="liver", size=64).splits()["train"][0].views[0]
    again = pickle.loads(pickle.dumps(view))
    assert np.array_equal(view.load(), again.load())
    assert len(pickle.dumps(view)) < 4000


@pytest.mark.parametrize("organ", ["breast", "thyroid", "liver"])
def test_images_are_grey_square_and_neither_black_nor_white(organ: str) -> None:
    for exam in Phantom(organ=organ, size=96).splits()["test"][:6]:
        assert 2 <= len(exam.views) <= 4
        for view in exam.views:
            image = view.load()
            assert image.shape == (96, 96) and image.dtype == np.uint8
            assert image.std() > 12 and (image == 255).mean() < 0.2


def test_no_patient_is_in_two_splits_and_ids_are_unique() -> None:
    splits = Phantom(exams=50, val_exams=20, test_exams=30).splits()
    assert {name: len(split) for name, split in splits.items()} == {"train": 50, "val": 20, "test": 30}
    patients = [{exam.patient for exam in split} for split in splits.values()]
    assert not (patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2])
    ids = [exam.id for split in splits.values() for exam in split]
    assert len(set(ids)) == 100


def test_splits_are_cheap_and_settings_change_the_cache_key() -> None:
    huge = Phantom(exams=10**9)
    assert len(huge.splits()["train"]) == 10**9  # nothing is made before it is asked for
    keys = {Phantom(**s).cache_key for s in ({}, {"organ": "liver"}, {"seed": 1}, {"size": 128}, {"difficulty": 0.2})}
    assert len(keys) == 5 and Phantom().cache_key == Phantom().cache_key


def test_a_too_small_image_size_is_refused() -> None:
    with problem("out-of-range", place="data.dataset.size"):
        Phantom(size=32)


@pytest.mark.parametrize("organ", ["breast", "thyroid", "liver"])
def test_findings_have_the_frequencies_of_published_reports(organ: str) -> None:
    truths = [exam.attributes for exam in texts(organ, 1000, unseen=1.0)]
    shares, many = SHARES[organ], 3.3 * 0.5 / np.sqrt(1000)  # over three standard errors of the widest share
    found = {
        "lesion": np.mean([t["lesion"] == "present" for t in truths]),
        "several": np.mean([t.get("count") == "multiple" for t in truths]),
        "doppler": np.mean(["doppler" in t["unseen"] for t in truths]),
        "nodes": np.mean(["lymph_node" in t["unseen"] for t in truths]),
        "surgery": np.mean([t["surgery"] == "present" for t in truths]),
    }
    for name, share in found.items():
        assert share == pytest.approx(shares[name], abs=many), name
    hard = np.mean([any(lesion["calcification"] == "present" for lesion in t["lesions"]) for t in truths])
    assert hard == pytest.approx({"breast": 0.03, "thyroid": 0.15, "liver": 0.04}[organ], abs=0.035)


def test_normal_reports_repeat_as_often_as_clinical_ones() -> None:
    counted = Counter(exam.report for exam in texts("breast"))
    assert 0.12 < counted.most_common(1)[0][1] / counted.total() < 0.30
    assert 0.35 < len(counted) / counted.total() < 0.80
    words = [len(exam.report.split()) for exam in texts("breast")]
    assert 35 < np.mean(words) < 70


@pytest.mark.parametrize("organ", ["breast", "thyroid", "liver"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_reports_state_nothing_unseen_if_unseen_is_0(organ: str, language: str) -> None:
    seen = texts(organ, unseen=0.0, language=language)
    hidden = re.compile("doppler|flow|vascularity|lymph|CDFI|血流|淋巴", re.IGNORECASE)
    assert not [exam.report for exam in seen if hidden.search(exam.report) or exam.attributes["unseen"]]
    always = texts(organ, unseen=1.0, language=language)
    assert sum(bool(hidden.search(exam.report)) for exam in always) > 0.96 * len(always)
    # Only the reports differ: the truth of the exams is the same.
    assert [e.attributes["lesions"] for e in seen] == [e.attributes["lesions"] for e in always]


@pytest.mark.parametrize("organ", ["breast", "thyroid", "liver"])
def test_english_reports_state_exactly_the_truth(organ: str) -> None:
    for exam in texts(organ):
        truth, lesions = exam.attributes, exam.attributes["lesions"]
        for text in (exam.report, exam.rewording):
            assert text is not None and "{" not in text and "None" not in text
            stated = {echo for echo in ECHOES if echo in text}
            true = {e["echogenicity"] if e["echogenicity"] != "mixed" else "mixed cystic and solid" for e in lesions}
            assert stated == true, text
            assert bool(re.search(r"heterogeneous", text, re.I)) == (truth["gland"] == "heterogeneous")
            assert bool(re.search(r"Multiple|Several", text)) == (len(lesions) > 1)
            assert bool(re.search(r"Status post|Postoperative", text)) == (truth["surgery"] == "present")
            for lesion in lesions:
                assert "{} x {} mm".format(*lesion["diameters_mm"]) in text
            if len(lesions) != 1:
                continue
            lesion = lesions[0]
            assert lesion["shape"] in text
            assert ("taller than wide" in text or "not parallel" in text) == (
                lesion.get("orientation") == "not parallel"
            )
            assert bool(re.search(r"spiculated", text)) == (lesion["margin"] == "spiculated")
            assert bool(re.search(r"shadowing", text)) == (lesion["posterior"] == "shadow")
            hard = bool(re.search(r"calcifications are seen|microcalcifications", text))
            assert hard == (lesion["calcification"] == "present"), text
            if "side" in lesion and truth["surgery"] == "absent" and organ != "liver":
                other = {"left": "right", "right": "left"}[lesion["side"]]
                assert lesion["side"] in text and f"{other} " not in text, text


@pytest.mark.parametrize("organ", ["breast", "thyroid", "liver"])
def test_chinese_reports_state_exactly_the_truth(organ: str) -> None:
    for exam in texts(organ, language="zh"):
        lesions, text = exam.attributes["lesions"], exam.report
        assert not re.search(r"[a-z]{3}|\{|None|[,;]", text)
        stated = {echo for echo, words in ZH_ECHO.items() if re.search(words, text)}
        assert stated == {lesion["echogenicity"] for lesion in lesions}, text
        assert bool(re.search("多发|多个", text)) == (len(lesions) > 1)
        assert ("未见明显结节" in text or "未见明显占位" in text) == (not lesions), text
        assert bool(re.search("不均匀", text)) == (exam.attributes["gland"] == "heterogeneous")
        for lesion in lesions:
            assert {"left": "左", "right": "右", None: "峡部"}[lesion.get("side")] in text
            assert "{:.1f}×{:.1f}cm".format(*(value / 10 for value in lesion["diameters_mm"])) in text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_masked_reports_have_no_numbers(language: str) -> None:
    exams = texts("breast", language=language, measures="masked")
    with_lesion = [exam for exam in exams if exam.attributes["lesions"]]
    for exam in with_lesion:
        assert exam.report.count("_2DS_") == len(exam.attributes["lesions"])
        assert exam.report.count("_Loc_") == sum("clock" in lesion for lesion in exam.attributes["lesions"])
        assert not re.search(r"\d (x|mm|o'clock)|\dcm|点钟", exam.report)
    assert not [exam for exam in exams if not exam.attributes["lesions"] and "_" in exam.report]


def test_another_wording_has_the_same_facts() -> None:
    exams = [exam for exam in texts("breast") if exam.attributes["lesions"]]
    numbers = [(re.findall(r"\d+", exam.report), re.findall(r"\d+", str(exam.rewording))) for exam in exams]
    assert all(sorted(one) == sorted(other) for one, other in numbers)
    assert np.mean([exam.report != exam.rewording for exam in exams]) > 0.7


def test_attributes_are_json_and_views_show_every_side_in_the_report() -> None:
    for exam in texts("thyroid"):
        assert json.loads(json.dumps(exam.attributes)) == exam.attributes
        shown = {view.plan.side for view in exam.views}
        assert {lesion.get("side") for lesion in exam.attributes["lesions"]} <= shown
        assert {view.plan.lesion for view in exam.views} >= set(range(len(exam.attributes["lesions"])))
        if exam.attributes["surgery"] == "present":
            scars = [view.plan.side for view in exam.views if view.plan.scar]
            assert scars == [exam.attributes["surgery_side"]]


def test_left_and_right_look_different_below_the_scan() -> None:
    views = [view for exam in texts("liver", size=64)[:20] for view in exam.views if view.plan.plane == 0]
    marks = {side: [v.load()[round(0.85 * 64) :] for v in views if v.plan.side == side] for side in ("left", "right")}
    assert len({mark.tobytes() for mark in marks["left"]}) == 1 and len(marks["left"]) > 3
    assert not np.array_equal(marks["left"][0], marks["right"][0])


@pytest.mark.parametrize("organ", ["breast", "thyroid"])
def test_findings_are_visible_within_the_mask(organ: str) -> None:
    contrast: dict[str, list[float]] = {}
    for exam, scan, mask in scans(organ):
        if mask.any():
            around = binary_dilation(mask, iterations=4) & ~binary_dilation(mask)
            echo = exam.attributes["lesions"][0]["echogenicity"]
            contrast.setdefault(echo, []).append(float(scan[mask].mean()) - float(scan[around].mean()))
    middle = {echo: np.median(values) for echo, values in contrast.items()}
    assert middle["anechoic"] < middle["hypoechoic"] - 20 < middle["isoechoic"] - 30
    assert middle["hyperechoic"] > middle["isoechoic"] + 20
    dark = np.array(contrast["anechoic"] + contrast["hypoechoic"])
    assert (dark < 0).mean() > 0.95 and (np.array(contrast["hyperechoic"]) > 0).all()


@pytest.mark.parametrize("organ", ["breast", "thyroid"])
def test_global_image_statistics_hardly_predict_the_findings(organ: str) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    exams = scans(organ)
    grey = np.array(
        [[*np.histogram(scan, 16, (0, 256))[0] / scan.size, scan.mean(), scan.std()] for _, scan, _ in exams]
    )
    lesion = np.array([bool(exam.attributes["lesions"]) for exam, _, _ in exams])
    fluid = np.array(
        [lesion[i] and e.attributes["lesions"][0]["echogenicity"] == "anechoic" for i, (e, _, _) in enumerate(exams)]
    )
    for name, use, target in (("presence", np.ones_like(lesion), lesion), ("anechoic", lesion, fluid)):
        seen, known = grey[use], target[use]
        half = len(seen) // 2
        for model in (LogisticRegression(class_weight="balanced", max_iter=500), KNeighborsClassifier(5)):
            guess = make_pipeline(StandardScaler(), model).fit(seen[:half], known[:half]).predict(seen[half:])
            assert balanced_accuracy_score(known[half:], guess) < 0.72, (name, model)


def test_side_and_plane_of_the_first_view_do_not_predict_a_lesion() -> None:
    exams = texts("breast", 1000, unseen=1.0)
    for mark in (lambda plan: plan.side == "left", lambda plan: plan.plane == 0):
        share = {
            found: np.mean([mark(e.views[0].plan) for e in exams if e.attributes["lesion"] == found])
            for found in ("present", "absent")
        }
        assert share["present"] == pytest.approx(share["absent"], abs=0.11), share


def test_the_views_shown_do_not_predict_a_lesion() -> None:
    exams = [exam for exam in texts("breast", 1000, unseen=1.0) if exam.attributes.get("count") != "multiple"]
    for shown in (lambda exam: len(exam.views), lambda exam: len({view.plan.side for view in exam.views})):
        means = [
            np.mean([shown(e) for e in exams if e.attributes["lesion"] == found]) for found in ("present", "absent")
        ]
        assert means[0] == pytest.approx(means[1], abs=0.12)


def test_the_lesion_is_visible_in_a_view_with_a_mask() -> None:
    for exam, _, mask in scans("breast"):
        assert mask.any() == bool(exam.attributes["lesions"])


def test_no_exam_has_more_views_than_encoders_accept() -> None:
    for organ in ("breast", "thyroid", "liver"):
        assert {len(exam.views) for exam in texts(organ)} <= {2, 3, 4}
