"""A resumed run equals one that never stopped: bit by bit on the same processes, with float noise on others."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import EXACT, ROOT, launch, problem, records
from safetensors.torch import load_file

from framework.checkpoint.export import write_manifest
from framework.checkpoint.format import CheckpointError, SavedState, checkpoints_of, verify_checkpoint
from framework.recipe import Recipe, load_recipe
from framework.run.folder import OpenedRun, open_run

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
LOSS_NOISE = 1e-5  # as in test_strategies.py
long = pytest.mark.long


def died_at(finished: Path, step: int, name: str) -> Path:
    """A copy of a finished run, as if it had been killed some steps after the checkpoint of `step`. Its metrics have
    more steps than the checkpoint.
    """
    run = finished.with_name(name)
    shutil.copytree(finished, run)
    (run / ".lock").unlink()
    for path in (run / "scores.json", run / "report.html"):
        path.unlink()
    shutil.rmtree(run / "model")
    for path in checkpoints_of(run / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    assert checkpoints_of(run / "checkpoints")[0].name == f"step-{step}"
    return run


def same_bits(one: Path, other: Path) -> None:
    """Records, the last checkpoint with its train state, the model, and its reports are equal."""
    for name in ("train/loss", "train/gradient_norm", "train/lr", "val/bleu_4", "val/cider", "final/test/rouge_l"):
        assert records(one, name) == records(other, name), name
    first, second = (checkpoints_of(run / "checkpoints")[0] for run in (one, other))
    assert first.name == second.name
    tensors, others = (load_file(path / "training.safetensors") for path in (first, second))
    assert tensors.keys() == others.keys()
    assert not [name for name in tensors if not torch.equal(tensors[name], others[name])]
    state, other_state = (json.loads((path / "trainer.json").read_text()) for path in (first, second))
    assert state == other_state and state["best_step"] is not None and state["val_scores"]
    for name in ("model/model.safetensors", "predictions/val.jsonl", "predictions/test.jsonl", "scores.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


# With dropout, augmentation and a random order of the exams.
RANDOM = (
    "data.dataset.exams=33", "data.dataset.val_exams=7", "data.dataset.test_exams=1", "distiller.topics=2",
    "train.epochs=3", "evaluate.max_length=60", "optimizer.lr=1e-2", "model.decoder.dropout=0.2",
    "data.augment={name: jitter}", "train.ema_decay=0.9", "checkpoint.every_steps=3", "checkpoint.keep_last=99",
    "train.log_every=1",
)  # fmt: skip


@pytest.fixture(scope="session")
def random_run(work: Path) -> Callable[..., Path]:
    """Trains recipes/smoke.yaml by RANDOM, once for each strategy and number of processes."""
    done: dict[tuple[str, int], Path] = {}

    def trained(strategy: str = "ddp", processes: int = 1) -> Path:
        if (strategy, processes) not in done:
            name = f"random-{processes}-{strategy}"
            keys = [*RANDOM, f"distributed.strategy={strategy}", f"run.name={name}"]
            launch(SMOKE, *keys, cwd=work, processes=processes)
            done[strategy, processes] = work / "runs" / "smoke" / name
        return done[strategy, processes]

    return trained


# Step 6 is in the middle of the second epoch. In the first case only the resumed run has workers.
@pytest.mark.parametrize(
    ("strategy", "processes", "step", "workers"),
    [
        ("ddp", 1, 6, 2),
        *(
            pytest.param(strategy, 2, step, workers, marks=long)
            for strategy, step, workers in [
                ("ddp", 6, 0),
                ("ddp", 8, 2),
                ("zero1", 6, 0),
                ("zero2", 6, 0),
                ("zero3", 6, 2),
                ("fsdp", 6, 0),
            ]
        ),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_run(
    random_run: Callable[..., Path], work: Path, strategy: str, processes: int, step: int, workers: int
) -> None:
    finished = random_run(strategy, processes)
    resumed = died_at(finished, step, f"{finished.name}-from-{step}")
    keys = [*RANDOM, f"distributed.strategy={strategy}", f"data.num_workers={workers}", f"run.name={resumed.name}"]
    done = launch(SMOKE, *keys, "resume=auto", cwd=work, processes=processes)
    assert re.search(rf"resumed from .*/step-{step}, step {step} of 12$", done.stdout, re.MULTILINE)
    same_bits(finished, resumed)


@dataclass(frozen=True)
class Layout:
    strategy: str
    processes: int

    def __str__(self) -> str:
        return f"{self.processes}-{self.strategy}"


MOVES = [("zero3", 2, "ddp", 1)]
LONG_MOVES = [
    ("ddp", 1, "ddp", 2),
    ("ddp", 2, "ddp", 1),
    ("zero1", 2, "ddp", 2),
    ("zero2", 2, "ddp", 1),
    ("fsdp", 2, "ddp", 1),
    ("ddp", 1, "zero1", 2),
    ("ddp", 2, "zero2", 2),
    ("ddp", 2, "zero3", 2),
    ("ddp", 1, "fsdp", 2),
    ("zero2", 2, "zero2", 1),
    ("zero3", 1, "zero3", 2),
    ("zero3", 2, "zero3", 4),
    ("zero3", 2, "fsdp", 2),
    ("fsdp", 2, "zero1", 2),
    ("fsdp", 2, "fsdp", 4),
]
# How test_strategies.py trains them as well, so that one run serves both.
AS_THERE: dict[tuple[str, int], dict[str, Any]] = {
    ("ddp", 1): {},
    ("ddp", 2): {"words": ("distributed.strategy=ddp", "train.micro_batch_size=1")},
    ("zero1", 2): {"words": ("distributed.strategy=zero1", "train.micro_batch_size=4")},
    ("zero2", 2): {
        "words": ("distributed.strategy=zero2", "train.micro_batch_size=4"),
        "flags": ("--use_deepspeed", "--zero_stage", "2"),
    },
    ("zero3", 1): {"words": ("distributed.strategy=zero3", "train.micro_batch_size=8")},
    ("zero3", 2): {"words": ("distributed.strategy=zero3", "train.micro_batch_size=4"), "by": "deepspeed"},
    ("fsdp", 2): {"words": ("distributed.strategy=fsdp", "train.micro_batch_size=1"), "by": "torchrun"},
}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        pytest.param(Layout(*move[:2]), Layout(*move[2:]), marks=[] if move in MOVES else long)
        for move in [*MOVES, *LONG_MOVES]
    ],
    ids=str,
)
def test_a_run_resumes_under_another_strategy_and_on_other_processes(
    exact_run: Callable[..., Path], work: Path, before: Layout, now: Layout
) -> None:
    one, how = exact_run(), dict(AS_THERE[before.strategy, before.processes])
    finished = exact_run(*how.pop("words", ()), processes=before.processes, **how)
    moved = died_at(finished, 15, f"moved-{before}-to-{now}")
    keys = [*EXACT, f"distributed.strategy={now.strategy}", f"run.name={moved.name}", "resume=auto"]
    done = launch(SMOKE, *keys, cwd=work, processes=now.processes)
    line = next(line for line in done.stdout.splitlines() if line.startswith("resumed from"))
    if before.processes != now.processes:
        assert f"processes was {before.processes}, now {now.processes}" in line
    losses, others = records(one, "train/loss"), records(moved, "train/loss")
    assert losses.keys() == others.keys() and len(losses) == 24
    worst = max(abs(losses[step] - others[step]) for step in losses)
    assert worst < LOSS_NOISE, f"losses differ by {worst}"
    for name in ("val/bleu_4", "val/cider", "final/test/rouge_l", "train/lr"):
        assert records(one, name) == records(moved, name)
    first, second = (checkpoints_of(run / "checkpoints")[0] for run in (one, moved))
    tensors, other_tensors = (load_file(path / "training.safetensors") for path in (first, second))
    assert tensors.keys() == other_tensors.keys()
    kinds = {name.split("/")[0] for name in tensors}
    assert {"weights", "ema", "optimizer", "scalars"} <= kinds
    for name in tensors:
        if name.endswith(".k_proj.bias"):
            continue  # softmax ignores it: its gradient is noise, of which Adam makes steps
        torch.testing.assert_close(tensors[name], other_tensors[name], atol=1e-4, rtol=1e-3, msg=name)
    state, other_state = (json.loads((path / "trainer.json").read_text()) for path in (first, second))
    keys = ("step", "epoch", "best_score", "best_step", "validations_since_best", "val_scores", "recipe")
    assert {name: state[name] for name in keys} == {name: other_state[name] for name in keys}


@long
def test_a_run_resumed_by_its_folder_or_from_an_older_checkpoint_equals_an_uninterrupted_run(
    random_run: Callable[..., Path], work: Path
) -> None:
    finished = random_run()
    for named in ("", "checkpoints/step-4"):
        run = died_at(finished, 9, f"named-{Path(named).name or 'run'}")
        launch(SMOKE, *RANDOM, f"resume={run / named}", cwd=work)
        same_bits(finished, run)


@long
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(random_run: Callable[..., Path], work: Path) -> None:
    finished = random_run()
    run = died_at(finished, 9, "damaged")
    flip(run / "checkpoints" / "step-9" / "training.safetensors")
    done = launch(SMOKE, *RANDOM, "run.name=damaged", "resume=auto", cwd=work)
    assert "step-8, since a newer checkpoint cannot be used" in done.stdout
    same_bits(finished, run)


# Opening a run's folder, without training.


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.fixture
def stopped(random_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A run of steps 3 to 12, to be damaged."""
    shutil.copytree(random_run(), tmp_path / "smoke" / "copy")
    return tmp_path / "smoke" / "copy"


def recipe_of(run: Path, *keys: str) -> Recipe:
    return load_recipe(SMOKE, [*RANDOM, f"run.root={run.parent.parent}", f"run.name={run.name}", "resume=auto", *keys])


def opened(run: Path, *keys: str) -> OpenedRun:
    return open_run(recipe_of(run, *keys))


INSIDE = ("training.safetensors", "trainer.json", "model/model.safetensors", "model/tokenizer.json")


@pytest.mark.parametrize("name", [*INSIDE, "manifest.json"])
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink], ids=["flipped", "truncated", "missing"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_resumed(
    stopped: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], name: str
) -> None:
    newest, before = checkpoints_of(stopped / "checkpoints")[:2]
    damage(newest / name)
    found = opened(stopped)
    assert found.checkpoint == before and found.train_state is not None
    assert f"step-{found.train_state.step}" == before.name
    unfinished = name == "manifest.json" and damage is Path.unlink  # a save that did not end is no checkpoint
    if not unfinished:
        output = capsys.readouterr().out
        assert f"warning: resuming from {before}" in output and "[damaged-checkpoint]" in output
        # A manifest with another hash looks like a file with other content.
        assert str(newest if name == "manifest.json" else newest / name) in output


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_each_is_named(stopped: Path) -> None:
    found = checkpoints_of(stopped / "checkpoints")
    for checkpoint in found:
        flip(checkpoint / "training.safetensors")
    with problem("damaged-checkpoint", kind=CheckpointError) as problems:
        opened(stopped)
    assert {each.place for each in problems} == {str(checkpoint / "training.safetensors") for checkpoint in found}


def test_a_named_checkpoint_is_not_replaced_by_another(stopped: Path) -> None:
    newest, before = checkpoints_of(stopped / "checkpoints")[:2]
    truncate(newest / "training.safetensors")
    with problem("damaged-checkpoint", place=str(newest), kind=CheckpointError) as problems:
        opened(stopped, f"resume={newest}")
    assert f"resume={before}" in problems[0].hint


@pytest.mark.parametrize(
    ("key", "difference"),
    [
        ("optimizer.lr=2e-2", "optimizer.lr was 0.01, now 0.02"),
        ("train.batch_size=4", "train.batch_size was 8, now 4"),
        ("train.epochs=4", "train.epochs was 3, now 4"),
        ("train.ema_decay=null", "train.ema_decay was 0.9, now null"),
        ("train.precision=bf16", 'train.precision was "auto", now "bf16"'),
        ("losses.topic.weight=0.5", "losses.topic.weight was 0.3, now 0.5"),
    ],
)
def test_a_changed_recipe_is_refused_unless_the_change_is_allowed(stopped: Path, key: str, difference: str) -> None:
    with problem("recipe-differs", place="step-12", kind=CheckpointError) as problems:
        opened(stopped, key)
    allowed = f"resume_ignore=[{key.split('=')[0]}]"
    assert difference in problems[0].found and f"'{allowed}'" in problems[0].hint
    shutil.copytree(stopped, stopped.with_name("allowed"))
    assert opened(stopped.with_name("allowed"), key, allowed).checkpoint is not None


def test_allowing_one_change_does_not_allow_another(stopped: Path) -> None:
    with problem("recipe-differs", kind=CheckpointError) as problems:
        opened(stopped, "optimizer.lr=2e-2", "train.max_grad_norm=2", "resume_ignore=[optimizer]")
    assert "train.max_grad_norm was" in problems[0].found and "optimizer.lr" not in problems[0].found


def test_settings_of_speed_and_paths_may_change(stopped: Path) -> None:
    keys = [
        "distributed.strategy=zero3", "distributed.activation_checkpointing=true", "distributed.timeout=5",
        "checkpoint.every_steps=7", "checkpoint.keep_last=1", "checkpoint.background=false", "train.micro_batch_size=2",
        "data.num_workers=3", "data.cache_dir=elsewhere",
    ]  # fmt: skip
    found = opened(stopped, *keys)
    assert found.checkpoint is not None and found.checkpoint.name == "step-12"


HOLD_RUN = """
import sys
from framework.recipe import load_recipe
from framework.run.folder import open_run
print(open_run(load_recipe(sys.argv[1], sys.argv[2:])).folder, flush=True)
sys.stdin.read()
"""


def test_a_run_that_another_process_writes_to_is_refused(stopped: Path) -> None:
    words = [*RANDOM, f"run.root={stopped.parent.parent}", f"run.name={stopped.name}", "resume=auto"]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_RUN, SMOKE, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline().strip() == str(stopped)
        with problem("in-use", place=str(stopped)) as problems:
            opened(stopped)
        assert f"pid {holder.pid} on " in problems[0].found
    finally:
        holder.kill()
        holder.wait()
    assert opened(stopped).checkpoint is not None


# Checkpoints from an unknown source.


class Payload:
    """What a pickle can carry: this one leaves a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_checkpoint_that_carries_code_is_refused_and_the_code_is_not_run(
    stopped: Path, work: Path, tmp_path: Path, form: str
) -> None:
    newest, trap = checkpoints_of(stopped / "checkpoints")[0], tmp_path / "sprung"
    file = newest / "training.safetensors"
    if form == "torch":
        torch.save({"weights/x": Payload(trap)}, file)
        torch.load(io.BytesIO(file.read_bytes()), weights_only=False)
    else:
        file.write_bytes(pickle.dumps(Payload(trap)))
        pickle.loads(file.read_bytes())
    assert trap.is_dir(), "the trap works"
    trap.rmdir()
    write_manifest(newest)
    assert verify_checkpoint(newest) is None
    with problem("damaged-checkpoint", place="training.safetensors", kind=CheckpointError):
        SavedState(newest)
    assert not trap.exists()


@long
def test_a_run_from_a_checkpoint_that_carries_code_ends_with_a_message(
    random_run: Callable[..., Path], work: Path, tmp_path: Path
) -> None:
    run, trap = died_at(random_run(), 9, "trapped"), tmp_path / "sprung"
    newest = checkpoints_of(run / "checkpoints")[0]
    torch.save({"weights/x": Payload(trap)}, newest / "training.safetensors")
    write_manifest(newest)
    done = launch(SMOKE, *RANDOM, "run.name=trapped", "resume=auto", cwd=work, check=False)
    assert done.returncode == 2 and "training.safetensors" in done.stderr and "Traceback" not in done.stderr
    assert not trap.exists()
