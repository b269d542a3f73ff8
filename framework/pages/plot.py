"""Plots of a page: drawn by matplotlib as inline SVG that takes its font and its colours, light or dark, from the page.

Matplotlib draws with placeholder colours, which `Plot.svg` replaces by the style sheet's variables: `--ink`, `--soft`,
`--paper`, `--rule`, `--edge` and `--c0` to `--c7`. Text stays text.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

SERIES = 8  # colours; the ninth series has the first colour again, with another dash and another marker
INK = {name: f"#{i:06x}" for i, name in enumerate(("ink", "soft", "paper", "rule", "edge"), 1)}
INK |= {f"c{i}": f"#{16 + i:06x}" for i in range(SERIES)}
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 2)), (0, (5, 2, 1, 2)))
MARKERS = {"o": 1.0, "s": 0.9, "^": 1.1, "D": 0.85, "v": 1.1, "*": 1.5, "p": 1.1, "X": 1.1}  # and equal areas
CHARACTER = 6.3  # width of a Latin character of a tick label
LONGEST = 28  # characters of a tick label
STYLED = rc_context(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "sonoscribe",
        "text.parse_math": False,  # a label is text, also with two $ in it
        "font.size": 11,
        "axes.labelcolor": INK["ink"],
        "axes.edgecolor": INK["edge"],
        "axes.formatter.useoffset": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": INK["rule"],
        "xtick.color": INK["edge"],
        "ytick.color": INK["edge"],
        "xtick.labelcolor": INK["soft"],
        "ytick.labelcolor": INK["soft"],
        "ytick.left": False,
    }
)


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    series: int
    label: str
    joined: bool = True  # by a line

    @property
    def mark(self) -> Markup:
        return key_mark(self.series, line=self.joined)


@dataclass(frozen=True)
class Figure:
    """A plot with what belongs to it, as the macro `figure` of the templates shows it."""

    title: str
    picture: Markup | None = None  # None: `nothing` gives the reason
    nothing: str = ""
    caption: str = ""
    legend: str = ""  # what the keys are labels of
    keys: Sequence[Key] = ()
    notes: Sequence[str] = ()
    wide: bool = False


class Plot:
    """One pair of axes. Sizes are in CSS pixels."""

    @STYLED
    def __init__(self, x_name: str, y_name: str = "", *, width: float = 420, height: float = 270) -> None:
        """
        Args:
            y_name: title of the vertical axis.
        """
        self.width, self.height, self.right = width, height, 18.0
        self.canvas = _canvas(width, height)
        self.axes = self.canvas.subplots()
        self.axes.patch.set_visible(False)
        self.notes: dict[str, tuple[str, str, str]] = {}  # id of an element -> class, key, title
        for axis in (self.axes.xaxis, self.axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        self.axes.set_xlabel(x_name)
        self.canvas.text(8 / width, 1 - 8 / height, y_name, va="top", color=INK["ink"])

    def log_x(self) -> None:
        self.axes.set_xscale("log")
        self.axes.xaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)),
            major_formatter=FuncFormatter(lambda value, _: f"{value:.12g}"),
            minor_locator=NullLocator(),
        )

    @STYLED
    def y_labels(self, labels: Sequence[str]) -> None:
        """Names the values 0, 1, 2 ... of the vertical axis, from top to bottom."""
        self.axes.set_yticks(range(len(labels)), [shorten(label) for label in labels])
        self.axes.set_ylim(len(labels) - 0.5, -0.5)
        for text, label in zip(self.axes.get_yticklabels(), labels):
            self._note(text, "", None, label if text.get_text() != label else "")

    def line(self, points: Sequence[tuple[float, float]], series: int, kind: str = "line", title: str = "") -> None:
        """Joins points. `kind` is line (a mean) or thin (what it is the mean of)."""
        style = {"line": {"lw": 2.2}, "thin": {"lw": 1, "alpha": 0.6}}[kind]
        self._draw(points, kind, series, title, **_stroke(series), **style)

    def mark(self, x: float, y: float, series: int, size: float = 10, *, hollow: bool = False, title: str = "") -> None:
        """A marker of the series; hollow if its value lacks something."""
        style = _marker(series, size) | ({"mfc": INK["paper"]} if hollow else {})
        self._draw([(x, y)], "mark hollow" if hollow else "mark", series, title, **style)

    def bar(self, x: float, y: float, series: int | None = None, title: str = "") -> None:
        """A horizontal bar from 0; grey without a series."""
        colour = INK["edge"] if series is None else INK[f"c{series % SERIES}"]
        (patch,) = self.axes.barh([y], [x], 0.62, color=colour, zorder=2)
        self._note(patch, "bar", series, title)

    def interval(self, low: float, high: float, y: float) -> None:
        """A horizontal line with ends, over a bar."""
        style = {"color": INK["ink"], "lw": 1.6, "marker": "|", "ms": 9, "mew": 1.6}
        self._draw([(low, y), (high, y)], "interval", None, f"{low:.3f} to {high:.3f}", **style)

    def dot(self, x: float, y: float, series: int | None = None, title: str = "") -> None:
        """A single value behind a mean."""
        colour = INK["soft"] if series is None else INK[f"c{series % SERIES}"]
        self._draw([(x, y)], "dot", series, title, marker="o", ms=5, mew=0, mfc=colour, ls="", alpha=0.55)

    def front(self, points: Sequence[tuple[float, float]], series: Sequence[int]) -> None:
        """Joins points by steps, and rings each."""
        style = {"color": INK["soft"], "lw": 1.3, "ls": (0, (4, 3))}
        self._draw(points, "front", None, "", drawstyle="steps-post", **style)
        for point, index in zip(points, series):
            self._draw([point], "ring", index, "", marker="o", ms=18, mew=1.2, mfc="none", mec=INK["ink"], ls="")

    @STYLED
    def level(self, x: float, name: str) -> None:
        """A vertical line to compare with."""
        self.axes.axvline(x, color=INK["soft"], lw=1, ls=(0, (2, 3)), zorder=1)
        self.axes.annotate(
            name, (x, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points", ha="center",
            color=INK["soft"], fontsize=10.5,
        )  # fmt: skip

    @STYLED
    def beside(self, y: float, text: str) -> None:
        """Text at the right of the axes."""
        self.right = max(self.right, 16 + CHARACTER * columns(text))
        self.axes.annotate(
            text, (1, y), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            color=INK["ink"],
        )  # fmt: skip

    @STYLED
    def svg(self, description: str) -> Markup:
        """Returns the plot. `description` is read by screen readers."""
        texts = [text.get_text() for text in self.axes.get_yticklabels()]
        left = 16 + CHARACTER * max(map(columns, texts), default=0)
        top, bottom = 28, 46
        self.canvas.subplots_adjust(
            left / self.width, bottom / self.height, 1 - self.right / self.width, 1 - top / self.height
        )
        return _inline(self.canvas, self.notes, {"role": "img", "aria-label": description})

    def _draw(
        self, points: Sequence[tuple[float, float]], kind: str, series: int | None, title: str, **style: Any
    ) -> None:
        if points:
            (artist,) = self.axes.plot(*zip(*points), clip_on=False, zorder=3, **style)
            self._note(artist, kind, series, title)

    def _note(self, artist: Artist, kind: str, series: int | None, title: str) -> None:
        """What the element of an artist shall have beside its shape."""
        artist.set_gid(f"note-{len(self.notes)}")
        self.notes[f"note-{len(self.notes)}"] = (kind, "" if series is None else str(series), title)


@lru_cache
@STYLED
def key_mark(series: int, *, line: bool = True) -> Markup:
    """The marker of a series as a legend or a table shows it."""
    width, height = 30 if line else 14, 14
    canvas = _canvas(width, height)
    if line:
        canvas.add_artist(Line2D([0, 1], [0.5, 0.5], lw=2.2, **_stroke(series)))
    canvas.add_artist(Line2D([0.5], [0.5], **_marker(series, 8)))
    return _inline(canvas, {}, {"class": "key", "aria-hidden": "true", "width": f"{width}", "height": f"{height}"})


def span(values: Sequence[float], margin: float = 0.07) -> tuple[float, float]:
    """The lowest and the highest value with room at both ends, also if all are equal."""
    low, high = min(values), max(values)
    room = margin * (high - low) or 0.05 * abs(low) or 0.5
    return low - room, high + room


def columns(text: str) -> int:
    """The width of a text in Latin characters: a Chinese one counts twice."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def shorten(text: str, longest: int = LONGEST) -> str:
    """A text with its middle left out, so that it is at most `longest` Latin characters wide."""
    short, kept = text, len(text)
    while columns(short) > longest:
        kept -= 1
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def _canvas(width: float, height: float) -> Canvas:
    canvas = Canvas(figsize=(width / 72, height / 72))
    canvas.patch.set_visible(False)
    return canvas


def _stroke(series: int) -> dict[str, Any]:
    return {"color": INK[f"c{series % SERIES}"], "ls": DASHES[series // SERIES % len(DASHES)]}


def _marker(series: int, size: float) -> dict[str, Any]:
    colour, shape = INK[f"c{series % SERIES}"], list(MARKERS)[(series + series // SERIES) % len(MARKERS)]
    return {"marker": shape, "ms": size * MARKERS[shape], "mew": 1.6, "mec": colour, "mfc": colour, "ls": ""}


SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
VARIABLES = {colour: f"var(--{name})" for name, colour in INK.items()}


def _inline(canvas: Canvas, notes: dict[str, tuple[str, str, str]], attributes: dict[str, str]) -> Markup:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # matplotlib's own font only measures
        canvas.savefig(buffer, format="svg")
    root = ElementTree.fromstring(buffer.getvalue())
    shapes = {path.get("id", ""): path for path in root.iter(f"{SVG}path")}
    svg = ElementTree.Element("svg", {"viewBox": root.get("viewBox", ""), **attributes})
    svg.extend(part for child in root for part in _cleaned(child, shapes, notes))
    return Markup(ElementTree.tostring(svg, encoding="unicode", short_empty_elements=False))


def _cleaned(
    element: ElementTree.Element, shapes: dict[str, ElementTree.Element], notes: dict[str, tuple[str, str, str]]
) -> list[ElementTree.Element]:
    """Converts an element of matplotlib for use within HTML: without ids, which would recur in the next plot, and
    fonts, with the colours of the page and with the notes of `Plot`.
    """
    tag, given = element.tag.removeprefix(SVG), dict(element.attrib)
    if tag in ("metadata", "defs"):
        return []
    inside = [part for child in element for part in _cleaned(child, shapes, notes)]
    if tag == "g":
        if given.get("id") not in notes:
            return inside
        kind, key, title = notes[given["id"]]
        given = {"class": kind, "data-key": key}
        if title:
            inside.insert(0, ElementTree.Element("title"))
            inside[0].text = title
    elif tag == "use":  # a marker: a shape that is defined once
        shape = shapes[given[LINK][1:]]
        given = {
            "d": shape.get("d", ""),
            "transform": f"translate({given['x']} {given['y']})",
            "style": f"{shape.get('style', '')}; {given['style']}",
        }
    made = ElementTree.Element("path" if tag == "use" else tag)
    made.text = element.text
    for name in ("class", "data-key", "d", "x", "y", "transform", "style"):
        value = given.get(name, "")
        if name == "style":
            value = re.sub(r"font-family: [^;]*;? ?", "", value)
            value = re.sub("#[0-9a-f]{6}", lambda colour: VARIABLES.get(colour[0], colour[0]), value)
        elif name not in ("class", "data-key"):  # numbers, of which two digits after the point are enough
            value = re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split()))
        if value and not value.startswith("rotate(-0"):
            made.set(name, value)
    made.extend(inside)
    return [made]
