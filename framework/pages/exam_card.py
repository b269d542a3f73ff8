"""The card of an exam: its views, and the generated report word by word with where the model looked.

A run's page and a report in a notebook show it by the macro `exam` of templates/parts.html.j2.

Shapes: V views, C channels, H W image, h w cells of a view's map.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from framework.pages.render import render
from framework.text.words import Word

SHOWN = 12  # test exams on the page of a run
STRONG = 3  # times the weight of equal weights


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


def exam_card(
    exam_id: str,
    images_VCHW: np.ndarray,
    report: str,
    rows: dict[str, Any] | None,
    reference: str | None = None,
    warnings: Sequence[str] = (),
    *,
    nearest: Sequence[Any] = (),
) -> dict[str, Any]:
    """What the macro `exam` shows.

    Args:
        images_VCHW: the views as the model saw them, uint8.
        rows: see `word_rows`; None shows the report as plain text.
        nearest: training exams with the most similar images, each with `id` and `report`.
    """
    words, end = [], 0
    for word in rows["words"] if rows else []:
        words.append({**word, "before": report[end : word["start"]]})
        end = word["start"] + len(word["text"])
    return {
        "id": exam_id,
        "views": [_png(image_CHW) for image_CHW in images_VCHW],
        "report": report,
        "words": words,
        "grid": " ".join(map(str, rows["grid"])) if rows and rows["grid"] else None,
        "reference": reference,
        "nearest": list(nearest),
        "warnings": warnings,
    }


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


def _png(image_CHW: np.ndarray) -> str:
    pixels = image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="png")
    return data_uri(buffer.getvalue())


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
