"""How many different reports a model writes: a model that collapses writes one report for nearly every exam."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from framework.scoring.scorer import Rows, Scorer

# A model is repetitive if its most frequent report is this share of all, and this many times as frequent as that of the
# references; it has collapsed if it writes hardly anything else.
SHARE, TIMES, COLLAPSED = 0.3, 2.0, 0.8


def variety(texts: Sequence[str]) -> dict[str, float]:
    """Number of different texts, and the share of the most frequent one."""
    counts = Counter(texts)
    return {"different_reports": len(counts), "most_frequent_share": round(max(counts.values()) / len(texts), 6)}


def variety_summary(scorer: Scorer, rows: Rows) -> dict[str, Any]:
    """Variety of predictions and references, attributes that no prediction states, and whether the model collapsed."""
    model, references = variety([row[1] for row in rows]), variety([row[2] for row in rows])
    never = [
        name
        for metric, pairs, suffix in scorer.metric_inputs(rows)
        if not suffix and hasattr(metric, "never_stated")
        for name in metric.never_stated(pairs)
    ]
    share, expected = model["most_frequent_share"], references["most_frequent_share"]
    repetitive = share >= SHARE and share >= TIMES * expected
    return {
        "exams": len(rows),
        "model": model,
        "references": references,
        "never_stated": never,
        "repetitive": repetitive,
        "collapsed": repetitive and share >= COLLAPSED,
    }


def describe_variety(summary: dict[str, Any]) -> list[str]:
    """Lines to print: what the model writes, and a warning if it collapses."""
    model, references, exams = summary["model"], summary["references"], summary["exams"]
    lines = [f"The model writes {_count(model, exams)}; the references are {_count(references, exams)}."]
    if summary["never_stated"]:
        lines.append(f"The model never states: {', '.join(summary['never_stated'])}.")
    share, expected = (100 * found["most_frequent_share"] for found in (model, references))
    if summary["collapsed"]:
        lines.append(f"Warning: the model has collapsed: {share:.0f} % of the exams get the same report.")
    elif summary["repetitive"]:
        lines.append(
            f"Warning: {share:.0f} % of the exams get the same report; the most frequent reference has "
            f"{expected:.0f} %."
        )
    return lines


def _count(found: dict[str, float], exams: int) -> str:
    if found["different_reports"] == 1:
        return f"one report for all {exams} exams"
    times = round(found["most_frequent_share"] * exams)
    return f"{found['different_reports']:.0f} different reports for {exams} exams, the most frequent one {times} times"
