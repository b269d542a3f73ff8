"""A report beside its reference, by findings: what agrees, and where the words that differ stand."""

from __future__ import annotations

import pytest

from framework.text.findings.compare import agreement, compare
from framework.text.findings.reader import read, statements

REFERENCE = "Left breast: an oval, hypoechoic mass, 12 x 8 mm, circumscribed margin. No enlarged axillary lymph nodes."
REPORT = "LEFT breast: an irregular hypoechoic mass, 13 x 8 mm, with calcification. The margin is circumscribed."
CHINESE = "左乳见一低回声结节，大小约８×５mm，边界清。双侧腋下未见肿大淋巴结。"


def kinds(report: str, reference: str) -> dict[str, str]:
    return {each.attribute: each.kind for each in compare(report, reference)}


def test_findings_agree_differ_are_invented_or_missed() -> None:
    found = kinds(REPORT, REFERENCE)
    assert {name: found[name] for name in ("side", "echogenicity", "margin", "size", "count")} == dict.fromkeys(
        ("side", "echogenicity", "margin", "size", "count"), "agreed"
    )
    assert (found["shape"], found["calcification"], found["lymph_node"]) == ("wrong", "invented", "missed")


def test_another_wording_of_the_same_findings_agrees() -> None:
    other = "In the left breast, a hypoechoic nodule of oval shape. It has circumscribed borders."
    assert agreement(compare(other, "Left breast: an oval, hypoechoic mass, circumscribed margin.")) == 1


@pytest.mark.parametrize("text", [REFERENCE, REPORT, CHINESE])
def test_the_words_of_a_finding_stand_where_the_span_says(text: str) -> None:
    found = [each for each in statements(text) if each.words]
    assert found
    for each in found:
        assert each.span is not None
        written = text[slice(*each.span)].lower().translate({ord("８"): "8", ord("５"): "5"})
        assert "".join(written.split()) == "".join(each.words.split())


def test_words_that_are_read_as_others_have_no_span() -> None:
    (node,) = [each for each in statements("右侧腋下见一结节。") if each.attribute == "lymph_node"]
    assert node.words == "淋巴结" and node.span is None


def test_every_finding_of_the_overall_score_is_compared_once() -> None:
    counted = [each for each in compare(REPORT, REFERENCE) if each.attribute not in ("size", "clock", "segment")]
    written = {(each.attribute, each.value) for each in counted if each.value is not None}
    true = {(each.attribute, each.expected) for each in counted if each.expected is not None}
    assert written == read(REPORT) and true == read(REFERENCE)
    both = sum(each.kind == "agreed" for each in counted)
    assert both == len(read(REPORT) & read(REFERENCE))
    assert agreement(counted) == pytest.approx(2 * both / (len(written) + len(true)))


def test_values_that_differ_are_paired_and_the_rest_is_invented_or_missed() -> None:
    found = [
        each for each in compare("Left and right breast: a cyst.", "Left breast: a cyst.") if each.attribute == "side"
    ]
    assert [(each.kind, each.value, each.expected) for each in found] == [
        ("agreed", "left", "left"),
        ("invented", "right", None),
    ]


def test_texts_without_findings_have_no_agreement() -> None:
    assert compare("Good morning.", "Hello.") == () and agreement(()) is None
