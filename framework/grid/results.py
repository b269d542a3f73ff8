"""What a grid came to: its cells as they stand on the disk, and its rows over seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class CellResult:
    """One cell as it stands."""

    digest: str  # hash of what its recipe computes; names its folder
    settings: dict[str, str]  # axis -> label of its value there
    seed: int
    status: str  # queued, running, done, failed, stopped or pruned
    run: Path  # the run's folder, which has report.html when done; it may not exist yet
    scores: dict[str, float] = field(default_factory=dict)  # "test/bleu_4" -> value; empty unless done
    seconds: float | None = None  # from its start to its end, over all attempts
    memory_gib: float | None = None  # the most that one process held: on the GPU, or else of the host
    parameters: int | None = None
    error: str | None = None  # what went wrong, in a line


@dataclass(frozen=True)
class Spread:
    """A value over the seeds that are done."""

    mean: float
    deviation: float | None  # sample standard deviation (n - 1); None of a single seed
    count: int  # seeds that are in it


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline, over the same test exams."""

    difference: float  # of the means over seeds: this row minus the baseline
    low: float  # 95 % interval of the difference
    high: float
    p: float  # two-sided
    p_corrected: float  # by Holm, over all comparisons of this metric in the table


@dataclass(frozen=True)
class Row:
    """One setting, over its seeds."""

    label: str  # "distiller=lda, weight=0.3"
    settings: dict[str, str]
    cells: tuple[CellResult, ...]  # one a seed, whatever their status
    values: dict[str, Spread | None]  # by metric; None: no seed is done
    versus: dict[str, Comparison | None]  # by metric; None: the baseline itself, or nothing to compare
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
    exams: int | None  # that the comparisons are over
    notices: tuple[str, ...] = ()  # what a reader must know: seeds that are missing, rows that do not compare
