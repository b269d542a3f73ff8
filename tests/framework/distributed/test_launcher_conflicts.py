"""A launcher's setting that differs from the recipe is refused, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from harness import ROOT, launch, problem

from framework.distributed.launch import start_accelerator
from framework.distributed.launcher_conflicts import launcher_conflicts
from framework.recipe import load_recipe
from framework.runtime.processes import TASK_COUNTS

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
ZERO2 = ["distributed.strategy=zero2"]
FSDP, BY_FSDP = {"ACCELERATE_USE_FSDP": "true"}, ["distributed.strategy=fsdp"]
# What accelerate launch exports, keys of the recipe, the place of the conflict, and the value of the launcher.
CONFLICTS: list[tuple[dict[str, str], Sequence[str], str, str]] = [
    ({"GRADIENT_ACCUMULATION_STEPS": "4"}, [], "train.micro_batch_size", "=4"),
    ({"MIXED_PRECISION": "bf16"}, ["train.precision=fp32"], "train.precision", "bf16"),
    ({"MIXED_PRECISION": "fp16"}, ["train.precision=bf16"], "train.precision", "fp16"),
    ({"MIXED_PRECISION": "bf16"}, [], "train.precision", "auto (fp32 on this machine)"),
    (DEEPSPEED, [], "distributed.strategy", "zero2"),
    (DEEPSPEED, ["distributed.strategy=zero3"], "distributed.strategy", "zero2"),
    ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, ZERO2, "distributed.strategy", "zero0"),
    ({**DEEPSPEED, "ACCELERATE_USE_DEEPSPEED": "True"}, [], "distributed.strategy", "zero2"),
    (FSDP, ["distributed.strategy=ddp"], "distributed.strategy", "fsdp"),
    ({"FSDP_OFFLOAD_PARAMS": "true", **FSDP}, BY_FSDP, "distributed.offload", "fsdp_offload_params"),
    (
        {"FSDP_ACTIVATION_CHECKPOINTING": "true", **FSDP},
        BY_FSDP,
        "distributed.activation_checkpointing",
        "fsdp_activation_checkpointing",
    ),
    ({"DEEPSPEED_CONFIG_FILE": "mine.json", **DEEPSPEED}, ZERO2, "distributed.deepspeed_config", "mine.json"),
    ({"GRADIENT_CLIPPING": "0.5", **DEEPSPEED}, ZERO2, "train.max_grad_norm", "=0.5"),
    ({"GRADIENT_CLIPPING": "0.5", **DEEPSPEED}, [*ZERO2, "train.max_grad_norm=null"], "train.max_grad_norm", "None"),
    ({"DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu", **DEEPSPEED}, ZERO2, "distributed.offload", "optimizer"),
    ({"DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu", **DEEPSPEED}, ZERO2, "distributed.offload", "all"),
]
UNSUPPORTED = {"DYNAMO_BACKEND": "INDUCTOR", "USE_MEGATRON_LM": "true", "USE_PARALLELISM_CONFIG": "true"}


def export(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name if name.startswith(("ACCELERATE_", "FSDP_")) else f"ACCELERATE_{name}", value)


@pytest.mark.parametrize(("variables", "keys", "place", "value"), CONFLICTS)
def test_a_conflict_is_refused_with_both_values(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], keys: Sequence[str], place: str, value: str
) -> None:
    recipe = load_recipe(SMOKE, keys)
    export(monkeypatch, variables)
    with problem("conflicting-settings", place=place) as found:
        start_accelerator(recipe)
    assert any(value in str(each) for each in found)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_launcher_settings_that_no_recipe_has_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    export(monkeypatch, {name: UNSUPPORTED[name]})
    with problem("unsupported", place="launcher") as found:
        start_accelerator(load_recipe(SMOKE))
    assert f"ACCELERATE_{name}={UNSUPPORTED[name]}" in found[0].found


def test_equal_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    export(monkeypatch, {"MIXED_PRECISION": "no", "GRADIENT_ACCUMULATION_STEPS": "1", "DYNAMO_BACKEND": "NO"})
    accelerator = start_accelerator(load_recipe(SMOKE, ["train.precision=fp32"]))
    assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == ("no", 1)


class Launcher:
    """The parent process, as psutil shows it."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __call__(self, pid: int) -> Launcher:
        return self

    def cmdline(self) -> list[str]:
        return ["python", "/bin/accelerate", "launch", *self.words, "launch.py", "smoke"]

    def environ(self) -> dict[str, str]:
        return {}


@pytest.mark.parametrize(
    ("flags", "keys", "code", "place"),
    [
        # accelerate launch exports the same for this flag as without it, and nothing at all for the others.
        (["--mixed_precision", "no"], ["train.precision=bf16"], "conflicting-settings", "train.precision"),
        (["--mixed-precision=no"], ["train.precision=bf16"], "conflicting-settings", "train.precision"),
        (["--gradient_accumulation_steps", "4"], [], "conflicting-settings", "train.micro_batch_size"),
        (["--num_processes", "2"], [], "ignored-setting", "launcher"),
    ],
)
def test_flags_that_the_launcher_does_not_export_are_read_from_its_command_line(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], keys: list[str], code: str, place: str
) -> None:
    recipe = load_recipe(SMOKE, keys)
    monkeypatch.setattr(psutil, "Process", Launcher(*flags))
    with problem(code, place=place):
        start_accelerator(recipe)


@pytest.mark.parametrize("flags", [[], ["--config_file", "mine.yaml"]])
def test_the_configuration_file_of_accelerate_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: list[str]
) -> None:
    (tmp_path / "default_config.yaml").touch()
    monkeypatch.setattr("accelerate.commands.config.default_config_file", str(tmp_path / "default_config.yaml"))
    monkeypatch.setattr(psutil, "Process", Launcher(*flags))
    export(monkeypatch, {"MIXED_PRECISION": "fp16"})
    with problem("conflicting-settings", place="train.precision") as found:
        start_accelerator(load_recipe(SMOKE))
    assert (flags[-1] if flags else str(tmp_path / "default_config.yaml")) in found[0].hint


def test_a_launch_names_all_conflicts_at_once_and_writes_nothing(work: Path) -> None:
    """Flags of accelerate launch that are not exported, and two processes without --multi_gpu, which are one."""
    flags = ["--mixed_precision", "no", "--gradient_accumulation_steps", "4"]
    keys = ["train.precision=bf16", "train.micro_batch_size=4", "run.name=conflicts"]
    done = launch(SMOKE, *keys, cwd=work, processes=2, by="accelerate", flags=flags, check=False)
    assert done.returncode != 0
    for place, code in [
        ("train.precision", "conflicting-settings"),
        ("train.micro_batch_size", "conflicting-settings"),
        ("launcher", "ignored-setting"),
    ]:
        assert any(place in line and f"[{code}]" in line for line in done.stderr.splitlines()), done.stderr
    assert "launch.py launch --num_processes 2" in done.stderr
    assert not (work / "runs" / "smoke" / "conflicts").exists()


@pytest.mark.parametrize("name", TASK_COUNTS)
def test_copies_of_a_command_without_a_launcher_are_refused_with_the_name_of_one(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "2")
    with problem("conflicting-settings", place="launcher") as found:
        start_accelerator(load_recipe(SMOKE))
    assert "torchrun" in found[0].hint and f"{name}=2" in found[0].found
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun of one process
    assert not list(launcher_conflicts(load_recipe(SMOKE)))


def test_a_step_of_one_task_in_a_job_of_many_may_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not list(launcher_conflicts(load_recipe(SMOKE)))
