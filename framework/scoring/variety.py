"""How many different reports a model writes: a model that collapses writes one report for nearly every exam."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from framework.scoring.scorer import Rows, Scorer

# A model collapses if its most frequent report is this share of all, and this many times as frequent as that of the
# references.
SHARE, TIMES = 0.3, 2.0


def variety(texts: Sequence[str]) -> dict[str, float]:
    """Number of different texts, and the share of the most frequent one."""
    counts = Counter(texts)
    return {"different_reports": len(counts), "most_frequent_share": round(max(counts.values()) / len(texts), 6)}


def variety_summary(scorer: Scorer, rows: Rows) -> dict[str, Any]:
    """Variety of predictions and references, attributes that no prediction states, and whether the model collapses."""
    model, references = variety([row[1] for row in rows]), variety([row[2] for row in rows])
    never = [
        name
        for metric, pairs, suffix in scorer.metric_inputs(rows)
        if not suffix and hasattr(metric, "never_stated")
        for name in metric.never_stated(pairs)
    ]
    share, expected = model["most_frequent_share"], references["most_frequent_share"]
    return {
        "exams": len(rows),
        "model": model,
        "references": references,
        "never_stated": never,
        "collapsed": share >= SHARE and share >= TIMES * expected,
    }


def describe_variety(summary: dict[str, Any]) -> list[str]:
    """Lines to print: what the model writes, and a warning if it collapses."""
    model, references, exams = summary["model"], summary["references"], summary["exams"]
    times = round(model["most_frequent_share"] * exams)
    what = f"{model['different_reports']} different reports for {exams} exams, the most frequent one {times} times"
    if model["different_reports"] == 1:
        what = f"one report for all {exams} exams"
    expected = f"{references['different_reports']} and {round(references['most_frequent_share'] * exams)}"
    lines = [f"the model writes {what} (references: {expected})"]
    if summary["never_stated"]:
        lines.append(f"the model never states: {', '.join(summary['never_stated'])}")
    if summary["collapsed"]:
        lines.append(
            f"warning: the model has collapsed: {100 * model['most_frequent_share']:.0f} % of the exams get the same "
            "report"
        )
    return lines
