"""Checkpoints are written in the background, and failures are reported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from harness import ROOT, problem

from framework.checkpoint.export import ModelTexts
from framework.checkpoint.format import (
    CheckpointError,
    RetentionPolicy,
    SavedState,
    Snapshot,
    TrainState,
    checkpoints_of,
    clear_unfinished,
    verify_checkpoint,
)
from framework.checkpoint.saver import AsyncCheckpointer
from framework.recipe import PortableRecipe

KEEP = RetentionPolicy(keep_last=2, keep_best=1, higher_is_better=True)


class Slow:
    """A tokenizer whose file is written when the test releases it."""

    def __init__(self) -> None:
        self.started, self.may_end = threading.Event(), threading.Event()

    def save(self, path: Path) -> None:
        self.started.set()
        assert self.may_end.wait(30)
        path.write_text("{}")


class Quick:
    def save(self, path: Path) -> None:
        path.write_text("{}")


class Full:
    def save(self, path: Path) -> None:
        raise OSError(28, "No space left on device")


def snapshot(step: int, tokenizer: object) -> Snapshot:
    weights = {"encoder.weight": torch.full((4,), float(step))}
    state = {f"weights/{name}": value.clone() for name, value in weights.items()}
    return Snapshot(TrainState(step=step), state, weights, ModelTexts(tokenizer, PortableRecipe("{}\n")))


def steps(folder: Path) -> list[str]:
    return [path.name for path in checkpoints_of(folder)]


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    saver, slow = AsyncCheckpointer(tmp_path, KEEP, background=True), Slow()
    saver.save(snapshot(1, slow))
    assert slow.started.wait(30)
    assert not steps(tmp_path) and not saver.failed
    slow.may_end.set()
    saver.finish()
    assert steps(tmp_path) == ["step-1"] and verify_checkpoint(tmp_path / "step-1") is None
    saver.close()


def test_a_synchronous_save_is_written_when_save_returns(tmp_path: Path) -> None:
    saver = AsyncCheckpointer(tmp_path, KEEP, background=False)
    saver.save(snapshot(1, Quick()))
    assert steps(tmp_path) == ["step-1"]
    saver.close()


def test_the_next_save_waits_for_the_one_before(tmp_path: Path) -> None:
    saver, slow = AsyncCheckpointer(tmp_path, KEEP, background=True), Slow()
    saver.save(snapshot(1, slow))
    second = threading.Thread(target=saver.save, args=(snapshot(2, Quick()),))
    second.start()
    assert slow.started.wait(30)
    second.join(0.2)
    assert second.is_alive() and not steps(tmp_path)
    slow.may_end.set()
    second.join(30)
    saver.finish()
    assert steps(tmp_path) == ["step-2", "step-1"]
    saver.close()


def test_a_failed_write_is_detected_without_waiting_and_raised_by_finish(tmp_path: Path) -> None:
    saver = AsyncCheckpointer(tmp_path, KEEP, background=True)
    saver.save(snapshot(1, Quick()))
    saver.finish()
    saver.save(snapshot(2, Full()))
    saver.thread.shutdown(wait=True)
    assert saver.failed
    with problem("cannot-write", str(tmp_path), CheckpointError) as found:
        saver.finish()
    assert "No space left" in found[0].found
    assert steps(tmp_path) == ["step-1"] and verify_checkpoint(tmp_path / "step-1") is None


def test_a_failed_synchronous_write_is_raised_by_save(tmp_path: Path) -> None:
    saver = AsyncCheckpointer(tmp_path, KEEP, background=False)
    with problem("cannot-write", kind=CheckpointError):
        saver.save(snapshot(1, Full()))
    saver.close()


def test_a_failed_write_leaves_no_partial_files(tmp_path: Path) -> None:
    saver = AsyncCheckpointer(tmp_path, KEEP, background=False)
    with problem("cannot-write"):
        saver.save(snapshot(1, Full()))
    assert not list(tmp_path.glob(".step-*"))
    saver.close()


def test_a_failed_write_is_raised_by_the_next_save(tmp_path: Path) -> None:
    saver = AsyncCheckpointer(tmp_path, KEEP, background=True)
    saver.save(snapshot(1, Full()))
    with problem("cannot-write"):
        saver.save(snapshot(2, Quick()))
    assert not steps(tmp_path)
    saver.close()


# Writes checkpoints of 48 MB and no end of them, in a child that is killed: each is the best, so that all there is to
# write is written. The parent is kept, since importing torch takes longer than all ten kills.
WRITER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from framework.checkpoint.format import RetentionPolicy, Snapshot, TrainState, checkpoints_of, clear_unfinished
from framework.checkpoint.format import write_checkpoint
from framework.checkpoint.export import ModelTexts

class Tokenizer:
    def save(self, path):
        path.write_text("{}")

folder, drawn = Path(sys.argv[1]) / "checkpoints", random.Random(int(sys.argv[2]))
weights = {f"encoder.{n}": torch.zeros(1_000_000) for n in range(3)}
state = {f"{kind}/{name}": value.clone() for kind in ("weights", "optimizer/a", "optimizer/b")
         for name, value in weights.items()}

def write_on(step):
    while True:
        step += 1
        for tensor in [*weights.values(), *state.values()]:
            tensor.fill_(step)
        scores = {f"step-{step}": float(step)}
        now = TrainState(step=step, best_step=step, best_score=float(step), val_scores=scores)
        texts = ModelTexts(Tokenizer(), PortableRecipe(f"step: {step}"))
        write_checkpoint(folder, Snapshot(now, state, weights, texts), RetentionPolicy(2, 1, True))

started = time.monotonic()
child = os.fork()
if not child:
    write_on(0)
while not len(checkpoints_of(folder)) == 2:
    time.sleep(0.01)
each = (time.monotonic() - started) / 2
for _ in range(10):
    time.sleep(drawn.uniform(0.2, 1.7) * each)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(json.dumps(sorted(path.name for path in folder.iterdir())), flush=True)
    sys.stdin.readline()  # the test has looked
    clear_unfinished(folder)
    newest = checkpoints_of(folder)[0]
    child = os.fork()
    if not child:
        write_on(int(newest.name.split("-")[1]))
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""


@pytest.mark.long
def test_a_save_killed_at_any_of_ten_moments_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    folder, step, broken_off = tmp_path / "checkpoints", 1, 0
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), "9233"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None and writer.stdout is not None
    for _ in range(10):
        names = json.loads(writer.stdout.readline())
        broken_off += any(name.endswith((".part", ".before")) for name in names)
        for checkpoint in checkpoints_of(folder):
            assert verify_checkpoint(checkpoint) is None
        newest = checkpoints_of(folder)[0]
        now = int(newest.name.removeprefix("step-"))
        assert now >= step, "a checkpoint was lost"
        step = now
        assert float(SavedState(newest)["weights/encoder.0"][7]) == now
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        clear_unfinished(copy)
        assert {path.name for path in copy.iterdir() if path.name.startswith(".step")} == set()
        shutil.rmtree(copy)
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert writer.wait(60) == 0
    assert broken_off >= 5, "most kills must meet a save half done"
