"""The card of an exam: its views, the generated report word by word with where the model looked, its findings beside
those of the reference.

A run's page and a report in a notebook show it by the macro `exam` of templates/parts.html.j2.

Shapes: V views, C channels, H W image, h w cells of a view's map.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from framework.pages.render import render
from framework.text.findings.compare import KINDS, Compared, Kind, compare
from framework.text.findings.confidence import UNSURE, findings_of
from framework.text.findings.expression import Span
from framework.text.words import Word

STRONG = 3  # times the weight of equal weights
QUALITY = 60  # of WebP, which takes a tenth of the bytes of PNG


def word_rows(words: Sequence[Word]) -> dict[str, Any]:
    """What a card needs of a report's words, as JSON holds it.

    Returns:
        words: text, start, confidence and `heat`: the word's map in 8 bits, in base64. 0 is the weight of a cell if all
            are equal or less, 255 the highest of the map, or `STRONG` times that of equal weights if it is less.
        grid: [V, h, w] of the maps; null without maps.
    """
    maps = [word.attention for word in words if word.attention is not None]
    rows = [
        {
            "text": word.text,
            "start": word.start,
            "confidence": round(word.confidence, 4),
            "heat": "" if word.attention is None else _heat(word.attention),
        }
        for word in words
    ]
    return {"grid": list(maps[0].shape) if maps else None, "words": rows}


def stored_words(row: Mapping[str, Any]) -> list[Word]:
    """The words of `word_rows`, without where the model looked."""
    return [Word(word["text"], word["start"], word["confidence"], None) for word in row["words"]]


def exam_card(
    exam_id: str,
    images_VCHW: np.ndarray | None,
    report: str,
    rows: Mapping[str, Any] | None,
    reference: str | None = None,
    warnings: Sequence[str] = (),
    *,
    calibrated: bool = False,
    true_topic: str | None = None,
    predicted_topic: str | None = None,
    nearest: Sequence[Any] = (),
    logprob: float | None = None,
    alternatives: Sequence[Any] = (),
) -> dict[str, Any]:
    """What the macro `exam` shows.

    Args:
        images_VCHW: the views as the model saw them, uint8; None where they are not at hand.
        rows: see `word_rows`; None shows the report as plain text.
        calibrated: whether the confidence of words is that of a calibrated model.
        true_topic: of the reference; None without topics.
        predicted_topic: by the topic head.
        nearest: training exams with the most similar images, each with `id` and `report`.
        logprob: the logarithm of the report's probability; needed with `alternatives`.
        alternatives: other reports of the beam, each with `text` and `logprob`.
    """
    compared = None if reference is None else compare(report, reference)
    marks = _marks((each.kind, each.spans) for each in compared or ())
    words, end = [], 0
    for word in rows["words"] if rows else []:
        start, end_before = word["start"], end
        end = start + len(word["text"])
        words.append({**word, "before": report[end_before:start], "kind": _worst(marks, start, end)})
    findings = _findings(report, rows, compared)
    return {
        "id": exam_id,
        "views": [] if images_VCHW is None else [_webp(image_CHW) for image_CHW in images_VCHW],
        "report": report,
        "words": words,
        "parts": list(_parts(report, marks)),
        "grid": " ".join(map(str, rows["grid"])) if rows and rows["grid"] else None,
        "reference": reference,
        "reference_parts": list(
            _parts(reference or "", _marks((each.kind, each.expected_spans) for each in compared or ()))
        ),
        "findings": findings,
        "unread": _unread(findings, reference is not None),
        "calibrated": calibrated,
        "true_topic": true_topic,
        "predicted_topic": predicted_topic,
        "nearest": list(nearest),
        "logprob": logprob,
        "alternatives": list(alternatives),
        "warnings": warnings,
    }


def _findings(report: str, rows: Mapping[str, Any] | None, compared: Sequence[Compared] | None) -> list[dict[str, Any]]:
    """A line for each finding: those that differ from the reference first; without a reference in their order."""
    found = findings_of(report, stored_words(rows) if rows else [])
    confidence = {(each.attribute, each.value): each.confidence for each in found}
    lines: list[tuple[Kind | None, str, str | None, str | None]]
    if compared is None:
        lines = [(None, each.attribute, each.value, None) for each in found]
    else:
        worst_first = sorted(compared, key=lambda each: KINDS.index(each.kind))
        lines = [(each.kind, each.attribute, each.value, each.expected) for each in worst_first]
    return [
        {
            "kind": kind,
            "name": attribute.replace("_", " "),
            "value": expected if value is None else value,
            "expected": expected if kind == "wrong" else None,
            "confidence": (sure := None if value is None else confidence.get((attribute, value))),
            "unsure": sure is not None and sure < UNSURE,
        }
        for kind, attribute, value, expected in lines
    ]


def _unread(findings: Sequence[Mapping[str, Any]], has_reference: bool) -> str:
    """In which text the lexicon reads nothing; empty if it reads findings in all."""
    texts = {"the generated report": {"missed"}} | ({"the reference": {"invented"}} if has_reference else {})
    unread = [text for text, kinds in texts.items() if {each["kind"] for each in findings} <= kinds]
    return f"The lexicon reads no finding in {' and '.join(unread)}." if unread else ""


Marks = list[tuple[int, int, Kind]]


def _marks(spans_of_kinds: Iterable[tuple[Kind, Sequence[Span]]]) -> Marks:
    return [(start, end, kind) for kind, spans in spans_of_kinds for start, end in spans]


def _worst(marks: Marks, start: int, end: int) -> Kind | None:
    """The worst kind of the findings that words from `start` to `end` state."""
    kinds = [kind for first, last, kind in marks if first < end and last > start]
    return min(kinds, key=KINDS.index, default=None)


def _parts(text: str, marks: Marks) -> Iterator[tuple[str, Kind | None]]:
    """A text cut where marks begin and end, each part with the worst of its kinds."""
    cuts = sorted({0, len(text), *(place for start, end, _ in marks for place in (start, end))})
    for start, end in pairwise(cuts):
        yield text[start:end], _worst(marks, start, end)


def exam_frame(card: dict[str, Any]) -> str:
    """A card as a frame for a notebook, whose style and script then do not meet those of the card."""
    page = render("exam.html.j2", title=card["id"], about=[], exam=card)
    style = "width: 100%; height: 30em; border: 0"
    return f'<iframe title="{escape(card["id"])}" srcdoc="{escape(page)}" style="{style}"></iframe>'


def _heat(attention_Vhw: np.ndarray) -> str:
    """Attention above that of equal weights, so that a word which looks everywhere shows little."""
    equal = attention_Vhw.mean()
    highest = max(attention_Vhw.max(), STRONG * equal)
    scaled = (attention_Vhw - equal) / (highest - equal) if highest > equal else np.zeros(attention_Vhw.shape)
    return base64.b64encode(np.rint(255 * scaled.clip(0, 1)).astype(np.uint8).tobytes()).decode()


def _webp(image_CHW: np.ndarray) -> str:
    pixels = image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="webp", quality=QUALITY)
    return data_uri(buffer.getvalue(), "webp")


def data_uri(image: bytes, form: str = "png") -> str:
    return f"data:image/{form};base64,{base64.b64encode(image).decode()}"
