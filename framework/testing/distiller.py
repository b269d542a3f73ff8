"""What a distiller promises. Shapes: n reports, K topics, D dimensions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from framework.testing.promise import Make, hold, made, promised
from framework.text.lsa import ReportSpace
from framework.topics.quality import TopicDescription

SENTENCES = (
    ("an anechoic cyst", "posterior enhancement", "a thin smooth wall", "no inner flow", "a round shape"),
    ("an irregular mass", "a spiculated margin", "rich vascularity", "calcification within", "a dark shadow"),
    ("a postoperative scar", "shadow behind the scar", "no recurrence", "retracted skin", "after lumpectomy"),
    ("no focal lesion", "homogeneous tissue", "ducts not dilated", "regular layers", "normal lymph nodes"),
)


def reports(count: int, seed: int) -> list[str]:
    """Reports of four kinds, of different length."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        kind = SENTENCES[number % len(SENTENCES)]
        found.append(". ".join(draw.sample(kind, draw.randint(2, 5))))
    return found


def check_distiller(make: Make, *, texts: Sequence[str] | None = None) -> None:
    """Holds a distiller to its contract.

    Args:
        make: The class, or what makes one; gets `segment` and `seed`.
        texts: Training reports, where 80 of ours are too few or of another language.

    Raises:
        BrokenPromise: the first promise that it does not keep.
    """

    def build() -> Any:
        return made(make, segment=lambda text: text.lower().replace(".", " .").split(), seed=7)

    train = list(texts) if texts is not None else reports(80, 1)
    unseen = [*train[:5], *reports(12, 2), "words never heard before", ""]
    distiller = build()
    count = getattr(distiller, "topic_count", None)
    known = type(count) is int and count >= 1
    hold(
        known or (count is None and hasattr(distiller, "topic_count")),
        "topic_count is known before fit, or None where only the reports tell, since `plan` and the losses need it",
        found=count if hasattr(distiller, "topic_count") else "no topic_count",
        expected="an int from 1, or None",
        fix="set self.topic_count in __init__",
    )
    with promised("fit(texts) finds topics", expected="no error", fix="give more `texts`, or fewer topics"):
        distiller.fit(list(train))
    found = distiller.topic_count
    hold(
        found == count if known else type(found) is int and found >= 1,
        "topic_count stays as it was told before fit, and is known after it",
        found=found,
        expected=count if known else "an int from 1",
        fix="leave topics empty, or raise a ValueError that says how many fit",
    )
    labels, weights = _assigned(distiller, train)
    _told(distiller, train, labels)
    _only_reads(distiller, train, unseen, labels)
    fix = "draw from `seed` alone: no global generator, no hash(), no order of sets"
    other = build()
    other.fit(list(train))
    again, same_weights = _assigned(other, train)
    hold(
        np.array_equal(again, labels) and np.allclose(same_weights, weights, atol=1e-5),
        "the same seed finds the same topics",
        found=f"{int((again != labels).sum())} of {len(train)} reports in another topic",
        expected="equal topics and weights",
        fix=fix,
    )


def _assigned(distiller: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    n, k = len(texts), distiller.topic_count
    promise = "assign gives a topic and weights of each report, whatever its words"
    expected = f"int64 [{n}] from 0 to {k - 1}, and float [{n}, {k}]"
    with promised(promise, expected=expected, fix="return two arrays; a report without a known word has a topic too"):
        labels, weights = distiller.assign(list(texts))
    right = isinstance(labels, np.ndarray) and labels.shape == (n,) and labels.dtype.kind == "i"
    right = right and isinstance(weights, np.ndarray) and weights.shape == (n, k) and weights.dtype.kind == "f"
    found = f"{np.asarray(labels).dtype} {np.shape(labels)}, {np.asarray(weights).dtype} {np.shape(weights)}"
    hold(right, promise, found=found, expected=expected, fix="return two numpy arrays")
    inside = labels.min() >= 0 and labels.max() < k
    found = f"{labels.min()} to {labels.max()}"
    hold(inside, "topics are numbered from 0", found=found, expected=f"0 to {k - 1}", fix="number them anew")
    sums = weights.sum(1)
    hold(
        bool(np.isfinite(weights).all()) and weights.min() >= 0 and np.allclose(sums, 1, atol=1e-4),
        "a report's weights are shares: they sum to 1",
        found=f"sums of {sums.min():.3g} to {sums.max():.3g}, the least weight {weights.min():.3g}",
        expected="from 0, and sums of 1",
        fix="divide each row by its sum",
    )
    strongest = weights.max(1) - weights[np.arange(n), labels]
    hold(
        strongest.max() <= 1e-5,
        "a report's topic is the one of its largest weight",
        found=f"{int((strongest > 1e-5).sum())} reports of another topic",
        expected="weights.argmax(1)",
        fix="return weights.argmax(1) as the topics",
    )
    return labels, weights


def _told(distiller: Any, train: Sequence[str], labels: np.ndarray) -> None:
    count = distiller.topic_count
    cards = distiller.describe()
    right = len(cards) == count and all(isinstance(card, TopicDescription) for card in cards)
    fix = "framework.topics.quality.describe_topics makes them"
    hold(right, "describe tells every topic", found=len(cards), expected=f"{count} TopicDescription", fix=fix)
    sizes = [card.size for card in cards]
    expected = np.bincount(labels, minlength=count).tolist()
    hold(sizes == expected, "a topic's size counts its training reports", found=sizes, expected=expected, fix=fix)
    hold(
        all(card.example in train for card in cards if card.size),
        "a topic's example is one of its training reports",
        found=next((card.example for card in cards if card.size and card.example not in train), ""),
        expected="a training report",
        fix=fix,
    )
    positions = distiller.positions(list(train))
    right = np.ndim(positions) == 2 and len(positions) == len(train) and bool(np.isfinite(positions).all())
    found, fix = f"shape {np.shape(positions)}", "a row for each report"
    hold(right, "positions lays reports out on a map", found=found, expected=f"finite [{len(train)}, D]", fix=fix)
    quality = distiller.quality()
    right = isinstance(quality, dict) and all(value is None or np.isfinite(value) for value in quality.values())
    fix = "framework.topics.quality.topic_quality makes it"
    hold(right, "quality gives numbers by name", found=quality, expected="{name: number or None}", fix=fix)
    hold(
        hasattr(distiller, "space") and isinstance(distiller.space, (ReportSpace, type(None))),
        "`space` is the report space of the topics, or None",
        found=getattr(distiller, "space", "no `space`"),
        expected="a framework.text.lsa.ReportSpace, or None",
        fix="set self.space = None in __init__, where there is none",
    )


def _only_reads(distiller: Any, train: Sequence[str], unseen: Sequence[str], labels: np.ndarray) -> None:
    cards = distiller.describe()
    first, _ = _assigned(distiller, unseen)
    promise = "assign learns nothing from the reports that it is given: topics come from training alone"
    fix = "keep counts, scales and centres from fit, and only read them in assign"
    again, _ = _assigned(distiller, train)
    changed = int((again != labels).sum())
    hold(changed == 0, promise, found=f"{changed} training reports moved", expected="equal topics", fix=fix)
    hold(distiller.describe() == cards, promise, found="other descriptions", expected="equal ones", fix=fix)
    alone = np.concatenate([_assigned(distiller, [text])[0] for text in unseen])
    moved = int((alone != first).sum())
    hold(moved == 0, promise, found=f"{moved} reports of another topic alone", expected="equal topics", fix=fix)
