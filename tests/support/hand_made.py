"""Results of grids put together by hand, for the tests of what people look at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from framework.grid.results import CellResult, Comparison, GridResult, Row, Spread

BLEU, LOSS = "test/bleu_4", "test/perplexity"


def spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def cell(
    run: Path,
    seed: int,
    settings: Mapping[str, str],
    bleu: float | None = None,
    *,
    status: str = "done",
    error: str | None = None,
    seconds: float = 600.0,
    parameters: int = 2_500_000,
) -> CellResult:
    """A cell with a BLEU-4 and a perplexity that falls as it rises; without a BLEU-4 it has no scores."""
    scores = {} if bleu is None else {BLEU: bleu, LOSS: 10 - 10 * bleu}
    known = status == "done"
    return CellResult(
        digest=hashlib.sha256(str(run).encode()).hexdigest()[:12],
        settings=dict(settings),
        seed=seed,
        status=status,
        run=run,
        scores=scores,
        seconds=seconds if known else None,
        memory_gib=1.25 if known else None,
        parameters=parameters if known else None,
        error=error,
    )


def row(
    label: str,
    settings: Mapping[str, str],
    cells: Sequence[CellResult],
    versus: Mapping[str, Comparison | None] | None = None,
    metrics: Sequence[str] = (BLEU, LOSS),
) -> Row:
    """A row whose means are those of its cells."""
    done = [c for c in cells if c.status == "done"]
    return Row(
        label=label,
        settings=dict(settings),
        cells=tuple(cells),
        values={m: spread([c.scores[m] for c in done if m in c.scores]) for m in metrics},
        versus=dict(versus) if versus is not None else dict.fromkeys(metrics),
        seconds=spread([c.seconds for c in done if c.seconds is not None]),
        memory_gib=spread([c.memory_gib for c in done if c.memory_gib is not None]),
        parameters=next((c.parameters for c in done), None),
    )


def result(rows: Sequence[Row], axes: Mapping[str, Sequence[str]], **others: object) -> GridResult:
    """A grid over BLEU-4 (higher is better) and perplexity (lower is better)."""
    values: dict[str, object] = {
        "name": "breast_ablation",
        "metrics": (BLEU, LOSS),
        "higher_is_better": {BLEU: True, LOSS: False},
        "axes": {axis: tuple(labels) for axis, labels in axes.items()},
        "baseline": rows[0].label if rows else None,
        "rows": tuple(rows),
        "exams": 40,
    }
    return GridResult(**{**values, **others})  # type: ignore[arg-type]


def write_curve(run: Path, name: str, points: Sequence[tuple[int, float]]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step, value in points:
            file.write(json.dumps({"step": step, "name": name, "value": value}) + "\n")


def two_axes(home: Path) -> GridResult:
    """Two topic makers by two weights, three seeds; one cell of the last row failed, and one is queued."""
    rows = []
    level = {("none", "0"): 0.28, ("none", "0.3"): 0.29, ("lda", "0"): 0.31, ("lda", "0.3"): 0.33}
    for (distiller, weight), middle in level.items():
        settings = {"distiller": distiller, "losses.global_semantic.weight": weight}
        label = f"distiller={distiller}, weight={weight}"
        cells = [
            cell(home / f"{distiller}{weight}-{seed}", seed, settings, middle + 0.004 * (seed - 2))
            for seed in (1, 2, 3)
        ]
        if (distiller, weight) == ("lda", "0.3"):
            cells[1] = cell(cells[1].run, 2, settings, status="failed", error="CUDA out of memory")
            cells[2] = cell(cells[2].run, 3, settings, status="queued")
        gain = middle - 0.28
        p = 0.012 if gain > 0.04 else 0.6
        versus = {
            BLEU: Comparison(gain, gain - 0.012, gain + 0.012, p / 3, p),
            LOSS: Comparison(-10 * gain, -10 * gain - 0.1, -10 * gain + 0.1, 0.2, 0.2),
        }
        rows.append(row(label, settings, cells, versus if rows else None))
    return result(rows, {"distiller": ["none", "lda"], "losses.global_semantic.weight": ["0", "0.3"]})
