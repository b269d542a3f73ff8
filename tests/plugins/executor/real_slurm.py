"""The executor `slurm` on a real Slurm, which real_slurm.sh brings up: a node of 8 CPUs, KillWait of 5 s."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, problem
from slurm_cells import cell, free, notes, states, wait, wait_until_gone

from framework.grid.cell_folder import CellFolder
from framework.grid.executor import Job
from plugins.executor import slurm as module
from plugins.executor.slurm import Slurm

KILL_WAIT_S = 5
ALL_CPUS = 7  # of a node of 8; one is left for the cell that waits for its time limit meanwhile


@pytest.fixture(autouse=True)
def ask_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_POLL_S", 0.3)


def executor(folder: Path, **keys: Any) -> Slurm:
    return Slurm(folder=folder / "a folder", **keys)


def run_slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """A cell with a time limit of a minute, which Slurm warns 55 s before; it looks at limits every 30 s."""
    folder = tmp_path_factory.mktemp("timed")
    return folder, executor(folder, partition="calm", minutes=1, save_seconds=25).start([cell(folder, attempts=2)])


def test_jobs_that_start_together_are_one_array(tmp_path, timed):
    given = ("two words", "a 'single' and a \"double\" quote", "$HOME `ls` \\ * %j", "")
    program = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(repr(sys.argv[2:]))"
    quoting = Job("topics-q", (sys.executable, "-c", program, str(tmp_path / "out of it"), *given), tmp_path / "log")
    slurm = executor(tmp_path, jobs=2, cpus=2, memory_gib=0.25, extra={"comment": "two words", "nice": 0})
    assert slurm.room() == 2
    first = cell(tmp_path, "topics-a", attempts=2)
    handles = slurm.start([first, quoting])
    assert slurm.room() == 0
    wait(lambda: states(handles) == ["running", "gone"], "one done")
    assert slurm.room() == 1
    assert (tmp_path / "out of it").read_text() == repr(list(given))
    line = run_slurm("squeue", "--noheader", f"--job={handles[0].job}", "--format=%F_%K %j %C %k %m %D")
    assert line.split() == [handles[0].job, "topics", "2", "two", "words", "256M", "1"]
    assert handles[1].job == handles[0].job.replace("_0", "_1")
    free(tmp_path, "topics-a")
    wait_until_gone(handles)
    assert notes(tmp_path, "topics-a") == ["started", "done"]
    assert (tmp_path / "logs" / "topics-a.txt").read_text() == "a line for the log\n"


def test_without_a_number_of_jobs_there_is_room_for_an_array(tmp_path):
    assert executor(tmp_path).room() == 1001  # MaxArraySize, which real_slurm.sh leaves as it is


def test_a_refusal_of_slurm_is_passed_on(tmp_path):
    with problem("cluster-unavailable"):
        executor(tmp_path, partition="nowhere").start([cell(tmp_path)])
    with problem("cluster-unavailable"):
        executor(tmp_path, gpus=True, gpu_type="a100").start([cell(tmp_path), cell(tmp_path, "b")])


def test_processes_of_a_cell_find_one_another_and_not_slurm(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, accelerate, torch\n"
        "found = accelerate.PartialState(cpu=True)\n"
        "all_ones = accelerate.utils.reduce(torch.ones(1), 'sum').item()\n"
        "names = sorted(name for name in os.environ if name.startswith('SLURM_'))\n"
        "print('of', found.num_processes, all_ones, *names, flush=True)\n"
    )
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    job = Job("cell", (sys.executable, *launch, str(program)), tmp_path / "log")
    wait_until_gone(executor(tmp_path, processes=2).start([job]))
    lines = [line for line in job.log.read_text().splitlines() if line.startswith("of ")]
    assert lines == ["of 2 2.0 SLURM_CONF SLURM_JOB_ID"] * 2, job.log.read_text()


def test_a_cancelled_cell_saves_for_longer_than_killwait_or_leaves_the_queue(tmp_path):
    names = ["runs", "waits", "stays"]
    slurm = executor(tmp_path, cpus=ALL_CPUS)
    saves = KILL_WAIT_S + 3
    runs, waits, stays = handles = slurm.start([cell(tmp_path, name, attempts=2, saves=saves) for name in names])
    wait(lambda: states(handles) == ["running", "waiting", "waiting"] and notes(tmp_path, "runs") == ["started"], "up")
    waits.cancel()
    wait(lambda: states(handles) == ["running", "gone", "waiting"], "out of the queue")
    runs.cancel()
    wait(lambda: states(handles) == ["gone", "gone", "running"], "next")
    assert notes(tmp_path, "runs") == ["started", "saved"]
    free(tmp_path, "stays")
    wait_until_gone([stays])
    assert notes(tmp_path, "waits") == []
    assert notes(tmp_path, "stays") == ["started", "done"]


def test_a_cell_that_is_cancelled_while_its_node_gets_ready_does_not_run(tmp_path):
    """Slurm calls it running, and has no process yet that could hear a signal."""
    hold = Path(os.environ["SLURM_CONF"]).with_name("hold")  # the node's prolog waits while it is there
    hold.touch()
    try:
        handles = executor(tmp_path).start([cell(tmp_path, attempts=2)])
        wait(lambda: states(handles) == ["running"], "running")
        handles[0].cancel()
    finally:
        hold.unlink()
    wait_until_gone(handles)
    assert notes(tmp_path) == []


def test_a_cell_that_an_operator_requeues_resumes(tmp_path):
    handles = executor(tmp_path).start([cell(tmp_path, attempts=2)])
    wait(lambda: notes(tmp_path) == ["started"], "started")
    run_slurm("scontrol", "requeue", handles[0].job)
    seen = set()
    wait(lambda: seen.add(handles[0].state()) or "gone" in seen, "gone")
    assert seen >= {"running", "waiting", "gone"}
    assert notes(tmp_path) == ["started", "saved", "started", "done"]


@pytest.mark.parametrize("partition", ["low", "grace"])
def test_a_preempted_cell_saves_and_resumes(tmp_path, partition):
    """In partition grace, the job has ended long before Slurm would have queued it again."""
    low = executor(tmp_path, partition=partition, cpus=ALL_CPUS).start([cell(tmp_path, "low", attempts=2)])
    wait(lambda: notes(tmp_path, "low") == ["started"], "started")
    high = executor(tmp_path, partition="high", cpus=ALL_CPUS).start([cell(tmp_path, "high", attempts=2)])
    wait(lambda: notes(tmp_path, "high") == ["started"], "in its place")
    assert notes(tmp_path, "low") == ["started", "saved"]
    assert states(low) == ["waiting"]
    free(tmp_path, "high")
    wait_until_gone([*low, *high])
    assert notes(tmp_path, "low") == ["started", "saved", "started", "done"]
    assert notes(tmp_path, "high") == ["started", "done"]


def test_a_job_is_not_gone_while_slurm_does_not_answer(tmp_path):
    handles = executor(tmp_path).start([cell(tmp_path, attempts=2)])
    wait(lambda: states(handles) == ["running"] and notes(tmp_path) == ["started"], "running")
    run_slurm("scontrol", "shutdown", "slurmctld")
    time.sleep(1)
    try:
        with pytest.warns(UserWarning, match="squeue does not answer: .*Unable to contact slurm controller"):
            assert states(handles) == ["running"]
    finally:
        run_slurm("slurmctld", "-f", os.environ["SLURM_CONF"])
    free(tmp_path)
    wait_until_gone(handles)
    assert notes(tmp_path) == ["started", "done"]


def test_a_cell_saves_before_its_time_limit_and_is_requeued(timed):
    folder, handles = timed
    wait_until_gone(handles)
    assert notes(folder) == ["started", "saved", "started", "done"]


def test_a_grid_yields_to_other_jobs_and_continues(tmp_path):
    grid = "recipe: shipped:smoke\nset: {train.epochs: 12}\nseeds: [1, 2]\n"
    (tmp_path / "two.yaml").write_text(grid + "executor: {name: slurm, partition: low, cpus: 4}\n")
    command = [sys.executable, str(ROOT / "launch.py"), "grid", "run", "two.yaml"]
    with (tmp_path / "out.txt").open("w") as out:
        scheduler = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out)
    try:
        found = tmp_path / "runs" / "cells"
        wait(lambda: len([c for c in cells_in(found) if c.progress()]) == 2, "two cells that train")
        run_slurm("sbatch", "--partition=high", "--cpus-per-task=8", "--output=/dev/null", "--wrap=sleep 2")
        assert scheduler.wait(300) == 0, (tmp_path / "out.txt").read_text()
    finally:
        scheduler.kill()
    assert [cell.status() for cell in cells_in(found)] == ["done", "done"]
    assert [cell.state().attempts for cell in cells_in(found)] == [2, 2]
    assert all("resumed from" in cell.log.read_text() for cell in cells_in(found))


def cells_in(folder: Path) -> list[CellFolder]:
    return [CellFolder(path.with_suffix("")) for path in sorted(folder.glob("*.yaml"))]
