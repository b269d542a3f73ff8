"""Runs that a test watches from outside, and stops, kills or blocks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from harness import ROOT, all_records, kill_all_of

from framework.checkpoint.format import checkpoints_of, verify_checkpoint

LONGEST_S = 240.0  # that any run of these tests may take; only one that hangs does
STARTS = {
    "python": [],
    "torchrun": ["-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--nnodes=1"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"],
}
PROCESSES = {
    "python": None,
    "launch": "--num_processes",
    "torchrun": "--nproc_per_node",
    "accelerate": "--num_processes",
}
RECIPE = f"""
_base_: {ROOT}/recipes/smoke.yaml
plugins: [{ROOT}/tests/support/waiting.py]
data: {{augment: {{name: jitter}}}}
distiller: {{_delete_: true, name: waiting_topics, topics: 4}}
model:
  encoder: {{_delete_: true, name: waiting_cnn, width: 64}}
  decoder: {{dropout: 0.1}}
losses: {{breaking: {{weight: 1.0}}}}
train: {{epochs: 2, log_every: 1}}
evaluate: {{batch_size: 4}}
"""
# A run has 16 steps; on one process it generates 4 batches of reports in the validation of each epoch, and at the end
# 4 of val and 4 of test.


def waiting_recipe(folder: Path) -> str:
    """The smoke recipe with the plugins of waiting.py, in a file."""
    path = folder / "waiting.yaml"
    path.write_text(RECIPE)
    return str(path)


class Running:
    """A command of launch.py in the background. Leaving the `with` block kills it.

    Args:
        cwd: the working folder.
        scratch: a folder of this command only, for its output and marker files.
        wait: where its plugins wait, see waiting.py.
    """

    def __init__(
        self,
        *words: str,
        cwd: Path,
        scratch: Path,
        processes: int = 1,
        by: str = "python",
        flags: tuple[str, ...] = (),
        wait: str = "",
        **environment: str,
    ) -> None:
        self.scratch, self.output = scratch, scratch / "output.txt"
        scratch.mkdir(parents=True)
        count = [] if PROCESSES[by] is None else [str(PROCESSES[by]), str(processes)]
        script = str(ROOT / "launch.py")
        before, after = ([script, "launch"], []) if by == "launch" else (STARTS[by], [script])
        command = [sys.executable, *before, *count, *flags, *after, *words]
        variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "WAIT": wait, "WAIT_IN": str(scratch)}
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **variables, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a new process group, as from a terminal
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            kill_all_of(self.process.pid)
        self.process.wait()

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def until(self, what: str, rank: int = 0, seconds: float = LONGEST_S) -> int:
        """Returns when the output contains `what`, or, for "waits", the pid of a process once it waits."""
        marker, ends = self.scratch / f"reached-{rank}", time.monotonic() + seconds
        while time.monotonic() < ends:
            if what == "waits" and marker.is_file() and marker.read_text():
                return int(marker.read_text())
            if what != "waits" and what in self.text:
                return 0
            assert self.process.poll() is None, f"ended with {self.process.returncode} before: {what}\n{self.text}"
            time.sleep(0.02)
        raise AssertionError(f"not in {seconds:.0f} s: {what}\n{self.text}")

    def go(self) -> None:
        """Ends the wait."""
        (self.scratch / "go").touch()

    def end(self, code: int | None = None, seconds: float = LONGEST_S) -> str:
        """Waits for the end, which must come with this exit code. Returns the output."""
        try:
            found = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hangs\n{self.text}") from None
        assert code is None or found == code, f"exit code {found}, not {code}\n{self.text}"
        return self.text


def newest_is_whole(run: Path, step: int | None = None) -> Path:
    """Returns the newest checkpoint, which must verify and be of this step."""
    found = checkpoints_of(run / "checkpoints")
    assert found, f"no checkpoint in {run}"
    assert verify_checkpoint(found[0]) is None
    assert (run / "checkpoints" / "latest").read_text().strip() == found[0].name
    assert step is None or found[0].name == f"step-{step}"
    return found[0]


def nothing_is_left_over(run: Path) -> None:
    left = [path.name for path in run.rglob(".*") if path.name != ".lock"]
    assert not left, f"left over: {left}"


def same_run(run: Path, other: Path, tolerance: float = 0.0) -> None:
    """Both have the same losses, learning rates, gradients, scores and reports."""
    one, two = (
        {key: value for key, value in all_records(of).items() if key[1].startswith(("train/", "val/", "final/"))}
        for of in (run, other)
    )
    assert set(one) == set(two)
    apart = {key: abs(value - two[key]) for key, value in one.items()}
    worst = max(apart, key=lambda key: apart[key])
    assert apart[worst] <= tolerance, f"{worst}: {one[worst]} and {two[worst]}"
    for name in ("val", "test"):
        assert (run / "predictions" / f"{name}.jsonl").read_text() == (
            other / "predictions" / f"{name}.jsonl"
        ).read_text()
