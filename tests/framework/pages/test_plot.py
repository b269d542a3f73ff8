"""Plots within a page: only text and shapes, in the page's colours."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from framework.pages.plot import Plot, columns, key_mark, shorten, span

EVIL = "<script>alert(1)</script> $x$ #000001 url(x) 乳腺"


def a_plot(label: str = "a") -> str:
    plot = Plot(label, label)
    plot.y_labels([label, "b"])
    plot.axes.set_xlim(0.0, 1.0)
    plot.line([(0.1, 0), (0.9, 1)], 1, "thin", label)
    plot.mark(0.1, 0, 1, hollow=True, title=label)
    plot.dot(0.5, 1, 9)
    plot.level(0.4, label)
    plot.beside(1, "0.500")
    return plot.svg(label)


def test_a_plot_has_no_ids_no_fonts_and_only_colours_of_the_page() -> None:
    for svg in (a_plot(), key_mark(3), key_mark(11, line=False)):
        elements = list(ElementTree.fromstring(svg).iter())
        assert {element.tag for element in elements} <= {"svg", "g", "path", "text", "title"}
        styles = " ".join(element.get("style", "") for element in elements)
        assert not any("id" in element.attrib for element in elements) and "font-family" not in styles
        assert not re.search(r"#[0-9a-f]{3}|rgb|url", styles) and "var(--c" in styles


def test_labels_and_titles_are_text() -> None:
    texts = [
        element.text for element in ElementTree.fromstring(a_plot(EVIL)).iter() if element.tag in ("text", "title")
    ]
    assert texts.count(EVIL) == 6  # both names, the level, and the titles of the label, the line and the marker
    assert shorten(EVIL) in texts


def test_marks_carry_class_series_and_title() -> None:
    groups = [element.attrib for element in ElementTree.fromstring(a_plot()).iter("g") if "class" in element.attrib]
    assert groups == [
        {"class": "thin", "data-key": "1"},
        {"class": "mark hollow", "data-key": "1"},
        {"class": "dot", "data-key": "9"},
    ]


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    plot = Plot("cost", "score")
    plot.log_x()
    plot.axes.set_xlim(0.8, 300)
    texts = [element.text for element in ElementTree.fromstring(plot.svg("")).iter("text")]
    assert [text for text in texts if text in ("1", "2", "5", "10", "20", "50", "100", "200")] == [
        "1", "2", "5", "10", "20", "50", "100", "200",
    ]  # fmt: skip


def test_series_differ_by_more_than_colour() -> None:
    assert len({key_mark(series) for series in range(32)}) == 32


def test_the_same_plot_gives_the_same_text() -> None:
    assert a_plot() == a_plot()


def test_equal_values_have_a_padded_axis() -> None:
    assert span([0.0, 1.0], 0.1) == (-0.1, 1.1)
    assert span([2.0]) == (1.9, 2.1) and span([0.0]) == (-0.5, 0.5)


def test_chinese_characters_count_twice_in_the_width_of_a_label() -> None:
    assert columns("a乳腺") == 5
    assert shorten("a long label, number 3", 12) == "a long…ber 3"
    assert shorten("乳腺超声", 8) == "乳腺超声" and shorten("乳腺超声x", 8) == "乳腺…声x"
