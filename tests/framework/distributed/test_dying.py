"""What happens to long runs: they are killed, fill the disk, meet numbers that are none, lose or wait for a process."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from harness import free_port, launch, records
from running import Running, newest_is_whole, nothing_is_left_over, same_run, waiting_recipe

from framework.build import build_dataset
from framework.checkpoint.format import SavedState, checkpoints_of, verify_checkpoint
from framework.data.loading import epoch_order
from framework.recipe import load_recipe
from framework.runtime.errors import LOST, USER_ERROR

SAME = 1e-5  # between one and two processes, of losses of about 4: an order of magnitude above what was measured


@pytest.fixture(scope="module")
def recipe(work: Path) -> str:
    return waiting_recipe(work)


@pytest.fixture(scope="module")
def runs(work: Path) -> Path:
    return work / "runs" / "waiting"


@pytest.fixture(scope="module")
def whole(recipe: str, work: Path, runs: Path) -> Path:
    """A run on two processes that nothing happens to."""
    launch(recipe, "run.name=whole", cwd=work, processes=2)
    return runs / "whole"


# Killed


@pytest.mark.long
def test_a_run_killed_again_and_again_while_it_saves_ends_as_one_that_never_was(
    recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    large = ["model.decoder.width=256", "model.decoder.feedforward=1024", "checkpoint.every_steps=1", "train.epochs=4"]
    launch(recipe, "run.name=not_killed", *large, cwd=work)
    run, words = runs / "killed", [recipe, "run.name=killed", "resume=auto", *large]
    drawn, broken_off, kills = random.Random(9233), 0, 0
    while kills < 4 or (not broken_off and kills < 20):  # ten at once: test_saver.py
        before = max((path.name for path in checkpoints_of(run / "checkpoints")[:1]), default="none")
        with Running(*words, cwd=work, scratch=tmp_path / f"{kills}") as started:
            while not list((run / "checkpoints").glob("step-*")) or newest_name(run) == before:
                assert started.process.poll() is None, started.text
                time.sleep(0.01)
            time.sleep(drawn.uniform(0, 0.3))
            started.process.kill()
            started.end(-signal.SIGKILL)
        kills += 1
        broken_off += bool(list((run / "checkpoints").glob(".*.part")))
        newest = checkpoints_of(run / "checkpoints")[0]
        assert verify_checkpoint(newest) is None
    assert broken_off, f"none of {kills} kills met a save half done"
    done = launch(*words, cwd=work)
    assert "resumed from" in done.stdout
    nothing_is_left_over(run)
    same_run(run, runs / "not_killed")


def newest_name(run: Path) -> str:
    return checkpoints_of(run / "checkpoints")[0].name


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path, left: int) -> Path:
    """A file that leaves room for so many bytes."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - left))
    return ballast


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_ends_the_run_with_its_checkpoints_whole_and_with_room_it_goes_on(
    processes: int, recipe: str, work: Path, small_disk: Path, tmp_path: Path
) -> None:
    run = small_disk / "waiting" / "full"
    words = [recipe, "run.name=full", f"run.root={small_disk}", "resume=auto", "checkpoint.every_steps=4"]
    by = "python" if processes == 1 else "torchrun"
    with Running(*words, cwd=work, scratch=tmp_path / "a", processes=processes, by=by, wait="train:10") as started:
        for rank in range(processes):
            started.until("waits", rank)
        until_saved(run, 8)  # in the background
        ballast = fill(small_disk, 400_000)
        started.go()
        text = started.end(USER_ERROR if processes == 1 else None)
    assert started.process.returncode != 0
    assert "a checkpoint could not be written" in text and "No space left on device" in text, text
    assert "Those before it are whole: mend that, and go on with resume=auto" in text
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


# Numbers that are none


def exams_of_step(recipe: str, step: int) -> set[str]:
    """Of the first epoch, from the recipe alone."""
    loaded = load_recipe(recipe)
    exams = [exam.id for exam in build_dataset(loaded).splits()["train"]]
    size = loaded.train.batch_size
    order = epoch_order(len(exams), loaded.train.seed, 0)[(step - 1) * size : step * size]
    return {exams[place] for place in order}


def bad_steps(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "non_finite.jsonl").read_text().splitlines()]


def untouched(run: Path, step: int) -> None:
    """The step changed nothing that training goes on from."""
    before, after = (SavedState(run / "checkpoints" / f"step-{number}") for number in (step - 1, step))
    assert set(before) == set(after) and any(name.startswith("optimizer/") for name in after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_exams(recipe: str, runs: Path, work: Path) -> None:
    done = launch(recipe, "run.name=stops", cwd=work, environment={"BREAK": "loss:3"}, check=False)
    assert done.returncode == USER_ERROR
    assert "step 3: the loss or its gradient is not finite (loss nan" in done.stderr
    assert "number 1 of such steps, and train.skip_non_finite is 0" in done.stderr and "Traceback" not in done.stderr
    [told] = bad_steps(runs / "stops")
    assert told["step"] == 3 and set(told["exams"]) == exams_of_step(recipe, 3) and len(told["exams"]) == 8
    assert told["terms"]["breaking"] != told["terms"]["breaking"] and told["terms"]["next_token"] > 0
    assert any(exam in done.stderr for exam in told["exams"])


@pytest.mark.parametrize(
    ("strategy", "processes"),
    [
        ("ddp", 1),
        *[pytest.param(name, 2, marks=pytest.mark.long) for name in ("ddp", "zero2", "zero3", "fsdp")],
    ],
)
def test_bad_steps_are_skipped_and_counted_and_touch_nothing(
    strategy: str, processes: int, recipe: str, runs: Path, work: Path
) -> None:
    run = runs / f"skips_{strategy}_{processes}"
    done = launch(
        recipe, f"run.name={run.name}", f"distributed.strategy={strategy}", "train.skip_non_finite=2", "train.epochs=1",
        "checkpoint.every_steps=1", "checkpoint.keep_last=99", "train.ema_decay=0.9", cwd=work, processes=processes,
        environment={"BREAK": "loss:3,gradient:6", "BREAK_RANK": str(processes - 1)},
    )  # fmt: skip
    assert "warning: step 3: the loss or its gradient is not finite" in done.stdout
    assert "skipped, number 2 of at most 2" in done.stdout and "2 steps were skipped" in done.stdout
    assert [row["step"] for row in bad_steps(run)] == [3, 6]
    assert all(set(row["exams"]) == exams_of_step(recipe, row["step"]) for row in bad_steps(run))
    gradient_alone = bad_steps(run)[1]
    assert gradient_alone["loss"] > 0
    for step in (3, 6):
        untouched(run, step)
    told = json.loads((run / "checkpoints" / "step-8" / "trainer.json").read_text())
    assert (told["step"], told["updates"], told["skipped"]) == (8, 6, 2)
    losses = list(records(run, "train/loss").values())
    assert len(losses) == 8 and losses[-1] < losses[0]


@pytest.mark.long
def test_more_bad_steps_than_allowed_stop_all_processes(recipe: str, runs: Path, work: Path) -> None:
    run = runs / "too_many"
    done = launch(
        recipe, f"run.name={run.name}", "train.skip_non_finite=1", cwd=work,
        processes=2, environment={"BREAK": "loss:2,gradient:5", "BREAK_RANK": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "step 5: the loss or its gradient is not finite" in done.stderr
    assert "number 2 of such steps, and train.skip_non_finite is 1" in done.stderr
    assert [row["step"] for row in bad_steps(run)] == [2, 5]


# Out of memory


@pytest.mark.long
def test_the_next_smaller_size_is_named_where_memory_ends(recipe: str, runs: Path, work: Path) -> None:
    words, fits = [recipe, "train.epochs=1"], {"FITS": "4"}
    done = launch(*words, "run.name=too_large", cwd=work, environment=fits, check=False)
    assert done.returncode == USER_ERROR and "Traceback" not in done.stderr
    assert "step 1: out of GPU memory with micro-batches of 8 exams" in done.stderr
    named = next(word for word in done.stderr.split() if word.startswith("train.micro_batch_size="))
    assert named == "train.micro_batch_size=4"
    launch(*words, "run.name=fits", named, cwd=work, environment=fits)
    assert len(records(runs / "fits", "train/loss")) == 8


# A process that dies


@pytest.mark.long
@pytest.mark.parametrize(("by", "rank"), [("torchrun", 1), ("torchrun", 0), ("accelerate", 1)])
def test_under_restarts_a_run_whose_process_was_killed_ends_as_one_that_nothing_happened_to(
    by: str, rank: int, whole: Path, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    root = work / f"restarted-{by}-{rank}"
    with Running(
        recipe, f"run.root={root}", "checkpoint.every_steps=3", cwd=work, scratch=tmp_path / "a", processes=2, by=by,
        flags=("--max_restarts", "1"), wait="train:12", WAIT_RANK=str(rank),
    ) as started:  # fmt: skip
        pid = started.until("waits", rank)
        os.kill(pid, signal.SIGKILL)
        text = started.end(0)
    [run] = (root / "waiting").iterdir()  # the same folder, whose name was made from the time of the first start
    assert f"start number 2 of this launch: going on with {run}" in text
    assert "resumed from" in text and "step 9 of 16" in text
    nothing_is_left_over(run)
    same_run(run, whole)


def test_the_process_that_is_left_alone_says_what_happened_and_ends_with_a_code_of_its_own(
    recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    """Started without a launcher, which would end with a code of its own."""
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
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
                    **told,
                )
            )
            for rank in ("0", "1")
        )
        os.kill(second.until("waits", 1), signal.SIGKILL)
        second.end(-signal.SIGKILL)
        text = first.end(LOST, seconds=60)
    assert "waited for the others at step 12, and one of them died, hangs or cannot be reached" in text, text
    assert "Go on from the last checkpoint with resume=auto" in text
    newest_is_whole(runs / "lost", 8)


@pytest.mark.long
def test_the_run_of_a_lost_process_goes_on_with_the_next_start(
    whole: Path, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    run, words = runs / "lost_and_found", [recipe, "run.name=lost_and_found", "resume=auto"]
    with Running(
        *words, cwd=work, scratch=tmp_path / "a", processes=2, by="torchrun", wait="eval:2", WAIT_RANK="0"
    ) as started:
        os.kill(started.until("waits", 0), signal.SIGKILL)  # the main process, in the first validation
        started.end(1, seconds=90)
    launch(*words, cwd=work, processes=2)
    same_run(run, whole)


# A process that hangs


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_frozen_is_named_by_the_other_before_the_time_out_ends_the_run(
    rank: int, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    words = [recipe, f"run.name=frozen_{rank}", "distributed.timeout=1"]
    with Running(
        *words, cwd=work, scratch=tmp_path / "a", processes=2, by="torchrun", wait="train:12", WAIT_RANK=str(rank)
    ) as started:
        pid = started.until("waits", rank)
        time.sleep(3)  # until it has told where it is, which it does every two seconds
        os.kill(pid, signal.SIGSTOP)
        host = os.uname().nodename
        started.until(f"rank {rank} (host {host}, pid {pid}) does not answer for", seconds=50)
        assert "waited for the others at" not in started.text, "named too late"
        started.until(f"rank {1 - rank}: waited for the others at step 12", seconds=60)
        psutil.Process(pid).kill()  # the launcher would wait half a minute for it
        text = started.end(1, seconds=60)
    assert "The run ends when they have waited 1 minutes (distributed.timeout)" in text
    assert "last at step 12" in text
    newest_is_whole(runs / f"frozen_{rank}", 8)


@pytest.mark.long
@pytest.mark.parametrize("wait", ["train:12", "eval:1"])
def test_a_process_that_got_stuck_shows_where_in_the_code(
    wait: str, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    words = [recipe, f"run.name=stuck_{wait[:4]}", "distributed.timeout=1"]
    with Running(
        *words, cwd=work, scratch=tmp_path / "a", processes=2, by="torchrun", wait=wait, WAIT_RANK="1"
    ) as started:
        started.until("waits", 1)
        at = "step 12" if wait == "train:12" else "writing reports"
        started.until(f"rank 1 is at {at}, here:", seconds=50)
        started.until("in wait_at", seconds=5)
        assert "waited for the others at" not in started.text, "named too late"
        started.until(f"rank 0: waited for the others at {at}", seconds=60)
        started.go()
        started.end(1, seconds=90)
    if wait == "eval:1":
        assert "has not moved for" in started.text and "last at writing reports; the others wait" in started.text
