"""A run that goes on is one that never stopped: on the same processes to the last bit, on others to float noise."""

from __future__ import annotations

import hashlib
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
from harness import EXACT, ROOT, launch, records
from safetensors.torch import load_file

from framework.checkpoint.format import CheckpointError, SavedState, checkpoints_of, verify_checkpoint
from framework.recipe import Recipe, load_recipe
from framework.run.folder import OpenedRun, open_run

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
LOSS_NOISE = 1e-5  # as in test_strategies.py
long = pytest.mark.long


def died_at(whole: Path, step: int, name: str) -> Path:
    """A copy of a finished run, as if it had been killed some steps after the checkpoint of `step`: its metrics know
    more steps than the checkpoint holds.
    """
    run = whole.with_name(name)
    shutil.copytree(whole, run)
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
    """Records, the last checkpoint with all its bookkeeping, the model, and what it writes."""
    for name in ("train/loss", "train/gradient_norm", "train/lr", "val/bleu_4", "val/cider", "final/test/rouge_l"):
        assert records(one, name) == records(other, name), name
    first, second = (checkpoints_of(run / "checkpoints")[0] for run in (one, other))
    assert first.name == second.name
    tensors, others = (load_file(path / "training.safetensors") for path in (first, second))
    assert tensors.keys() == others.keys()
    assert not [name for name in tensors if not torch.equal(tensors[name], others[name])]
    told, other_told = (json.loads((path / "trainer.json").read_text()) for path in (first, second))
    assert told == other_told and told["best_step"] is not None and told["kept"]
    for name in ("model/model.safetensors", "predictions/val.jsonl", "predictions/test.jsonl", "scores.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


# Everything random is on: dropout, augmentation, the order of the exams.
RANDOM = (
    "data.dataset.exams=33", "data.dataset.val_exams=7", "data.dataset.test_exams=1", "distiller.topics=2",
    "train.epochs=3", "evaluate.max_length=60", "optimizer.lr=1e-2", "model.decoder.dropout=0.2",
    "data.augment={name: jitter}", "train.ema_decay=0.9", "checkpoint.every_steps=3", "checkpoint.keep_last=99",
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


# Step 6 is in the middle of the second epoch. In the first case the whole run loads exams by itself.
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
def test_a_resumed_run_equals_one_that_never_stopped(
    random_run: Callable[..., Path], work: Path, strategy: str, processes: int, step: int, workers: int
) -> None:
    whole = random_run(strategy, processes)
    resumed = died_at(whole, step, f"{whole.name}-from-{step}")
    keys = [*RANDOM, f"distributed.strategy={strategy}", f"data.num_workers={workers}", f"run.name={resumed.name}"]
    done = launch(SMOKE, *keys, "resume=auto", cwd=work, processes=processes)
    assert re.search(rf"resumed from .*/step-{step}, step {step} of 12$", done.stdout, re.MULTILINE)
    same_bits(whole, resumed)


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
def test_a_run_goes_on_under_another_strategy_and_on_other_processes(
    exact_run: Callable[..., Path], work: Path, before: Layout, now: Layout
) -> None:
    one, how = exact_run(), dict(AS_THERE[before.strategy, before.processes])
    whole = exact_run(*how.pop("words", ()), processes=before.processes, **how)
    moved = died_at(whole, 15, f"moved-{before}-to-{now}")
    keys = [*EXACT, f"distributed.strategy={now.strategy}", f"run.name={moved.name}", "resume=auto"]
    done = launch(SMOKE, *keys, cwd=work, processes=now.processes)
    line = next(line for line in done.stdout.splitlines() if line.startswith("resumed from"))
    if before.processes != now.processes:
        assert f"processes {before.processes} then, {now.processes} now" in line
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
        if name.endswith(".key.bias"):
            continue  # softmax takes no notice of it: its gradient is noise, and Adam makes steps of any noise
        torch.testing.assert_close(tensors[name], other_tensors[name], atol=1e-4, rtol=1e-3, msg=name)
    told, other_told = (json.loads((path / "trainer.json").read_text()) for path in (first, second))
    kept = ("step", "epoch", "updates", "best", "best_step", "worse", "kept", "recipe")
    assert {name: told[name] for name in kept} == {name: other_told[name] for name in kept}


@long
def test_a_run_resumed_by_its_folder_or_by_an_older_checkpoint_ends_alike(
    random_run: Callable[..., Path], work: Path
) -> None:
    whole = random_run()
    for named in ("", "checkpoints/step-4"):
        run = died_at(whole, 9, f"named-{Path(named).name or 'run'}")
        launch(SMOKE, *RANDOM, f"resume={run / named}", cwd=work)
        same_bits(whole, run)


@long
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(random_run: Callable[..., Path], work: Path) -> None:
    whole = random_run()
    run = died_at(whole, 9, "damaged")
    flip(run / "checkpoints" / "step-9" / "training.safetensors")
    done = launch(SMOKE, *RANDOM, "run.name=damaged", "resume=auto", cwd=work)
    assert "step-8, since newer ones cannot be used" in done.stdout
    same_bits(whole, run)


# What is found when a run's folder is opened, without training.


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
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
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "truncated", "missing"])
def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_taken(
    stopped: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], name: str
) -> None:
    newest, before = checkpoints_of(stopped / "checkpoints")[:2]
    damage(newest / name)
    found = opened(stopped)
    assert found.checkpoint == before and found.progress is not None and f"step-{found.progress.step}" == before.name
    unlisted = name == "manifest.json" and damage is Path.unlink  # then it is a save that broke off, and no checkpoint
    if not unlisted:
        said = capsys.readouterr().out
        assert f"warning: going on from {before}" in said
        # A manifest with another hash in it looks like a file with another content.
        assert str(newest if name == "manifest.json" else newest / name) in said


def test_a_run_without_one_whole_checkpoint_is_refused_and_each_is_named(stopped: Path) -> None:
    found = checkpoints_of(stopped / "checkpoints")
    for checkpoint in found:
        flip(checkpoint / "training.safetensors")
    with pytest.raises(CheckpointError, match=rf"none of its {len(found)} checkpoints can be used") as caught:
        opened(stopped)
    assert all(f"{checkpoint / 'training.safetensors'}: damaged" in str(caught.value) for checkpoint in found)


def test_a_named_checkpoint_is_not_replaced_by_another(stopped: Path) -> None:
    newest, before = checkpoints_of(stopped / "checkpoints")[:2]
    cut(newest / "training.safetensors")
    with pytest.raises(CheckpointError, match=rf"damaged, .*\. Others of this run: resume={before}"):
        opened(stopped, f"resume={newest}")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optimizer.lr=2e-2", r"optimizer\.lr: 0\.01 then, 0\.02 now"),
        ("train.batch_size=4", r"train\.batch_size: 8 then, 4 now"),
        ("train.epochs=4", r"train\.epochs: 3 then, 4 now"),
        ("train.ema_decay=null", r"train\.ema: 0\.9 then, null now"),
        ("train.precision=bf16", r"train\.precision: \"auto\" then, \"bf16\" now"),
        ("losses.topic.weight=0.5", r"losses\.topic\.weight: 0\.3 then, 0\.5 now"),
    ],
)
def test_a_changed_recipe_is_refused_with_the_difference_unless_told(stopped: Path, key: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(stopped, key)
    way_out = f"resume_ignore=[{key.split('=')[0]}]"
    assert f"'{way_out}'" in str(caught.value)
    shutil.copytree(stopped, stopped.with_name("told"))
    assert opened(stopped.with_name("told"), key, way_out).checkpoint is not None


def test_telling_one_difference_does_not_pass_another(stopped: Path) -> None:
    with pytest.raises(CheckpointError, match=r"train\.clip: 1\.0 then, 2\.0 now") as caught:
        opened(stopped, "optimizer.lr=2e-2", "train.max_grad_norm=2", "resume_ignore=[optimizer]")
    assert "optimizer.lr" not in str(caught.value)


def test_speed_and_places_are_no_change(stopped: Path) -> None:
    keys = [
        "distributed.strategy=zero3", "distributed.activation_checkpointing=true", "distributed.timeout=5",
        "checkpoint.every_steps=7", "checkpoint.keep_last=1", "checkpoint.background=false", "train.micro_batch_size=2",
        "data.num_workers=3", "data.cache_dir=elsewhere",
    ]  # fmt: skip
    found = opened(stopped, *keys)
    assert found.checkpoint is not None and found.checkpoint.name == "step-12"


HOLDS = """
import sys
from framework.recipe import load_recipe
from framework.run.folder import open_run
print(open_run(load_recipe(sys.argv[1], sys.argv[2:])).folder, flush=True)
sys.stdin.read()
"""


def test_a_run_that_another_process_writes_to_is_refused_until_that_ends(stopped: Path) -> None:
    words = [*RANDOM, f"run.root={stopped.parent.parent}", f"run.name={stopped.name}", "resume=auto"]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, SMOKE, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline().strip() == str(stopped)
        with pytest.raises(ValueError, match=rf"another process is writing to this run \(pid {holder.pid} on "):
            opened(stopped)
    finally:
        holder.kill()
        holder.wait()
    assert opened(stopped).checkpoint is not None


# Checkpoints from who knows where.


class Payload:
    """What a pickle can carry: this one leaves a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.file),)


def list_anew(checkpoint: Path) -> None:
    """A manifest that fits whatever stands there now."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json"]
    rows = {
        path.relative_to(checkpoint).as_posix(): [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in files
    }
    (checkpoint / "manifest.json").write_text(json.dumps(rows))


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
    list_anew(newest)
    assert verify_checkpoint(newest) is None
    with pytest.raises(CheckpointError, match=r"training\.safetensors: "):
        SavedState(newest)
    assert not trap.exists()


@long
def test_a_run_refuses_a_checkpoint_that_carries_code_in_words(
    random_run: Callable[..., Path], work: Path, tmp_path: Path
) -> None:
    run, trap = died_at(random_run(), 9, "trapped"), tmp_path / "sprung"
    newest = checkpoints_of(run / "checkpoints")[0]
    torch.save({"weights/x": Payload(trap)}, newest / "training.safetensors")
    list_anew(newest)
    done = launch(SMOKE, *RANDOM, "run.name=trapped", "resume=auto", cwd=work, check=False)
    assert done.returncode == 2 and "training.safetensors" in done.stderr and "Traceback" not in done.stderr
    assert not trap.exists()
