"""Table of the scores of a split: baselines first, then the model, then oracles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from framework.runtime.console import print0, print_table
from framework.scoring.variety import describe_variety

Scores = dict[str, dict[str, Any]]  # row -> score -> number; in the row NO_INTERVAL, texts

LOW, HIGH = "model_low", "model_high"  # ends of the confidence intervals of the model's scores
NO_INTERVAL = "model_without_interval"  # score -> why it has no interval
CONSTANTS = "fixed_reports"  # score -> the constant report that is best on validation
VARIETY = "variety"  # see variety_summary
CONFIDENCE = "confidence"  # how much the confidence of findings is worth, see evaluation/confidence.py
VERSUS = "versus_strongest_baseline"  # score -> strongest baseline, paired difference and its interval
NOT_SCORES = ("exams", "different_reports", "most_frequent_share")  # of a row
BASELINES = ("random_report", "fixed_report", "frequent_reports", "nearest_image")  # reports without the model
LABELS = {  # in the order of the table
    "random_report": "baseline: random report",
    "fixed_report": "baseline: best single report",
    "frequent_reports": "baseline: frequent reports",
    "nearest_image": "baseline: nearest image",
    "model": "the model",
    LOW: "its 95 % interval",
    "model_on_unseen_reports": "the model, new reports",
    "topic_oracle": "oracle: best of the topic",
    "retrieval_oracle": "oracle: nearest report",
    "rewording": "oracle: other words",
}
SHORT = {name: label.partition(": ")[2] for name, label in LABELS.items()}
PRINTED = ("bleu_4", "rouge_l", "cider", "findings_f1")  # in a terminal of 100 columns; the page has all scores


def table_columns(scores: Scores) -> list[str]:
    """Scores in the table: not those of single attributes (`a/b`), nor BLEU-2 and BLEU-3."""
    hidden = ("bleu_2", "bleu_3", *NOT_SCORES)
    return [name for name in scores["model"] if "/" not in name and name not in hidden]


def score_table(scores: Scores, only: Sequence[str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows: exams, different reports among the predictions, and one column per score.

    Args:
        only: the columns, if the scores are there; None is all.
    """
    columns = [name for name in table_columns(scores) if only is None or name in only]
    rows = []
    for name, label in LABELS.items():
        if name == LOW and name in scores:
            rows.append([label, "", "", *(_interval(scores, column) for column in columns)])
        elif name in scores:
            different = scores[name].get("different_reports")
            values = [f"{scores[name][column]:.3f}" if column in scores[name] else "-" for column in columns]
            rows.append([label, str(int(scores[name]["exams"])), "-" if different is None else str(different), *values])
    return ["reports from", "exams", "different", *columns], rows


def _interval(scores: Scores, column: str) -> str:
    if column not in scores[LOW]:
        return "-"
    return f"[{scores[LOW][column]:.3f}, {scores[HIGH][column]:.3f}]"


def legend(scores: Scores) -> str:
    """How the intervals were made, and why some scores have none; empty if there are no intervals."""
    parts = ["95 % interval: bootstrap over patients, each with all their exams"] if LOW in scores else []
    names: dict[str, list[str]] = {}  # by reason
    for name in table_columns(scores):
        if name in scores.get(NO_INTERVAL, {}):
            names.setdefault(scores[NO_INTERVAL][name], []).append(name)
    parts += [f"no interval of {', '.join(group)}: {reason}" for reason, group in names.items()]
    return "; ".join(parts)


def verdict(scores: Scores) -> list[str]:
    """The scores for which the model is better than the strongest baseline, and by how much.

    Better means that the 95 % interval of the paired difference excludes 0.
    """
    versus = {name: row for name, row in scores.get(VERSUS, {}).items() if "better" in row}
    if not versus:
        return []
    better = [name for name, row in versus.items() if row["better"]]
    if not better and not any(row["better_than_fixed"] for row in versus.values()):
        head = "The model is no better than a fixed report in any score"
    elif not better:
        head = "The model is better than every baseline in no score"
    else:
        head = f"The model is better than every baseline in {', '.join(better)}"
    rows = [
        f"{name} {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] to {SHORT[row['baseline']]}"
        for name, row in versus.items()
    ]
    return [f"{head}. Difference to the strongest baseline, 95 % interval:", *(f"  {row}" for row in rows)]


def describe_reports(scores: Scores) -> list[str]:
    """How varied the model's reports are, and how many references it may have seen in training."""
    lines = describe_variety(scores[VARIETY]) if VARIETY in scores else []
    exams = int(scores["model"]["exams"])
    repeated = exams - int(scores.get("model_on_unseen_reports", {"exams": 0})["exams"])
    if VARIETY in scores and CONSTANTS in scores and repeated:  # there are training reports to compare with
        lines.append(f"{repeated} of the {exams} references occur word for word in training.")
    return lines


def print_scores(split: str, scores: Scores, segmentation: str) -> None:
    """Prints the table from the main process, what the model writes, and what it is better than."""
    print0(f"\nScores on {split} ({segmentation})")
    printed = [name for name in table_columns(scores) if name in PRINTED] or table_columns(scores)[:4]
    (label, _, different, *names), rows = score_table(scores, printed)
    # Without the brackets of intervals, and the number of exams in no column of its own: 100 columns hold no more.
    narrow = [
        [row[0], f"{row[2]} of {row[1]}" if row[1] else "", *(value.strip("[]") for value in row[3:])] for row in rows
    ]
    print_table([label, different, *names], narrow, numeric=True)
    if text := legend(scores):
        print0(text)
    if lines := [*describe_reports(scores), *verdict(scores)]:
        print0("\n".join(lines))
