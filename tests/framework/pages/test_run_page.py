"""The page of a run: its contents, and that reports, ids and names are escaped."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from grey_exams import GreyView
from harness import problem
from html_page import Page, check_offline

from framework.data.loading import ExamSet
from framework.exam import Exam
from framework.pages.exam_card import word_rows
from framework.pages.run_page import read_curves, write_page
from framework.text.words import Word

EVIL = "<script>alert('x')<img src=x onerror=alert(1)> & \"q\" $x$ {{ 7 * 7 }} 乳腺"


def values(bleu: float, **others: float) -> dict[str, float]:
    return {"exams": 2, "bleu_4": bleu, "findings_f1/margin": bleu / 2, **others}


def a_run(home: Path, text: str = "plain") -> tuple[Path, Any]:
    """The files of a run and its parts; `text` is the name of a metric, an exam, its reports and the segmentation."""
    run = home / "recipe" / "run"
    (run / "predictions").mkdir(parents=True)
    names = {"model": 0.5, "fixed_report": 0.4, "nearest_image": 0.3, "retrieval_oracle": 0.9}
    test: dict[str, Any] = {name: values(bleu, **{text: bleu}) for name, bleu in names.items()}
    test |= {"model_low": {"bleu_4": 0.45}, "model_high": {"bleu_4": 0.55}, "model_without_interval": {text: text}}
    (run / "scores.json").write_text(json.dumps({"segmentation": text, "test": test, "val": test}), "utf-8")
    records = [(f"train/{name}", step, step / 3) for name in ("loss", text) for step in (1, 2, 3)]
    lines = [json.dumps({"name": name, "step": step, "value": value}) for name, step, value in records]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    (run / "topics.png").write_bytes(b"PNG")
    rows = [{"id": text, "reference": text, "prediction": text}, {"id": "b", "reference": "c", "prediction": "d"}]
    (run / "predictions" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return run, SimpleNamespace(exams={"test": exam_set(text, "b")}, tokenizer=None)


def exam_set(*ids: str) -> ExamSet:
    """Exams with two black views each."""
    cache: Any = SimpleNamespace(images=lambda exam: np.zeros((2, 1, 4, 4), np.uint8))
    views = (GreyView(0), GreyView(0))
    return ExamSet([Exam(each, f"patient {each}", views, "text") for each in ids], cache, [], None)


def page_of(run: Path, components: Any) -> Page:
    assert write_page(run, components) == run / "report.html"
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_the_page_shows_scores_curves_topics_and_exams(tmp_path: Path) -> None:
    page = page_of(*a_run(tmp_path))
    check_offline(page)
    for text in ("recipe / run", "Scores on test", "Scores on val", "[0.450, 0.550]", "margin", "0.250", "plain"):
        assert text in page.text
    drawn = [at["aria-label"] or "" for at in page.all("svg") if at.get("role")]
    assert drawn[0].startswith("bleu_4 on test: ") and drawn[0].endswith("interval of the model 0.450 to 0.550")
    assert len(page.all("article", "exam")) == 2 and len(page.all("img")) == 5  # two views each, and the topics
    assert len(page.all("span", "same")) == 1
    assert drawn[1:] == ["train by step: loss, plain"]


def test_a_report_is_shown_word_by_word_if_its_words_are_known(tmp_path: Path) -> None:
    run, components = a_run(tmp_path)
    (run / "words").mkdir()
    words = [
        Word("plai", 0, 0.25, np.array([[[0.0, 0.75], [0.25, 0.0]], [[0.5, 0.25], [0.25, 0.0]]])),
        Word("n", 4, 1.0, None),
    ]
    rows = [{"id": i, "report": report, **word_rows(words)} for i, report in (("plain", "plain"), ("b", "of before"))]
    (run / "words" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    page = page_of(run, components)
    check_offline(page)
    first, second = page.all("span", "word")  # of the first exam: the second has another report by now
    assert [at["data-grid"] for at in page.all("div", "report")] == ["2 2 2"]
    assert (
        base64.b64decode(first["data-heat"] or "") == bytes([0, 255, 0, 0, 128, 0, 0, 0]) and "data-heat" not in second
    )
    assert first["style"] == "--sure:0.25"


def finding_rows(page: Page) -> str:
    return page.text[page.text.index("Findings on test") : page.text.index("Curves")]


def test_attributes_have_counts_and_what_is_never_written_is_marked(tmp_path: Path) -> None:
    run, components = a_run(tmp_path)
    rows = [
        {"id": "plain", "reference": "An oval mass with calcification.", "prediction": "A round mass."},
        {"id": "b", "reference": "A round mass.", "prediction": "A round mass, circumscribed margin."},
    ]
    (run / "predictions" / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    scores = json.loads((run / "scores.json").read_text("utf-8"))
    for name, value in {"shape": 0.5, "calcification": 0.0, "margin": 0.0}.items():
        scores["test"]["model"][f"findings_f1/{name}"] = value
    (run / "scores.json").write_text(json.dumps(scores), "utf-8")
    page = page_of(run, components)
    found = finding_rows(page)
    assert "calcification never written 1 0 0 0 1 0 0.000" in found
    assert "margin never right 0 1 0 0 0 1 0.000" in found and "shape 2 2 1 1 0 0 0.500" in found
    assert "2 of 3 attributes are never right: margin, calcification." in page.text


def test_confidence_has_its_curve_and_says_whether_it_is_calibrated(tmp_path: Path) -> None:
    run, components = a_run(tmp_path)
    scores = json.loads((run / "scores.json").read_text("utf-8"))
    found = {"exams": 2, "findings": 5, "calibration_error": 0.1, "risk": 0.4, "aurc": 0.25}
    found |= {"curve": [[0.5, 0.1], [1.0, 0.4]], "reliability": [[0.2, 0.5, 2], [0.9, 1.0, 3]]}
    for temperature, says in ((None, "not calibrated"), (1.5, "temperature 1.5")):
        scores["test"]["confidence"] = {**found, "temperature": temperature}
        (run / "scores.json").write_text(json.dumps(scores), "utf-8")
        page = page_of(run, components)
        assert says in page.text and "(AURC) is 0.250" in page.text and "0.400, the risk of all exams" in page.text


def test_the_data_of_a_run_are_on_its_page_with_copies_of_training_images(tmp_path: Path) -> None:
    run, components = a_run(tmp_path)
    components.exams["train"] = exam_set("c")
    grey: Any = SimpleNamespace(images=lambda exam: np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4))
    for own in components.exams.values():
        own.cache = grey
    text = page_of(run, components).text
    assert "train 1 1 2 1 -" in text and "test 2 2 4 1 2" in text
    assert "Warning: 2 exams of val and test have an image that is also in train: plain, b." in text


def test_damaged_words_name_their_file(tmp_path: Path) -> None:
    run, components = a_run(tmp_path)
    (run / "words").mkdir()
    (run / "words" / "test.jsonl").write_text('{"id": "plain"}\n', "utf-8")
    with problem("damaged-file", place=str(run / "words" / "test.jsonl")):
        write_page(run, components)


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_a_report_with_a_line_separator_is_one_exam(tmp_path: Path, sign: str) -> None:
    run, components = a_run(tmp_path)
    path = run / "predictions" / "test.jsonl"
    path.write_text(path.read_text("utf-8").replace('"d"', json.dumps(f"d{sign}e", ensure_ascii=False)), "utf-8")
    assert len(page_of(run, components).all("article", "exam")) == 2


def test_reports_ids_and_names_are_text(tmp_path: Path) -> None:
    page = page_of(*a_run(tmp_path, EVIL))
    check_offline(page)
    assert page.text.count(EVIL) > 10
    assert all(EVIL not in name for _, attributes in page.elements for name in attributes)


@pytest.mark.parametrize("name", ["metrics.jsonl", "topics.png", "predictions/test.jsonl"])
def test_a_model_without_the_other_files_of_its_run_has_a_page(name: str, tmp_path: Path) -> None:
    run, components = a_run(tmp_path)
    (run / name).unlink()
    headings = len(page_of(*a_run(tmp_path / "whole")).all("h2"))
    page = page_of(run, components)
    assert len(page.all("h2")) == headings - (name != "predictions/test.jsonl")
    assert ("No predictions yet." in page.text) == (name == "predictions/test.jsonl")


def test_a_page_without_findings_names_what_is_missing(tmp_path: Path) -> None:
    run, components = a_run(tmp_path)
    text = (run / "scores.json").read_text("utf-8").replace("findings_f1/", "other/")
    (run / "scores.json").write_text(text, "utf-8")
    assert "The recipe has no metric of findings." in page_of(run, components).text


def test_each_validation_score_has_an_axis_of_its_own(tmp_path: Path) -> None:
    names = [
        "train/loss",
        "train/topic",
        "train/lr",
        "train/exams_per_s",
        "train/memory_gib",
        "train/self_critical/drawn",
        "train/self_critical/greedy",
    ]
    names += ["val/bleu_1", "val/bleu_4", "val/cider", "val/my_metric", "val/findings_f1/margin", "final/test/cider"]
    lines = [json.dumps({"name": name, "step": step, "value": step / 2}) for step in (1, 2) for name in names]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    panels = read_curves(tmp_path / "metrics.jsonl")
    assert {panel: list(drawn) for panel, drawn in panels.items()} == {
        "train": ["loss", "topic"],
        "train/self_critical": ["drawn", "greedy"],
        "val/bleu": ["bleu_1", "bleu_4"],
        "val/cider": ["cider"],
        "val/my_metric": ["my_metric"],
    }
    assert panels["val/my_metric"]["my_metric"] == [(1, 0.5), (2, 1.0)]
