"""Drawing of plots as SVG inside a page: text stays text, colours are the page's, so that they follow light and dark.

Classes that the page's style has to know: `c0` ... `c7` (colours), `axis`, `rule`, `zero`, `tick`, `name`, `line`,
`thin`, `dot`, `mark`, `hollow`.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

COLOURS = 8
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # the ninth series has the first colour again, another line and another mark
SIGN_WIDTH = 6.3  # of a Latin letter of the ticks
TURN = 32  # of labels that would overlap [degrees]
MANY = 6  # labels that a panel of usual width takes
WIDE = 1080.0  # a panel over the whole page
LONGEST = 26 * SIGN_WIDTH  # that a turned label may be


def _ring(corners: int, turn: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a shape about 0; with every second one at `inner`, a star."""
    angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
    far = [1.0 if inner is None or i % 2 == 0 else inner for i in range(corners)]
    return [(r * math.cos(angle), r * math.sin(angle)) for r, angle in zip(far, angles)]


# The circle has no corners; the sizes make the areas look alike.
SHAPES: tuple[list[tuple[float, float]], ...] = (
    [],
    [(1.2 * x, 1.2 * y) for x, y in _ring(4, 45)],
    [(1.3 * x, 1.3 * y) for x, y in _ring(3, -90)],
    [(1.25 * x, 1.25 * y) for x, y in _ring(4, 0)],
    [(1.3 * x, 1.3 * y) for x, y in _ring(3, 90)],
    [(1.5 * x, 1.5 * y) for x, y in _ring(10, -90, 0.5)],
    [(1.15 * x, 1.15 * y) for x, y in _ring(5, -90)],
    [(1.35 * x, 1.35 * y) for x, y in _ring(8, 45, 0.45)],
)


def escape(text: str) -> str:
    return html.escape(text, quote=True)


def width_of(text: str) -> float:
    """Roughly, in the plot's units: Chinese signs are twice as wide as Latin ones."""
    return SIGN_WIDTH * sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def cut(text: str, width: float) -> str:
    if width_of(text) <= width:
        return text
    while text and width_of(text) > width - SIGN_WIDTH:
        text = text[:-1]
    return text + "…"


def marker(x: float, y: float, series: int, size: float, *, hollow: bool = False, title: str = "") -> str:
    """A mark of the series' shape; hollow where it lacks something."""
    kind = "mark hollow" if hollow else "mark"
    corners = SHAPES[(series + series // COLOURS) % len(SHAPES)]
    inside = f"<title>{escape(title)}</title>" if title else ""
    if not corners:
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}">{inside}</circle>'
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return f'<polygon class="{kind}" points="{points}">{inside}</polygon>'


def key(series: int, *, line: bool = True) -> str:
    """The mark of a series as it stands in a legend or a table."""
    dash = DASHES[series // COLOURS % len(DASHES)]
    stroke = f'<path class="line" d="M1,7H27" stroke-dasharray="{dash}"></path>' if line else ""
    left, width = (0, 28) if line else (7, 14)
    return (
        f'<svg class="key c{series % COLOURS}" viewBox="{left} 0 {width} 14" width="{width}" height="14" '
        f'aria-hidden="true">{stroke}{marker(14, 7, series, 4.5)}</svg>'
    )


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about so many."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """All with as many places as tell them apart."""
    for places in range(9):
        texts = [f"{value:.{places}f}" for value in values]
        if all(math.isclose(float(text), value, rel_tol=1e-6, abs_tol=1e-12) for text, value in zip(texts, values)):
            return texts
    return [f"{value:.3g}" for value in values]


def span(values: Sequence[float], margin: float = 0.07) -> tuple[float, float]:
    """From the lowest to the highest with room at both ends; values that are all equal get some as well."""
    low, high = min(values), max(values)
    room = margin * (high - low) or 0.05 * abs(low) or 0.5
    return low - room, high + room


@dataclass
class Panel:
    """One pair of axes. Values of both are given in their own units; `x` and `y` place them."""

    low: float  # of the vertical axis
    high: float
    left_x: float  # of the horizontal axis
    right_x: float
    log_x: bool = False
    width: float = 420
    height: float = 280
    left: float = 58
    right: float = 14
    top: float = 26
    bottom: float = 44
    marks: list[str] = field(default_factory=list)

    def x(self, value: float) -> float:
        place: Callable[[float], float] = math.log if self.log_x else float
        share = (place(value) - place(self.left_x)) / (place(self.right_x) - place(self.left_x))
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def vertical_axis(self, name: str) -> None:
        values = ticks(self.low, self.high)
        for value, text in zip(values, tick_texts(values)):
            y, end = self.y(value), self.width - self.right
            self.marks.append(f'<path class="rule" d="M{self.left:.1f},{y:.1f}H{end:.1f}"></path>')
            self.text(self.left - 7, y + 4, text, "tick", "end")
        self.text(4, 14, name, "name", "start")

    def horizontal_axis(self, name: str) -> None:
        if self.log_x:
            decades = range(math.floor(math.log10(self.left_x)), math.ceil(math.log10(self.right_x)) + 1)
            every = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
            values = [value for value in every if self.left_x <= value <= self.right_x]
            texts = [f"{value:.12g}" for value in values]
        else:
            values = ticks(self.left_x, self.right_x)
            texts = tick_texts(values)
        for value, text in zip(values, texts):
            self.tick(self.x(value), text)
        self.base()
        self.text((self.left + self.width - self.right) / 2, self.height - 6, name, "name", "middle")

    def text(self, x: float, y: float, text: str, kind: str, anchor: str) -> None:
        self.marks.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, points: Sequence[tuple[float, float]], kind: str, series: int) -> None:
        path = "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        dash = DASHES[series // COLOURS % len(DASHES)]
        beside = f' stroke-dasharray="{dash}"' if dash else ""
        self.marks.append(f'<path class="{kind}" d="M{path}"{beside}></path>')

    def drawn(self, description: str) -> str:
        """The whole picture. `description` is what a person hears who does not see it."""
        return (
            f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" aria-label="{escape(description)}">'
            + "".join(self.marks)
            + "</svg>"
        )

    def base(self) -> None:
        y = self.height - self.bottom
        self.marks.append(f'<path class="axis" d="M{self.left:.1f},{y:.1f}H{self.width - self.right:.1f}"></path>')

    def tick(self, x: float, text: str) -> None:
        y = self.height - self.bottom
        self.marks.append(f'<path class="axis" d="M{x:.1f},{y:.1f}V{y + 4:.1f}"></path>')
        self.text(x, y + 17, text, "tick", "middle")


def panel_over(labels: Sequence[str], name: str, low: float, high: float) -> Panel:
    """A panel whose horizontal axis has labels at 0, 1, 2 ...: turned where they would overlap, and left out in between
    where there are many.
    """
    panel = Panel(low, high, -0.5, len(labels) - 0.5, width=420 if len(labels) <= MANY else WIDE)
    slot = (panel.width - panel.left - panel.right) / len(labels)
    widest = max(map(width_of, labels))
    turned, every = widest > slot - 4, math.ceil(16 / slot)
    longest = min(LONGEST, (panel.left + slot / 2) / math.cos(math.radians(TURN)))  # the first one is not cut off
    if turned:
        panel.bottom = 36 + math.sin(math.radians(TURN)) * min(widest, longest)
        panel.height += panel.bottom - 44
    panel.base()
    for index in range(0, len(labels), every):
        x, y = panel.x(index), panel.height - panel.bottom
        if turned:
            panel.marks.append(
                f'<text class="tick" transform="translate({x + 4:.1f},{y + 13:.1f}) rotate(-{TURN})" text-anchor="end">'
                f"{escape(cut(labels[index], longest))}<title>{escape(labels[index])}</title></text>"
            )
        else:
            panel.tick(x, labels[index])
    panel.text((panel.left + panel.width - panel.right) / 2, panel.height - 6, name, "name", "middle")
    return panel
