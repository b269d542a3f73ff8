"""Helpers for tests of whole commands: launch.py as a user runs it, the records of a run, expected errors."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from framework.runtime.errors import Problem, UserError
from framework.runtime.files import read_lines

ROOT = Path(__file__).resolve().parents[2]
TOYS = Path(__file__).with_name("toys.py")  # plugins that tests name in recipes
LONGEST_S = 600.0  # time limit of a command


def launch(
    *words: str,
    cwd: Path,
    processes: int = 1,
    check: bool = True,
    by: str | None = None,
    flags: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs launch.py as a user does, from another folder, on one or more processes.

    Args:
        by: python, accelerate, torchrun, deepspeed or the verb launch; None: python for one process, accelerate for
            more.
        flags: options of the launcher; for accelerate, instead of --multi_gpu.
        environment: additional variables.
    """
    by = by or ("python" if processes == 1 else "accelerate")
    count = str(processes)
    if by == "accelerate" and processes > 1:
        flags = flags or ["--multi_gpu"]
    module = {
        "python": [],
        "launch": [],
        "accelerate": ["-m", "accelerate.commands.launch", "--num_processes", count, "--main_process_port", "0"],
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count],
        "deepspeed": ["-m", "deepspeed.launcher.runner", "--num_accelerators", count, "--master_port", free_port()],
    }[by]
    start = [sys.executable, *module, *flags, str(ROOT / "launch.py")]
    if by == "launch":
        start = [sys.executable, str(ROOT / "launch.py"), "launch", "--num_processes", count, *flags]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(environment or {})}
    # In a new session, as from a terminal, so that a command that hangs is killed with its children.
    process = subprocess.Popen(
        [*start, *words], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=LONGEST_S)
        ended = f"ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        kill_all_of(process.pid)
        out, err = process.communicate()
        check, ended = True, f"did not end within {LONGEST_S:.0f} s"
    except BaseException:
        kill_all_of(process.pid)
        raise
    whole = process.returncode == 0 and ended.startswith("ended")
    assert not check or whole, f"{' '.join(words)} {ended}\n{out[-3000:]}\n{err[-6000:]}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill_all_of(pid: int) -> None:
    """Kills a process and its children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid)
        for process in [*started.children(recursive=True), started]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def free_port() -> str:
    """A free port, for launchers that cannot choose one, such as DeepSpeed's."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def records(run: Path, name: str) -> dict[int, float]:
    """Values of a run by step."""
    return {step: value for (step, found), value in all_records(run).items() if found == name}


RATES = ("exams_per_s", "images_per_s", "tokens_per_s", "tflop_per_s", "mfu", "padding_share", "step_s", "data_wait_s")
MEASURED = {f"train/{name}" for name in (*RATES, "memory_gib")}  # differ between runs


def all_records(run: Path) -> dict[tuple[int, str], float]:
    """The records of a run by (step, name), without measured times and memory. A record that occurs twice fails."""
    found: dict[tuple[int, str], float] = {}
    for line in read_lines(run / "metrics.jsonl"):
        row = json.loads(line)
        if row["name"] in MEASURED:
            continue
        assert (row["step"], row["name"]) not in found, f"{row['name']} occurs twice at step {row['step']}"
        found[row["step"], row["name"]] = row["value"]
    return found


# Short and difficult to distribute: splits of indivisible sizes (one test exam leaves a process without exams),
# clipping in every step, a separate rate for the encoder, EMA. No dropout: its random numbers differ between processes.
EXACT = (
    "data.dataset.exams=33", "data.dataset.val_exams=7", "data.dataset.test_exams=1", "distiller.topics=2",
    "train.epochs=6", "evaluate.every_epochs=3", "evaluate.max_length=60", "optimizer.lr=1e-2",
    "optimizer.encoder_lr=5e-3", "train.max_grad_norm=0.3", "train.ema_decay=0.9", "checkpoint.every_steps=3",
    "train.log_every=1",
    "checkpoint.keep_last=99",
)  # fmt: skip


@contextlib.contextmanager
def problem(code: str, place: str = "", kind: type[UserError] = UserError) -> Iterator[list[Problem]]:
    """Passes if the block raises a `kind` with a problem of this code, whose place contains `place`.

    Yields:
        a list that receives all problems of the error, for tests of more than the first.
    """
    found: list[Problem] = []
    with pytest.raises(kind) as caught:
        yield found
    found += caught.value.problems
    there = [(each.code, each.place) for each in found]
    assert any(each == code and place in where for each, where in there), f"{(code, place)} not among {there}"
