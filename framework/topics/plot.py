"""Topics at a glance: a map of the training reports coloured by topic, beside the sizes and words of the topics.

Where the distiller chose the number of topics, what it chose by stands below.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.topics.count import TopicChoice

if TYPE_CHECKING:  # matplotlib takes a second to import, and only a picture needs it
    from matplotlib.axes import Axes

# More different reports than this blur on a page, and t-SNE takes a second for each few hundred.
MAPPED = 1000
CURVE = 3.2  # inches that the curve of `topics: auto` is high
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
)


def is_chinese(text: str) -> bool:
    """Whether a text holds CJK ideographs or full-width signs, which matplotlib's own font lacks."""
    return any("⺀" <= sign <= "鿿" or "豈" <= sign <= "﫿" or "\uff00" <= sign <= "\uffef" for sign in text)


def chinese_font() -> str | None:
    """The name of an installed font with Chinese signs, as matplotlib knows it."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return next((name for name in CHINESE_FONTS if name in installed), None)


def flatten(points: np.ndarray) -> np.ndarray:
    """A map of points [n, D] in the plane, float [n, 2].

    Points of two dimensions or one lie as they are; of more, by t-SNE, or principal components of fewer than ten.
    """
    if points.shape[1] <= 2:
        return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    if len(points) >= 10:
        from sklearn.manifold import TSNE

        near = min(30.0, (len(points) - 1) / 3)
        return TSNE(perplexity=near, init="random", max_iter=500, random_state=0, n_jobs=1).fit_transform(points)
    centred = points - points.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    plane = (u * s)[:, :2]
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))


def draw_topics(
    points: np.ndarray,
    copies: np.ndarray,
    labels: np.ndarray,
    words: Sequence[Sequence[str]],
    sizes: Sequence[int],
    quality: Mapping[str, float | None],
    choice: TopicChoice | None = None,
) -> bytes:
    """The picture of topics, as PNG. The same topics give the same picture.

    Where the words are Chinese and no Chinese font is installed, topics are shown by number and the picture says so.

    Args:
        points: float [n, D], where each different training report lies.
        copies: int [n], how many training reports read so: the area of its dot.
        labels: int [n], its topic.
        words: the words of each topic.
        sizes: training reports of each topic.
        choice: why there are so many, where the distiller chose.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = np.arange(len(points))
    if len(points) > MAPPED:
        shown = np.sort(np.random.default_rng(0).choice(len(points), MAPPED, replace=False))
    chinese = is_chinese("".join(word for row in words for word in row))
    font = chinese_font() if chinese else None
    readable = not chinese or font is not None
    family = [font, "DejaVu Sans"] if font else ["DejaVu Sans"]
    palette = matplotlib.colormaps["tab20" if len(sizes) <= 20 else "turbo"].resampled(max(len(sizes), 2))
    colours = [palette(topic) for topic in range(len(sizes))]

    with matplotlib.rc_context({"font.family": family}):
        height = max(6.0, 0.34 * len(sizes) + 1.5)
        figure = Figure(figsize=(15, height + (CURVE if choice else 0)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplot_mosaic(
            "ms;cc" if choice else "ms", width_ratios=[1.15, 1], height_ratios=[height, CURVE] if choice else [height]
        )
        plane, bars = axes["m"], axes["s"]
        _draw_map(plane, flatten(points[shown]), copies[shown], labels[shown], colours)
        plane.set_title(f"{len(shown)} of {len(points)} different training reports; area: copies")
        _draw_sizes(bars, sizes, words if readable else None, colours)
        if choice is not None:
            _draw_choice(axes["c"], choice)
        figure.suptitle("   ".join(_told(name, value) for name, value in quality.items()), fontsize=10)
        if not readable:
            figure.supxlabel(
                "The words are Chinese and no Chinese font is installed here (Noto Sans CJK would do): "
                "topics by number, their words in topics.json",
                fontsize=9,
            )
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _told(name: str, value: float | None) -> str:
    number = "–" if value is None else f"{value:.0f}" if name.startswith("reports") else f"{value:.2f}"
    return f"{name.replace('_', ' ')} {number}"


def _draw_map(axes: Axes, plane: np.ndarray, copies: np.ndarray, labels: np.ndarray, colours: list[Any]) -> None:
    from matplotlib.patheffects import withStroke

    axes.scatter(
        plane[:, 0], plane[:, 1], s=6 + 3 * copies, c=[colours[label] for label in labels], alpha=0.75, linewidths=0
    )
    for topic in np.unique(labels):
        members = plane[labels == topic]
        middle = np.median(members, axis=0)
        place = members[np.linalg.norm(members - middle, axis=1).argmin()]  # on a report, not between two groups
        stroke = [withStroke(linewidth=3, foreground="white")]
        axes.text(place[0], place[1], str(topic), ha="center", va="center", weight="bold", path_effects=stroke)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_sizes(axes: Axes, sizes: Sequence[int], words: Sequence[Sequence[str]] | None, colours: list[Any]) -> None:
    rows = np.arange(len(sizes))
    axes.barh(rows, sizes, color=colours, alpha=0.5)  # pale, so that the words on them can be read
    for row, size in enumerate(sizes):
        note = f" {size}   " + (" ".join(words[row][:6]) if words is not None else "")
        axes.text(0, row, note, va="center", fontsize=9)
    axes.set_yticks(rows, [str(row) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("training reports" + (", and the most characteristic words" if words is not None else ""))
    axes.set_xlim(0, 1.05 * max([1, *sizes]))


def _draw_choice(axes: Axes, choice: TopicChoice) -> None:
    best = max(range(len(choice.score)), key=choice.score.__getitem__)
    axes.plot(choice.counts, choice.silhouette, marker=".", label="silhouette")
    axes.plot(choice.counts, choice.stability, marker=".", label="stability")
    axes.errorbar(
        choice.counts, choice.score, choice.error, marker="o", capsize=3, color="black", label="score: mean of both"
    )
    bar = choice.score[best] - choice.error[best]
    axes.axhline(bar, linestyle=":", color="gray", label="one standard error below the best score")
    axes.axvline(choice.chosen, linestyle="--", color="gray")
    axes.set_xticks(choice.counts)
    axes.set_xlabel("topics tried, on resamples of the different training reports")
    axes.set_title(f"{choice.chosen} topics: the fewest whose score reaches the dotted line", fontsize=10)
    axes.legend(fontsize=9, loc="upper right")
