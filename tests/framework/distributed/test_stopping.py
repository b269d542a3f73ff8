"""A run that is stopped at any point and resumed equals one that never stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness import launch
from running import Running, newest_is_whole, nothing_is_left_over, same_run, waiting_recipe

from framework.runtime.errors import STOPPED
from framework.runtime.signals import SAME_PRESS_S

TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
# Where a run on one process is stopped, one after the other, and the step of the checkpoint that it must have then. Its
# 16 steps are two epochs. Each start counts batches of reports from 1, 4 of a validation, which starts over.
PHASES = [
    ("topics:1", None),  # finding topics
    ("train:3", 3),  # training, in the middle of a step
    ("eval:2", 8),  # the first validation
    ("eval:7", 16),  # the second, after the first
    ("eval:11", 16),  # scoring on test, after the second validation and val
]


@pytest.fixture(scope="module")
def recipe(work: Path) -> str:
    return waiting_recipe(work)


@pytest.fixture(scope="module")
def runs(work: Path) -> Path:
    return work / "runs" / "waiting"


@pytest.fixture(scope="module")
def never_stopped(recipe: str, work: Path, runs: Path) -> Path:
    launch(recipe, "run.name=never_stopped", cwd=work)
    return runs / "never_stopped"


@pytest.fixture(scope="module")
def two_never_stopped(recipe: str, work: Path, runs: Path) -> Path:
    launch(recipe, "run.name=two_never_stopped", cwd=work, processes=2)
    return runs / "two_never_stopped"


def stop_in_turn(
    recipe: str,
    run: Path,
    work: Path,
    scratch: Path,
    phases: Sequence[tuple[str, int | None]],
    signals: Sequence[signal.Signals],
    *keys: str,
    group: bool = False,
) -> None:
    """Starts a run once for each phase, stops it there, and at last resumes it to its end.

    Args:
        group: sends the signal to all processes of the command, as a terminal or Slurm does.
    """
    words = [recipe, f"run.name={run.name}", "resume=auto", f"data.cache_dir={scratch / 'cache'}", *keys]
    for (wait, step), number in zip(phases, signals, strict=True):
        with Running(*words, cwd=work, scratch=scratch / wait, wait=wait) as started:
            pid = started.until("waits")
            if group:
                os.killpg(os.getpgid(pid), number)
            else:
                os.kill(pid, number)
            if step is not None:
                started.until(f"{number.name}: saving at the end of this step")
            started.go()
            text = started.end(STOPPED)
        if step is None:
            assert f"stopped by {number.name} before the first step: nothing to save" in text
            continue
        assert f"stopped by {number.name} after step {step} of 16; everything is saved" in text
        assert f"resume={run.relative_to(work)}" in text and "Traceback" not in text
        newest_is_whole(run, step)
    launch(*words, cwd=work)
    nothing_is_left_over(run)


def test_a_run_that_is_stopped_in_a_validation_and_resumed_equals_an_uninterrupted_run(
    never_stopped: Path, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    stop_in_turn(recipe, runs / "stopped_once", work, tmp_path, PHASES[2:3], [INT])
    same_run(runs / "stopped_once", never_stopped)


@pytest.mark.long
def test_a_run_that_is_stopped_in_every_phase_and_resumed_equals_an_uninterrupted_run(
    never_stopped: Path, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    stop_in_turn(recipe, runs / "stopped", work, tmp_path, PHASES, [TERM, USR1, INT, TERM, USR1])
    same_run(runs / "stopped", never_stopped)


@pytest.mark.long
@pytest.mark.parametrize("signals", [[USR1, INT, TERM, USR1, INT], [INT, TERM, USR1, INT, TERM]])
def test_a_run_whose_workers_receive_the_signals_too_equals_an_uninterrupted_run(
    signals: list[signal.Signals], never_stopped: Path, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    run = runs / f"with_workers_{signals[0].name}"
    stop_in_turn(recipe, run, work, tmp_path, PHASES, signals, "data.num_workers=2", group=True)
    same_run(run, never_stopped)


@pytest.mark.long
def test_a_second_ctrl_c_stops_at_once(recipe: str, runs: Path, work: Path, tmp_path: Path) -> None:
    words = [recipe, "run.name=pressed_twice"]
    with Running(*words, cwd=work, scratch=tmp_path / "start", wait="train:10") as started:
        pid = started.until("waits")
        os.kill(pid, INT)
        started.until("SIGINT: saving at the end of this step")
        time.sleep(SAME_PRESS_S + 0.2)  # sooner, it counts as the same press, passed on by a launcher
        os.kill(pid, INT)
        started.end(128 + INT)
    newest_is_whole(runs / "pressed_twice", 8)  # of the epoch before


@pytest.mark.long
def test_a_ctrl_c_that_a_launcher_forwards_counts_once(recipe: str, runs: Path, work: Path, tmp_path: Path) -> None:
    with Running(recipe, "run.name=passed_on", cwd=work, scratch=tmp_path / "start", wait="train:2") as started:
        pid = started.until("waits")
        os.kill(pid, INT)
        started.until("SIGINT: saving")
        os.kill(pid, INT)
        started.go()
        started.end(STOPPED)
    newest_is_whole(runs / "passed_on", 2)


@pytest.mark.long
def test_the_file_save_saves_and_the_file_stop_stops(recipe: str, runs: Path, work: Path, tmp_path: Path) -> None:
    run = runs / "by_files"
    with Running(recipe, "run.name=by_files", cwd=work, scratch=tmp_path / "save", wait="train:3") as started:
        started.until("waits")
        (run / "SAVE").touch()
        time.sleep(1.2)  # the folder is looked at once a second
        started.go()
        started.end(0)
    assert not (run / "SAVE").exists()
    text = (tmp_path / "save" / "output.txt").read_text()
    assert "saved, as requested by the file SAVE" in text and "stopped by" not in text

    words = [recipe, "run.name=stopped_by_file"]
    with Running(*words, cwd=work, scratch=tmp_path / "stop", wait="train:3") as started:
        started.until("waits")
        stop = runs / "stopped_by_file" / "STOP"
        stop.touch()
        time.sleep(1.2)
        started.go()
        text = started.end(STOPPED)
    assert f"stopped by {stop.relative_to(work)} after step 3 of 16" in text
    newest_is_whole(runs / "stopped_by_file", 3)


@pytest.mark.long
def test_a_run_resumes_from_what_the_file_save_saved(
    never_stopped: Path, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    run, words = runs / "saved_and_killed", [recipe, "run.name=saved_and_killed", "resume=auto"]
    with Running(*words, cwd=work, scratch=tmp_path / "save", wait="train:3") as started:
        started.until("waits")
        (run / "SAVE").touch()
        time.sleep(1.2)
        started.go()
        started.until("saved, as requested by the file SAVE")
        os.kill(started.process.pid, signal.SIGKILL)
        started.end(-signal.SIGKILL)
    newest_is_whole(run)
    done = launch(*words, cwd=work)
    assert "resumed from" in done.stdout
    same_run(run, never_stopped)


@pytest.mark.long
@pytest.mark.parametrize("by", ["torchrun", "accelerate"])
def test_a_launcher_that_is_stopped_stops_all_its_processes_after_a_save(
    by: str, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    run, words = runs / f"launcher_{by}", [recipe, f"run.name=launcher_{by}"]
    with Running(*words, cwd=work, scratch=tmp_path / by, processes=2, by=by, wait="train:3", WAIT_RANK="0") as started:
        started.until("waits")
        started.process.send_signal(TERM)
        started.until("SIGTERM: saving at the end of this step")
        started.go()
        text = started.end()
    assert started.process.returncode != 0
    assert f"after step 3 of 16; everything is saved. Resume with resume={run.relative_to(work)}" in text
    newest_is_whole(run, 3)


@pytest.mark.long
def test_two_processes_that_are_stopped_in_every_phase_and_resumed_equal_an_uninterrupted_run(
    two_never_stopped: Path, recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    run = runs / "two_stopped"
    words = [recipe, "run.name=two_stopped", "resume=auto", f"data.cache_dir={tmp_path / 'cache'}"]
    # Only one process receives the signal. With two processes, a validation has 2 batches.
    for wait, rank, number, step in [
        ("train:3", 1, TERM, 3),
        ("eval:1", 0, USR1, 8),
        ("eval:3", 1, INT, 16),  # after the first validation, which starts over
        ("eval:4", 1, TERM, 16),  # scoring: after the second
    ]:
        scratch = tmp_path / f"{wait}-{rank}"
        with Running(
            *words, cwd=work, scratch=scratch, processes=2, by="torchrun", wait=wait, WAIT_RANK=str(rank)
        ) as started:
            os.kill(started.until("waits", rank), number)
            time.sleep(0.2)
            started.go()
            text = started.end()
        assert f"after step {step} of 16; everything is saved" in text, text
        newest_is_whole(run, step)
    launch(*words, cwd=work, processes=2)
    nothing_is_left_over(run)
    same_run(run, two_never_stopped)


@pytest.mark.long
def test_two_processes_follow_the_files_save_and_stop(recipe: str, runs: Path, work: Path, tmp_path: Path) -> None:
    run, words = runs / "two_by_files", [recipe, "run.name=two_by_files", "checkpoint.keep_last=9"]
    with Running(
        *words, cwd=work, scratch=tmp_path / "save", processes=2, by="torchrun", wait="train:3", WAIT_RANK="1"
    ) as started:
        started.until("waits", 1)
        (run / "SAVE").touch()
        time.sleep(1.2)
        started.go()
        started.until("saved, as requested by the file SAVE")
        (run / "STOP").touch()
        text = started.end()
    assert f"stopped by {(run / 'STOP').relative_to(work)} after step" in text
    assert not (run / "SAVE").exists()
    newest_is_whole(run)


@pytest.mark.long
def test_a_launcher_does_not_restart_a_run_that_was_stopped(
    recipe: str, runs: Path, work: Path, tmp_path: Path
) -> None:
    run, words = runs / "not_again", [recipe, "run.name=not_again"]
    with Running(
        *words, cwd=work, scratch=tmp_path / "a", processes=2, by="torchrun", flags=("--max_restarts", "1"),
        wait="train:3", WAIT_RANK="0",
    ) as started:  # fmt: skip
        started.until("waits")
        (run / "STOP").touch()
        time.sleep(1.2)
        started.go()
        text = started.end()
    assert started.process.returncode != 0
    assert text.count("STOP exists: not restarted") == 1, text
    assert "resumed from" not in text
    newest_is_whole(run, 3)
    done = launch(*words, "resume=auto", "train.epochs=2", cwd=work, processes=2)  # a person starts it again
    assert "resumed from" in done.stdout and not (run / "STOP").exists()
