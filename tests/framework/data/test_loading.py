"""What makes up a step, and how exams are padded."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from grey_exams import exam, make_cache
from harness import ROOT, problem

from framework.data import loading
from framework.data.loading import BatchPlan, ExamSet, build_loader, collate, epoch_order, lost_workers_reported
from framework.exam import Batch
from framework.runtime.errors import UserError


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
    assert batch.image_BVCHW.amax((2, 3, 4)).tolist() == [[255, 0], [51, 102]]
    scaled = batch.to("cpu").image_BVCHW.amax((2, 3, 4)).tolist()
    assert scaled == [[1.0, 0.0], [pytest.approx(0.2), pytest.approx(0.4)]]
    assert batch.report_BT.tolist() == [[1, 5, 2], [1, 2, 0]]
    assert batch.topic_B is not None and batch.topic_B.tolist() == [3, 0]


BATCHES = [[0, 1], [2, 3], [1, 2]]


def exam_set(folder: Path) -> ExamSet:
    exams = [exam(number, number, 10 * number) for number in range(4)]
    cache, _ = make_cache(exams, folder)
    found = ExamSet(exams, cache, [[1, 2]] * 4, np.arange(4), np.eye(4))
    found.targets = {"findings": np.arange(8, dtype=np.int8).reshape(4, 2), "vectors": np.eye(4, dtype=np.float32)}
    return found


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.map(found.append)
    return found


def same(one: Batch, other: Batch) -> bool:
    assert one.exam_ids == other.exam_ids and one.targets.keys() == other.targets.keys()
    return all(torch.equal(mine, its) for mine, its in zip(tensors_of(one), tensors_of(other), strict=True))


def test_targets_are_those_of_the_exams_of_a_batch(tmp_path: Path) -> None:
    exams = exam_set(tmp_path)
    batch = collate([exams[2], exams[0]]).to("cpu")
    assert batch.targets["findings"].tolist() == [[4, 5], [0, 1]] and batch.targets["findings"].dtype == torch.int8
    assert batch.targets["vectors"].argmax(1).tolist() == [2, 0]
    assert len(tensors_of(batch)) == 7


@pytest.mark.parametrize("has_room", [True, False])
def test_workers_load_the_same_batches_with_and_without_room_in_shared_memory(
    has_room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    if not has_room:
        monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    loading._notice_of_copies.cache_clear()
    exams = exam_set(tmp_path)
    alone, by_workers = build_loader(exams, BATCHES, 0), build_loader(exams, BATCHES, 2)
    assert all(same(one, other) for one, other in zip(alone, by_workers, strict=True))
    assert capsys.readouterr().out.count("No space left") == (0 if has_room else 1)


SMALL = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_loading import *
exams = exam_set(Path(sys.argv[1]))
loading.collate = lambda samples: Batch([], torch.zeros(1_000_000), *(torch.zeros(1) for _ in range(4)))
print(sum(batch.image_BVCHW.numel() for batch in build_loader(exams, BATCHES, 1)))
"""


def test_a_machine_with_64_kib_of_shared_memory_loads_batches_of_4_mb(tmp_path: Path) -> None:
    mount = "mount --make-rprivate / && mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this user cannot mount another /dev/shm")
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", SMALL, str(tmp_path)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path})
    assert done.stdout.endswith("3000000\n") and "No space left" in done.stdout, done.stdout + done.stderr


def test_a_machine_without_locks_between_processes_is_named_before_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exams = exam_set(tmp_path)

    def refuse() -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(multiprocessing, "Lock", refuse)
    assert len(list(build_loader(exams, BATCHES, 0))) == 3
    with problem("no-shared-memory", place="/dev/shm"):
        build_loader(exams, BATCHES, 2)
    with problem("no-shared-memory", place="/dev/shm"):
        make_cache([exam(9, 9)], tmp_path / "other")


# In a process of its own: torch raises wherever the main thread happens to be.
KILLED = f"""
import multiprocessing, os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from framework.data.loading import lost_workers_reported
from framework.runtime.errors import ProcessLost
from test_loading import *
batches = iter(build_loader(exam_set(Path(sys.argv[1])), BATCHES * 50, 2))
next(batches)
try:
    with lost_workers_reported():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        for _ in batches:
            time.sleep(0.1)
except ProcessLost as error:
    print(error)
    sys.exit(4)
"""


def run_script(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    return subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
        capture_output=True,
        text=True,
    )


def test_a_worker_that_is_killed_ends_the_loop_with_one_message(tmp_path: Path) -> None:
    done = run_script(KILLED, tmp_path)
    assert done.returncode == 4 and "a process that loads batches has died" in done.stdout, done
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_that_are_removed_while_a_run_reads_them_end_with_the_same_message_in_a_worker(
    num_workers: int, tmp_path: Path
) -> None:
    exams = exam_set(tmp_path)
    exams.cache.path.unlink()
    with problem("damaged-file", place=str(exams.cache.path)) as found:
        list(build_loader(exams, BATCHES, num_workers))
    assert len(found) == 1


def test_an_error_of_a_worker_leaves_no_worker(tmp_path: Path) -> None:
    exams, before = exam_set(tmp_path), set(multiprocessing.active_children())
    exams.cache.path.unlink()
    with contextlib.suppress(UserError):
        list(build_loader(exams, BATCHES, 1))
    assert set(multiprocessing.active_children()) <= before


STUCK = f"""
import os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from framework.data import loading
from test_loading import *
exams, main = exam_set(Path(sys.argv[1])), os.getpid()
loading.collate = lambda samples: time.sleep(1000) if os.getpid() != main else None
batches = iter(build_loader(exams, BATCHES, 1))
signal.signal(signal.SIGALRM, lambda *_: sys.exit(3))
signal.alarm(1)
next(batches)
"""


@pytest.mark.long  # torch waits 10 s for it first
def test_a_worker_that_does_not_answer_does_not_keep_a_run_from_ending(tmp_path: Path) -> None:
    assert run_script(STUCK, tmp_path).returncode == 3


def test_other_errors_in_the_loop_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), lost_workers_reported():
        raise RuntimeError("shapes do not match")
