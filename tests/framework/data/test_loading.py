"""What makes up a step, and how exams are padded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from grey_exams import exam, make_cache
from harness import problem

from framework.data.loading import BatchPlan, ExamSet, collate, epoch_order


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2, None])
def test_a_step_has_the_same_exams_for_any_micro_batch_size_and_number_of_processes(
    processes: int, micro: int | None
) -> None:
    whole = BatchPlan.plan(8, None, 0, 1).epoch(37, seed=5, epoch=2)
    cut = [BatchPlan.plan(8, micro, rank, processes) for rank in range(processes)]
    per_rank = [batch_plan.epoch(37, seed=5, epoch=2) for batch_plan in cut]
    accumulation = cut[0].accumulation
    for step, exams in enumerate(whole):
        together = [
            number
            for rank in per_rank
            for batch in rank[step * accumulation : (step + 1) * accumulation]
            for number in batch
        ]
        assert together == exams
    assert len(per_rank[0]) == len(whole) * accumulation == 4 * accumulation


def test_a_resumed_epoch_continues_with_the_next_batch() -> None:
    batch_plan = BatchPlan.plan(4, 2, 0, 1)
    assert batch_plan.epoch(20, 1, 3, done=2) == batch_plan.epoch(20, 1, 3)[4:]


def test_the_order_differs_between_epochs_and_seeds_and_covers_every_exam() -> None:
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_sizes_that_do_not_divide_name_the_nearest() -> None:
    for arguments, fits in (((10, 4, 0, 2), "8 or 16"), ((7, None, 0, 2), "6 or 8"), ((1, None, 0, 2), "2")):
        with problem("does-not-divide", "train.batch_size") as found:
            BatchPlan.plan(*arguments)
        assert found[0].expected == fits


def test_views_and_reports_are_padded(tmp_path: Path) -> None:
    exams = [exam(1, 255), exam(2, 51, 102)]
    cache, problems = make_cache(exams, tmp_path)
    data = ExamSet(exams, cache, [[1, 5, 2], [1, 2]], np.array([3, 0]))
    batch = collate([data[0], data[1]])
    assert not problems
    assert batch.view_mask_BV.tolist() == [[True, False], [True, True]]
    assert batch.image_BVCHW.amax((2, 3, 4)).tolist() == [[1.0, 0.0], [pytest.approx(0.2), pytest.approx(0.4)]]
    assert batch.report_BT.tolist() == [[1, 5, 2], [1, 2, 0]]
    assert batch.topic_B is not None and batch.topic_B.tolist() == [3, 0]
