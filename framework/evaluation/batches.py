"""Batches of a split, divided over the processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from accelerate import Accelerator

from framework.data.loading import ExamSet, build_loader
from framework.exam import Batch
from framework.recipe import Recipe
from framework.runtime.live import ProgressBar


def shard_indices(exams: int, processes: int) -> list[list[int]]:
    """The exam indices of each process: every n-th, so that no exam is padded or repeated."""
    return [list(range(rank, exams, processes)) for rank in range(processes)]


def split_batches(indices: Sequence[int], size: int) -> list[list[int]]:
    """Exam indices in batches; the last one may be smaller."""
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def batches_of_process(
    accelerator: Accelerator,
    exams: ExamSet,
    recipe: Recipe,
    of_processes: Sequence[Sequence[Sequence[int]]],
    text: str | None,
    before_batch: Callable[[], None] | None,
) -> Iterator[Batch]:
    """The batches of this process.

    Args:
        of_processes: for each process, the exam indices of its batches; the first process has most batches.
        text: beside the progress bar; None shows none.
        before_batch: called before each batch, equally often on every process, even if a process has no batch left.
    """
    loader = iter(build_loader(exams, of_processes[accelerator.process_index], recipe.data.num_workers))
    rounds: Iterable[int] = range(len(of_processes[0]))
    if text is not None:
        rounds = ProgressBar(rounds, total=len(of_processes[0]), text=text)
    for _ in rounds:
        if before_batch is not None:
            before_batch()
        if (batch := next(loader, None)) is not None:
            yield batch
