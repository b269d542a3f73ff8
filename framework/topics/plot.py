"""Plot of topics: a map of the training reports, sizes and words of the topics, and the choice of their number."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.topics.count import TopicChoice

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes

MAX_POINTS = 1000  # more reports are unreadable, and t-SNE takes a second for each few hundred
CURVE_HEIGHT = 3.2  # inches, of the curves of `topics: auto`
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
    """Whether a text has CJK ideographs or full-width punctuation, which matplotlib's default font lacks."""
    return any("⺀" <= char <= "鿿" or "豈" <= char <= "﫿" or "\uff00" <= char <= "\uffef" for char in text)


def chinese_font() -> str | None:
    """The matplotlib name of an installed font with Chinese characters."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return next((name for name in CHINESE_FONTS if name in installed), None)


def flatten(points: np.ndarray) -> np.ndarray:
    """Projects points [n, D] to two dimensions, float [n, 2]: by t-SNE, or by principal components for fewer than ten.

    Points with one or two dimensions keep them.
    """
    if points.shape[1] <= 2:
        return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    if len(points) >= 10:
        from sklearn.manifold import TSNE

        near = min(30.0, (len(points) - 1) / 3)
        return TSNE(perplexity=near, init="random", max_iter=500, random_state=0, n_jobs=1).fit_transform(points)
    plane = principal(points, 2)
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))


def principal(points: np.ndarray, most: int) -> np.ndarray:
    """Projects points [n, D] to their principal components, at most `most` of them."""
    u, s, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    return (u * s)[:, :most]


def sample_points(count: int) -> np.ndarray:
    """Indices of at most `MAX_POINTS` of `count` reports, in order."""
    if count <= MAX_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MAX_POINTS, replace=False))


def draw_topics(
    points: np.ndarray,
    copies: np.ndarray,
    labels: np.ndarray,
    different: int,
    words: Sequence[Sequence[str]],
    sizes: Sequence[int],
    quality: Mapping[str, float | None],
    choice: TopicChoice | None = None,
) -> bytes:
    """The plot as PNG. The same topics give the same plot.

    If the words are Chinese and no Chinese font is installed, topics are shown by number, with a note.

    Args:
        points: embeddings of distinct training reports, those of `sample_points`, float [n, D].
        copies: number of occurrences of each report, int [n]: the area of its point.
        labels: topic of each report, int [n].
        different: number of all distinct training reports.
        words: words by topic.
        sizes: number of training reports by topic.
        choice: the search for the number of topics, if there was one.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chinese = is_chinese("".join(word for row in words for word in row))
    font = chinese_font() if chinese else None
    readable = not chinese or font is not None
    family = [font, "DejaVu Sans"] if font else ["DejaVu Sans"]
    palette = matplotlib.colormaps["tab20" if len(sizes) <= 20 else "turbo"].resampled(max(len(sizes), 2))
    colours = [palette(topic) for topic in range(len(sizes))]

    with matplotlib.rc_context({"font.family": family}):
        height = max(6.0, 0.34 * len(sizes) + 1.5)
        figure = Figure(figsize=(15, height + (CURVE_HEIGHT if choice else 0)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplot_mosaic(
            "ms;cc" if choice else "ms",
            width_ratios=[1.15, 1],
            height_ratios=[height, CURVE_HEIGHT] if choice else [height],
        )
        plane, bars = axes["m"], axes["s"]
        _draw_map(plane, flatten(points), copies, labels, colours)
        plane.set_title(f"{len(points)} of {different} distinct training reports; area: copies")
        _draw_sizes(bars, sizes, words if readable else None, colours)
        if choice is not None:
            _draw_choice(axes["c"], choice)
        figure.suptitle("   ".join(_format(name, value) for name, value in quality.items()), fontsize=10)
        if not readable:
            figure.supxlabel(
                "The words are Chinese, and no Chinese font (such as Noto Sans CJK) is installed: "
                "topics are shown by number; topics.json has their words",
                fontsize=9,
            )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _format(name: str, value: float | None) -> str:
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
        place = members[np.linalg.norm(members - middle, axis=1).argmin()]  # at a report, not between two groups
        stroke = [withStroke(linewidth=3, foreground="white")]
        axes.text(place[0], place[1], str(topic), ha="center", va="center", weight="bold", path_effects=stroke)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_sizes(axes: Axes, sizes: Sequence[int], words: Sequence[Sequence[str]] | None, colours: list[Any]) -> None:
    rows = np.arange(len(sizes))
    axes.barh(rows, sizes, color=colours, alpha=0.5)  # pale, so that the words on top are readable
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
    searched = "the" if choice.sampled is None else f"{choice.sampled:,} of the"
    axes.set_xlabel(f"numbers of topics tried, on resamples of {searched} distinct training reports")
    reason = "the smallest number whose score reaches the dotted line"
    if choice.coarse is not None:
        reason = f"a finer peak, nearly as stable as {choice.coarse} topics"
    axes.set_title(f"{choice.chosen} topics: {reason}", fontsize=10)
    axes.legend(fontsize=9, loc="upper right")
