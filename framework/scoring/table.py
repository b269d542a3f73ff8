"""Table of the scores of a split: baselines first, then the model, then oracles."""

from __future__ import annotations

from typing import Any

from framework.runtime.console import print0, print_table

Scores = dict[str, dict[str, Any]]  # row -> score -> number; in the row NO_INTERVAL, texts

LOW, HIGH = "model_low", "model_high"  # ends of the confidence intervals of the model's scores
NO_INTERVAL = "model_without_interval"  # score -> why it has no interval
LABELS = {  # in the order of the table
    "random_report": "baseline: random training report",
    "fixed_report": "baseline: the best single report",
    "nearest_image": "baseline: report of the nearest image",
    "model": "the model",
    LOW: "its 95 % interval",
    "model_on_unseen_reports": "the model, reports not in training",
    "topic_oracle": "oracle: best report of the true topic",
    "retrieval_oracle": "oracle: nearest training report by TF-IDF",
    "rewording": "oracle: the reference in other words",
}


def score_table(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one column per score; scores of single attributes (`a/b`) are left out."""
    columns = [name for name in scores["model"] if "/" not in name and name not in ("bleu_2", "bleu_3", "exams")]
    rows = []
    for name, label in LABELS.items():
        if name == LOW and name in scores:
            rows.append([label, "", *(_interval(scores, column) for column in columns)])
        elif name in scores:
            values = [f"{scores[name][column]:.3f}" for column in columns]
            rows.append([label, str(int(scores[name]["exams"])), *values])
    return ["reports from", "exams", *columns], rows


def _interval(scores: Scores, column: str) -> str:
    if column not in scores[LOW]:
        return "-"
    return f"[{scores[LOW][column]:.3f}, {scores[HIGH][column]:.3f}]"


def legend(scores: Scores) -> str:
    """How the intervals were made, and why some scores have none; empty if there are no intervals."""
    parts = ["95 % interval: bootstrap over patients, each with all their exams"] if LOW in scores else []
    names: dict[str, list[str]] = {}  # by reason
    for name in score_table(scores)[0][2:]:
        if name in scores.get(NO_INTERVAL, {}):
            names.setdefault(scores[NO_INTERVAL][name], []).append(name)
    parts += [f"no interval of {', '.join(group)}: {reason}" for reason, group in names.items()]
    return "; ".join(parts)


def print_scores(split: str, scores: Scores, segmentation: str) -> None:
    """Prints the table from the main process."""
    print0(f"\nScores on {split} (words: {segmentation})")
    print_table(*score_table(scores), numeric=True)
    if text := legend(scores):
        print0(text)
