"""Words, characters and names of scores."""

from __future__ import annotations

from harness import problem

from framework.exam import Exam
from framework.scoring.scorer import Scorer
from plugins.metric.bleu import Bleu
from plugins.metric.category import Category
from plugins.tokenizer.words import Words


def test_chinese_is_scored_on_words_and_on_characters() -> None:
    tokenizer = Words()
    tokenizer.fit(["左乳见一低回声结节，大小_2DS_。", "双乳未见明显肿块。"])
    scorer = Scorer([Bleu()], tokenizer)
    values = scorer.score(
        [
            ("a", "左乳见一低回声结节。", "左乳见一低回声结节，大小_2DS_。"),
            ("b", "双乳未见肿块。", "双乳未见明显肿块。"),
        ]
    )
    assert 0 < values["bleu_4"] != values["bleu_4_char"] > 0
    assert "character" in scorer.segmentation


def test_an_unknown_monitor_names_the_known_scores() -> None:
    with problem("unknown-name", place="evaluate.monitor") as found:
        Scorer([Bleu()], Words()).metric_of("bleu_5")
    assert "bleu_1" in found[0].expected


def test_a_metric_sees_the_attributes_of_exams_that_it_names() -> None:
    metric = Category(attribute="pathology", positive="malignant")
    attributes = [{"pathology": "benign", "age": 3}, {"pathology": "malignant"}, {"pathology": None}]
    exams = [Exam(str(n), str(n), (), "", attributes=own) for n, own in enumerate(attributes)]
    scorer = Scorer([metric], Words(language="en"), exams=exams)
    assert scorer.attributes == {"0": {"pathology": "benign"}, "1": {"pathology": "malignant"}, "2": {}}
    rows = [(str(n), f"BI-RADS category {category}.", "") for n, category in enumerate((2, 5, 2))]
    assert scorer.score(rows)["category_auc"] == 1
    assert scorer.score(rows[::-1])["category_auc"] == 1


def test_an_attribute_that_no_exam_has_is_refused() -> None:
    metric = Category(attribute="patholgy", positive="malignant")
    with problem("unknown-name", place="evaluate.metrics") as found:
        Scorer([metric], Words(), exams=[Exam("a", "a", (), "", attributes={"pathology": "benign"})])
    assert "'pathology'" in found[0].hint
