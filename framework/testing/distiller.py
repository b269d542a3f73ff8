"""The contract of a distiller. Shapes: n reports, K topics, D dimensions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from framework.testing.contract import Make, build_plugin, require, runs
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
    """Checks a distiller against its contract.

    Args:
        make: The class, or a function that builds one; receives `segment` and `seed`.
        texts: Training reports, where 80 of ours are too few or of another language.

    Raises:
        ContractError: the first rule that it breaks.
    """

    def build() -> Any:
        return build_plugin(make, segment=lambda text: text.lower().replace(".", " .").split(), seed=7)

    train = list(texts) if texts is not None else reports(80, 1)
    unseen = [*train[:5], *reports(12, 2), "words never heard before", ""]
    distiller = build()
    count = getattr(distiller, "topic_count", None)
    known = type(count) is int and count >= 1
    require(
        known or (count is None and hasattr(distiller, "topic_count")),
        "topic_count is set before fit, or None if it depends on the reports",
        found=count if hasattr(distiller, "topic_count") else "no topic_count",
        expected="an int from 1, or None",
        fix="set self.topic_count in __init__",
    )
    with runs("fit(texts) succeeds", expected="no error", fix="pass more `texts`, or use fewer topics"):
        distiller.fit(list(train))
    found = distiller.topic_count
    require(
        type(found) is int and found >= 1 and (count is None or found <= count),
        "fit keeps the topic_count set before, lowers it, or sets it",
        found=found,
        expected=f"an int from 1 to {count}" if known else "an int from 1",
        fix="leave topics empty, or raise an error that names the possible number",
    )
    labels, weights = _assigned(distiller, train)
    _check_describe(distiller, train, labels)
    _only_reads(distiller, train, unseen, labels)
    fix = "draw only from `seed`: no global generator, hash() or set order"
    other = build()
    other.fit(list(train))
    again, same_weights = _assigned(other, train)
    require(
        np.array_equal(again, labels) and np.allclose(same_weights, weights, atol=1e-5),
        "the same seed gives the same topics",
        found=f"{int((again != labels).sum())} of {len(train)} reports in another topic",
        expected="equal topics and weights",
        fix=fix,
    )


def _assigned(distiller: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    n, k = len(texts), distiller.topic_count
    rule = "assign returns a topic and weights for any report"
    expected = f"int64 [{n}] from 0 to {k - 1}, and float [{n}, {k}]"
    with runs(rule, expected=expected, fix="return two arrays, also for reports without a known word"):
        labels, weights = distiller.assign(list(texts))
    right = isinstance(labels, np.ndarray) and labels.shape == (n,) and labels.dtype.kind == "i"
    right = right and isinstance(weights, np.ndarray) and weights.shape == (n, k) and weights.dtype.kind == "f"
    found = f"{np.asarray(labels).dtype} {np.shape(labels)}, {np.asarray(weights).dtype} {np.shape(weights)}"
    require(right, rule, found=found, expected=expected, fix="return two numpy arrays")
    inside = labels.min() >= 0 and labels.max() < k
    found = f"{labels.min()} to {labels.max()}"
    require(inside, "topics are numbered from 0", found=found, expected=f"0 to {k - 1}", fix="renumber them")
    sums = weights.sum(1)
    require(
        bool(np.isfinite(weights).all()) and weights.min() >= 0 and np.allclose(sums, 1, atol=1e-4),
        "the weights of a report sum to 1",
        found=f"sums of {sums.min():.3g} to {sums.max():.3g}, the least weight {weights.min():.3g}",
        expected="weights of 0 or more that sum to 1",
        fix="divide each row by its sum",
    )
    strongest = weights.max(1) - weights[np.arange(n), labels]
    require(
        strongest.max() <= 1e-5,
        "the topic of a report has its largest weight",
        found=f"{int((strongest > 1e-5).sum())} reports of another topic",
        expected="weights.argmax(1)",
        fix="return weights.argmax(1) as the topics",
    )
    return labels, weights


def _check_describe(distiller: Any, train: Sequence[str], labels: np.ndarray) -> None:
    count = distiller.topic_count
    cards = distiller.describe()
    right = len(cards) == count and all(isinstance(card, TopicDescription) for card in cards)
    rule, fix = "describe returns a description of every topic", "use framework.topics.quality.describe_topics"
    require(right, rule, found=len(cards), expected=f"{count} TopicDescription, by number", fix=fix)
    sizes = [card.size for card in cards]
    expected = np.bincount(labels, minlength=count).tolist()
    require(
        sizes == expected,
        "the size of a topic is its number of training reports",
        found=sizes,
        expected=expected,
        fix=fix,
    )
    require(
        all(card.example in train for card in cards if card.size),
        "the example of a topic is a training report",
        found=next((card.example for card in cards if card.size and card.example not in train), ""),
        expected="a training report",
        fix=fix,
    )
    positions = distiller.positions(list(train))
    right = np.ndim(positions) == 2 and len(positions) == len(train) and bool(np.isfinite(positions).all())
    found, fix = f"shape {np.shape(positions)}", "return a row for each report"
    require(
        right, "positions returns coordinates of reports", found=found, expected=f"finite [{len(train)}, D]", fix=fix
    )
    quality = distiller.quality()
    right = isinstance(quality, dict) and all(value is None or np.isfinite(value) for value in quality.values())
    fix = "use framework.topics.quality.topic_quality"
    require(right, "quality returns numbers by name", found=quality, expected="{name: number or None}", fix=fix)
    require(
        hasattr(distiller, "space") and isinstance(distiller.space, (ReportSpace, type(None))),
        "`space` is the report space of the topics, or None",
        found=getattr(distiller, "space", "no `space`"),
        expected="a framework.text.lsa.ReportSpace, or None",
        fix="set self.space = None in __init__ if there is none",
    )


def _only_reads(distiller: Any, train: Sequence[str], unseen: Sequence[str], labels: np.ndarray) -> None:
    cards = distiller.describe()
    first, _ = _assigned(distiller, unseen)
    rule = "assign does not change the topics"
    fix = "store counts, scales and centres in fit, and only read them in assign"
    again, _ = _assigned(distiller, train)
    changed = int((again != labels).sum())
    require(changed == 0, rule, found=f"{changed} training reports moved", expected="equal topics", fix=fix)
    require(distiller.describe() == cards, rule, found="other descriptions", expected="equal ones", fix=fix)
    alone = np.concatenate([_assigned(distiller, [text])[0] for text in unseen])
    moved = int((alone != first).sum())
    require(moved == 0, rule, found=f"{moved} reports of another topic alone", expected="equal topics", fix=fix)
