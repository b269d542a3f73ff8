"""The scores of a split as people read them: floors first, then the model, then ceilings."""

from __future__ import annotations

from typing import Any

from framework.runtime.console import print0

Scores = dict[str, dict[str, Any]]  # numbers by name; of WITHOUT, texts

LOW, HIGH = "model_low", "model_high"  # ends of the intervals of the model's scores
WITHOUT = "model_without_interval"  # why some of them have none
ORDER = (
    "random_report", "fixed_report", "nearest_image", "model", LOW, "model_on_unseen_reports",
    "topic_oracle", "retrieval_oracle", "rewording",
)  # fmt: skip
MEANING = {
    "random_report": "floor: a training report at random",
    "fixed_report": "floor: the best single report",
    "nearest_image": "floor: report of the nearest image",
    "model": "the model",
    LOW: "its 95 % interval",
    "model_on_unseen_reports": "the model, reports not in training",
    "topic_oracle": "ceiling: best report of the true topic",
    "retrieval_oracle": "ceiling: nearest training report",
    "rewording": "ceiling: the truth, other words",
}


def score_table(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """Header and rows for people: floors, the model, ceilings; one column a metric (attributes stay in scores.json)."""
    columns = [name for name in scores["model"] if "/" not in name and name not in ("bleu_2", "bleu_3", "exams")]
    rows = []
    for name in ORDER:
        if name == LOW and name in scores:
            rows.append([MEANING[name], "", *(_interval(scores, column) for column in columns)])
        elif name in scores:
            values = [f"{scores[name][column]:.3f}" for column in columns]
            rows.append([MEANING[name], str(int(scores[name]["exams"])), *values])
    return ["reports from", "exams", *columns], rows


def _interval(scores: Scores, column: str) -> str:
    if column not in scores[LOW]:
        return "-"
    return f"[{scores[LOW][column]:.3f}, {scores[HIGH][column]:.3f}]"


def legend(scores: Scores) -> str:
    """What must be known of the intervals; empty where none was asked for."""
    parts = ["95 % interval: over other patients, drawn with replacement with all their exams"] if LOW in scores else []
    names: dict[str, list[str]] = {}
    for name in score_table(scores)[0][2:]:
        if name in scores.get(WITHOUT, {}):
            names.setdefault(scores[WITHOUT][name], []).append(name)
    parts += [f"no interval of {', '.join(found)}: {reason}" for reason, found in names.items()]
    return "; ".join(parts)


def print_scores(split: str, scores: Scores, segmentation: str) -> None:
    header, rows = score_table(scores)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print0(f"\nScores on {split} (words: {segmentation})")
    for row in [header, *rows]:
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        print0("  " + "  ".join(cells))
    if text := legend(scores):
        print0(f"  {text}")
