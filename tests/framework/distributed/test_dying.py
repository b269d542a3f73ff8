"""Long runs are killed, fill the disk, meet NaN, run out of memory, and lose a process or wait for one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from harness import free_port, launch, records
from running import Running, newest_is_whole, nothing_is_left_over, same_run, waiting_recipe
from small_disk import fill, small_disk

from framework.build import build_dataset
from framework.checkpoint.format import SavedState, checkpoints_of, verify_checkpoint
from framework.data.loading import epoch_order
from framework.recipe import load_recipe
from framework.runtime.errors import LOST, USER_ERROR
from framework.runtime.files import read_lines


@pytest.fixture(scope="module")
def recipe(work: Path) -> str:
    return waiting_recipe(work)


@pytest.fixture(scope="module")
def runs(work: Path) -> Path:
    return work / "runs" / "waiting"


@pytest.fixture(scope="module")
def undisturbed(recipe: str, work: Path, runs: Path) -> Path:
    """A run on two processes that nothing happens to."""
    launch(recipe, "run.name=undisturbed", cwd=work, processes=2)
    return runs / "undisturbed"


# Killed


@pytest.mark.long
def test_a_run_that_is_killed_many_times_while_saving_equals_an_uninterrupted_run(
    recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    large = ["model.decoder.width=256", "model.decoder.feedforward=1024", "checkpoint.every_steps=1", "train.epochs=4"]
    launch(recipe, "run.name=not_killed", *large, cwd=work)
    run, words = runs / "killed", [recipe, "run.name=killed", "resume=auto", *large]
    delays, unfinished, kills = random.Random(9233), 0, 0
    while kills < 4 or (not unfinished and kills < 20):  # ten at once: test_saver.py
        before = max((path.name for path in checkpoints_of(run / "checkpoints")[:1]), default="none")
        with Running(*words, cwd=work, scratch=tmp_path / f"{kills}") as started:
            while not list((run / "checkpoints").glob("step-*")) or newest_name(run) == before:
                assert started.process.poll() is None, started.text
                time.sleep(0.01)
            time.sleep(delays.uniform(0, 0.3))
            started.process.kill()
            started.end(-signal.SIGKILL)
        kills += 1
        unfinished += bool(list((run / "checkpoints").glob(".*.part")))
        newest = checkpoints_of(run / "checkpoints")[0]
        assert verify_checkpoint(newest) is None
    assert unfinished, f"none of {kills} kills interrupted a save"
    done = launch(*words, cwd=work)
    assert "resumed from" in done.stdout
    nothing_is_left_over(run)
    same_run(run, runs / "not_killed")


def newest_name(run: Path) -> str:
    return checkpoints_of(run / "checkpoints")[0].name


# A full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "24m") as folder:
        yield folder


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_ends_the_run_with_complete_checkpoints_and_it_resumes(
    processes: int, recipe: str, work: Path, disk: Path, tmp_path: Path
) -> None:
    run = disk / "waiting" / "full"
    words = [recipe, "run.name=full", f"run.root={disk}", "resume=auto", "checkpoint.every_steps=4"]
    by = "python" if processes == 1 else "torchrun"
    with Running(*words, cwd=work, scratch=tmp_path / "a", processes=processes, by=by, wait="train:10") as started:
        for rank in range(processes):
            started.until("waits", rank)
        until_saved(run, 8)  # in the background
        ballast = fill(disk, left=400_000)
        started.go()
        text = started.end(USER_ERROR if processes == 1 else None)
    assert started.process.returncode != 0
    assert "[cannot-write]" in text and "No space left on device" in text and "resume=auto" in text, text
    assert "most recent call last" not in text.split("torch/distributed/elastic")[0]
    newest_is_whole(run, 8)
    ballast.unlink()
    done = launch(*words, cwd=work, processes=processes)
    assert f"resumed from {run / 'checkpoints' / 'step-8'}" in done.stdout
    assert len(records(run, "train/loss")) == 16
    nothing_is_left_over(run)


def until_saved(run: Path, step: int, seconds: float = 60.0) -> None:
    """Returns when the newest checkpoint is of this step."""
    latest, ends = run / "checkpoints" / "latest", time.monotonic() + seconds
    while not (latest.is_file() and latest.read_text().strip() == f"step-{step}"):
        assert time.monotonic() < ends, f"no checkpoint of step {step} in {seconds:.0f} s"
        time.sleep(0.02)
    newest_is_whole(run, step)


# Losses and gradients that are not finite


def exams_of_step(recipe: str, step: int) -> set[str]:
    """Ids of the exams of a step of the first epoch."""
    loaded = load_recipe(recipe)
    exams = [exam.id for exam in build_dataset(loaded).splits()["train"]]
    size = loaded.train.batch_size
    order = epoch_order(len(exams), loaded.train.seed, 0)[(step - 1) * size : step * size]
    return {exams[place] for place in order}


def bad_steps(run: Path) -> list[dict]:
    return [json.loads(line) for line in read_lines(run / "non_finite.jsonl")]


def untouched(run: Path, step: int) -> None:
    """The step changed no weight and no optimizer state."""
    before, after = (SavedState(run / "checkpoints" / f"step-{number}") for number in (step - 1, step))
    assert set(before) == set(after) and any(name.startswith("optimizer/") for name in after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_non_finite_steps_are_skipped_and_too_many_stop_the_run(recipe: str, runs: Path, work: Path) -> None:
    run = runs / "non_finite"
    done = launch(
        recipe, f"run.name={run.name}", "train.skip_non_finite=1", "checkpoint.every_steps=1",
        "checkpoint.keep_last=99", "train.ema_decay=0.9", cwd=work, environment={"BREAK": "gradient:3,loss:6"},
        check=False,
    )  # fmt: skip
    assert done.returncode == USER_ERROR and "Traceback" not in done.stderr
    assert "warning: step 3: " in done.stdout
    assert "step 6: " in done.stderr and "[non-finite]" in done.stderr
    gradient, loss = bad_steps(run)
    assert (gradient["step"], loss["step"]) == (3, 6) and gradient["loss"] > 0
    assert math.isnan(loss["terms"]["breaking"]) and loss["terms"]["next_token"] > 0
    for row in (gradient, loss):
        assert set(row["exams"]) == exams_of_step(recipe, row["step"]) and len(row["exams"]) == 8
    assert any(exam in done.stderr for exam in loss["exams"])
    untouched(run, 3)


@pytest.mark.long
@pytest.mark.parametrize(("strategy", "processes"), [("ddp", 1), ("ddp", 2), ("zero2", 2), ("zero3", 2), ("fsdp", 2)])
def test_every_strategy_skips_and_counts_non_finite_steps(
    strategy: str, processes: int, recipe: str, runs: Path, work: Path
) -> None:
    run = runs / f"skips_{strategy}_{processes}"
    done = launch(
        recipe, f"run.name={run.name}", f"distributed.strategy={strategy}", "train.skip_non_finite=2", "train.epochs=1",
        "checkpoint.every_steps=1", "checkpoint.keep_last=99", "train.ema_decay=0.9", cwd=work, processes=processes,
        environment={"BREAK": "loss:3,gradient:6", "BREAK_RANK": str(processes - 1)},
    )  # fmt: skip
    assert "warning: step 3: " in done.stdout and "(2 of at most 2)" in done.stdout
    assert "epoch 1/1  loss " in done.stdout and "loss nan" not in done.stdout
    assert [row["step"] for row in bad_steps(run)] == [3, 6]
    assert all(set(row["exams"]) == exams_of_step(recipe, row["step"]) for row in bad_steps(run))
    assert bad_steps(run)[1]["loss"] > 0, "the gradient alone"
    for step in (3, 6):
        untouched(run, step)
    state = json.loads((run / "checkpoints" / "step-8" / "trainer.json").read_text())
    assert (state["step"], state["skipped_steps"]) == (8, 2)
    losses = list(records(run, "train/loss").values())
    assert len(losses) == 8 and losses[-1] < losses[0]


@pytest.mark.long
def test_more_non_finite_steps_than_allowed_stop_all_processes(recipe: str, runs: Path, work: Path) -> None:
    run = runs / "too_many"
    done = launch(
        recipe, f"run.name={run.name}", "train.skip_non_finite=1", cwd=work,
        processes=2, environment={"BREAK": "loss:2,gradient:5", "BREAK_RANK": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "step 5: " in done.stderr and "[non-finite]" in done.stderr
    assert [row["step"] for row in bad_steps(run)] == [2, 5]


# Out of memory


@pytest.mark.long
def test_a_step_out_of_memory_names_the_next_smaller_size(recipe: str, runs: Path, work: Path) -> None:
    words, fits = [recipe, "train.epochs=1"], {"FITS": "4"}
    done = launch(*words, "run.name=too_large", cwd=work, environment=fits, check=False)
    assert done.returncode == USER_ERROR and "Traceback" not in done.stderr
    assert "step 1: " in done.stderr and "[out-of-memory]" in done.stderr
    named = next(word for word in done.stderr.split() if word.startswith("train.micro_batch_size="))
    assert named == "train.micro_batch_size=4"
    launch(*words, "run.name=fits", named, cwd=work, environment=fits)
    assert len(records(runs / "fits", "train/loss")) == 8


# A process that dies


@pytest.mark.long
@pytest.mark.parametrize(("by", "rank"), [("torchrun", 1), ("torchrun", 0), ("accelerate", 1)])
def test_a_run_whose_process_is_killed_and_restarted_equals_an_uninterrupted_run(
    by: str, rank: int, undisturbed: Path, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    root = work / f"restarted-{by}-{rank}"
    with Running(
        recipe, f"run.root={root}", "checkpoint.every_steps=3", cwd=work, scratch=tmp_path / "a", processes=2, by=by,
        flags=("--max_restarts", "1"), wait="train:12", WAIT_RANK=str(rank),
    ) as started:  # fmt: skip
        pid = started.until("waits", rank)
        os.kill(pid, signal.SIGKILL)
        text = started.end(0)
    [run] = (root / "waiting").iterdir()  # the same folder, named after the time of the first start
    assert f"attempt 2 of this launch: resuming {run}" in text
    assert "resumed from" in text and "step 9 of 16" in text
    nothing_is_left_over(run)
    same_run(run, undisturbed)


def test_the_surviving_process_names_the_cause_and_ends_with_the_exit_code_of_a_lost_process(
    recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    """Started without a launcher, which has another exit code."""
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    with contextlib.ExitStack() as both:
        first, second = (
            both.enter_context(
                Running(
                    recipe,
                    "run.name=lost",
                    cwd=work,
                    scratch=tmp_path / rank,
                    wait="train:12",
                    WAIT_RANK="1",
                    RANK=rank,
                    LOCAL_RANK=rank,
                    **environment,
                )
            )
            for rank in ("0", "1")
        )
        os.kill(second.until("waits", 1), signal.SIGKILL)
        second.end(-signal.SIGKILL)
        text = first.end(LOST, seconds=60)
    assert "waited for the other processes at step 12" in text and "resume=auto" in text, text
    newest_is_whole(runs / "lost", 8)


@pytest.mark.long
def test_the_run_of_a_lost_process_resumes(
    undisturbed: Path, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    run, words = runs / "lost_and_found", [recipe, "run.name=lost_and_found", "resume=auto"]
    with Running(
        *words, cwd=work, scratch=tmp_path / "a", processes=2, by="torchrun", wait="eval:2", WAIT_RANK="0"
    ) as started:
        os.kill(started.until("waits", 0), signal.SIGKILL)  # the main process, in the first validation
        started.end(1, seconds=90)
    launch(*words, cwd=work, processes=2)
    same_run(run, undisturbed)


# A process that hangs


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_is_named_by_the_other_before_the_timeout(
    rank: int, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    words = [recipe, f"run.name=frozen_{rank}", "distributed.timeout=1"]
    with Running(
        *words, cwd=work, scratch=tmp_path / "a", processes=2, by="torchrun", wait="train:12", WAIT_RANK=str(rank)
    ) as started:
        pid = started.until("waits", rank)
        time.sleep(3)  # until it has published where it is, every two seconds
        os.kill(pid, signal.SIGSTOP)
        host = os.uname().nodename
        started.until(f"rank {rank} (host {host}, pid {pid}) does not answer for", seconds=50)
        assert "waited for the other processes at" not in started.text, "named too late"
        started.until(f"rank {1 - rank}: waited for the other processes at step 12", seconds=60)
        psutil.Process(pid).kill()  # the launcher would wait half a minute for it
        text = started.end(1, seconds=60)
    assert "The run ends after 1 minutes of waiting (distributed.timeout)" in text
    assert "last at step 12" in text
    newest_is_whole(runs / f"frozen_{rank}", 8)


@pytest.mark.long
@pytest.mark.parametrize("wait", ["train:12", "eval:1"])
def test_a_process_that_hangs_prints_its_stack(wait: str, recipe: str, runs: Path, work: Path, tmp_path: Path) -> None:
    words = [recipe, f"run.name=stuck_{wait[:4]}", "distributed.timeout=1"]
    with Running(
        *words, cwd=work, scratch=tmp_path / "a", processes=2, by="torchrun", wait=wait, WAIT_RANK="1"
    ) as started:
        started.until("waits", 1)
        at = "step 12" if wait == "train:12" else "generating reports"
        started.until(f"rank 1 is at {at}, stack:", seconds=50)
        started.until("in wait_at", seconds=5)
        assert "waited for the other processes at" not in started.text, "named too late"
        started.until(f"rank 0: waited for the other processes at {at}", seconds=60)
        started.go()
        started.end(1, seconds=90)
    if wait == "eval:1":
        assert "has not moved for" in started.text and "last at generating reports; the others wait" in started.text
