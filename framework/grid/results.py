"""Results of a grid: its cells, and its rows with means over seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class CellResult:
    """One cell."""

    digest: str  # hash of the recipe, and name of the folder
    settings: dict[str, str]  # axis -> label
    seed: int
    status: str  # queued, running, done, failed, stopped or pruned
    run: Path  # run folder, which has report.html once done; it may not exist yet
    scores: dict[str, float] = field(default_factory=dict)  # "test/bleu_4" -> value; empty unless done
    seconds: float | None = None  # of all attempts
    memory_gib: float | None = None  # peak of one process: GPU memory, or host memory without a GPU
    parameters: int | None = None
    error: str | None = None  # one line
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)  # score -> baseline -> value
    collapsed: bool = False  # on test: one report for nearly every exam


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over the seeds that are done."""

    mean: float
    deviation: float | None  # sample standard deviation (n - 1); None for one seed
    count: int  # of seeds


@dataclass(frozen=True)
class Comparison:
    """Difference of a row to the baseline, on the same test exams."""

    difference: float  # of the means over seeds: row minus baseline
    low: float  # 95 % interval of the difference
    high: float
    p: float  # two-sided
    p_corrected: float  # by Holm, over all comparisons of the metric in the table


@dataclass(frozen=True)
class Row:
    """One setting and its seeds."""

    label: str  # "distiller=lda, weight=0.3"
    settings: dict[str, str]
    cells: tuple[CellResult, ...]  # one per seed, with any status
    values: dict[str, Spread | None]  # by metric; None: no seed is done
    versus: dict[str, Comparison | None]  # by metric; None for the baseline and for rows that are not compared
    seconds: Spread | None
    memory_gib: Spread | None
    parameters: int | None

    @property
    def missing(self) -> tuple[CellResult, ...]:
        """Seeds without scores."""
        return tuple(cell for cell in self.cells if cell.status != "done")


@dataclass(frozen=True)
class GridResult:
    name: str
    metrics: tuple[str, ...]  # "test/bleu_4", in the order of the table
    higher_is_better: dict[str, bool]
    axes: dict[str, tuple[str, ...]]  # axis -> labels, in the order of the file
    baseline: str | None  # label of a row
    rows: tuple[Row, ...]
    exams: int | None  # number of exams in the comparisons
    notices: tuple[str, ...] = ()  # missing seeds, rows that are not compared
