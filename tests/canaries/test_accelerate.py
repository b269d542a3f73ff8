"""Details of accelerate and its launchers that framework/distributed depends on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.state import AcceleratorState

from framework.distributed.launch import LAUNCHER_ONLY

WORKER = str(Path(__file__).with_name("accelerate_worker.py"))
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
TWO = ["--num_processes", "2", "--main_process_port", "0"]
ZERO3 = ["--use_deepspeed", "--zero_stage", "3", "--gradient_clipping", "0.5", "--gradient_accumulation_steps", "4"]
OFFLOAD = ["--offload_optimizer_device", "cpu", "--offload_param_device", "cpu"]
OURS = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_")

LAUNCHES = {
    "zero3": [*ACCELERATE, *ZERO3, *OFFLOAD, "--mixed_precision", "bf16", *TWO, WORKER, "start", *LAUNCHER_ONLY],
    "torchrun": [*TORCHRUN, WORKER, "start", *LAUNCHER_ONLY],
    "alone": [*TORCHRUN, WORKER, "alone"],
}
STARTED = ("zero3", "torchrun")
RESTARTED = {
    "restarted_by_torchrun": [*TORCHRUN, "--max_restarts", "1", WORKER, "fail_once"],
    "restarted_by_accelerate": [*ACCELERATE, "--multi_gpu", "--max_restarts", "1", *TWO, WORKER, "fail_once"],
}
Found = dict[str, list[dict[str, Any]]]  # by launch, of each process


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run_all(LAUNCHES, tmp_path_factory.mktemp("launches"))


@pytest.fixture(scope="module")
def found_in_restarts(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run_all(RESTARTED, tmp_path_factory.mktemp("restarts"))


def run_all(launches: dict[str, list[str]], folder: Path) -> Found:
    """Starts all launches at once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    started, everything = {}, {}
    for name, words in launches.items():
        more = {} if name == "alone" else {"ACCELERATE_USE_CPU": "true"}
        if name == "torchrun":
            more |= fsdp_variables()  # as accelerate launch --use_fsdp does
        with (folder / f"{name}.out").open("w") as out, (folder / f"{name}.err").open("w") as err:
            started[name] = subprocess.Popen(words, env={**environment, **more}, stdout=out, stderr=err)
    try:
        for name, process in started.items():
            code = process.wait(timeout=240)
            assert code == 0, (name, (folder / f"{name}.err").read_text()[-4000:])
            lines = (folder / f"{name}.out").read_text().splitlines()
            everything[name] = [json.loads(line.split(" ", 1)[1]) for line in lines if line.startswith("found ")]
    finally:
        for process in started.values():
            process.terminate()  # a launcher ends its processes
    return everything


def exported(*words: str) -> dict[str, str]:
    """The environment that `accelerate launch` gives to the one process that it starts, or to torchrun, see STARTS."""
    environments: list[dict[str, str]] = []

    class Process:
        returncode = 0

        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            environments.append({**env, "STARTS": "one"})

        def wait(self) -> None:
            pass

    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - clean.keys():
            patch.delenv(name)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr("accelerate.commands.launch.subprocess.Popen", Process)
        patch.setattr(
            "torch.distributed.run.run", lambda args: environments.append({**os.environ, "STARTS": "torchrun"})
        )
        launch_command(launch_command_parser().parse_args([*words, "launch.py"]))
    [environment] = environments
    return environment


def fsdp_variables() -> dict[str, str]:
    variables = exported("--use_fsdp", *TWO)
    return {name: value for name, value in variables.items() if name.startswith(("ACCELERATE_USE_FSDP", "FSDP_"))}


def test_accelerate_launch_exports_mixed_precision_and_thread_count_by_default() -> None:
    """So "no" conflicts with no recipe, and one thread is not what the user wants."""
    variables = exported()
    assert variables["ACCELERATE_MIXED_PRECISION"] == "no" and variables["OMP_NUM_THREADS"] == "1"
    assert variables["ACCELERATE_DYNAMO_BACKEND"] == "NO"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in variables and "ACCELERATE_USE_DEEPSPEED" not in variables
    assert "WORLD_SIZE" not in variables
    assert exported(*TWO, "--num_cpu_threads_per_process", "2")["OMP_NUM_THREADS"] == "2"


def test_two_processes_without_the_multi_gpu_flag_silently_become_one() -> None:
    """So launcher_conflicts.py reads the launcher's command line."""
    assert exported(*TWO)["STARTS"] == "one" and exported("--multi_gpu", *TWO)["STARTS"] == "torchrun"
    assert "WORLD_SIZE" not in exported(*TWO)


def test_accelerate_exports_deepspeed_flags_under_these_names(found: Found) -> None:
    variables = found["zero3"][0]["environment"]
    assert variables["ACCELERATE_USE_DEEPSPEED"] == "true" and variables["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert variables["ACCELERATE_GRADIENT_CLIPPING"] == "0.5"
    assert variables["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "4"
    assert variables["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "cpu"
    assert variables["ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"] == "cpu"
    assert variables["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_default_deepspeed_flags_conflict_with_nothing(tmp_path: Path) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"train_batch_size": 2, "zero_optimization": {"stage": 2}}))
    variables = exported("--use_deepspeed", "--deepspeed_config_file", str(file), "--num_processes", "1")
    assert variables["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == str(file)
    assert variables.get("ACCELERATE_GRADIENT_CLIPPING", "none") == "none"
    assert variables.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") == "none"
    assert variables.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none") == "none"


def test_accelerate_exports_the_fsdp_flag_under_these_names(found: Found) -> None:
    variables = found["torchrun"][0]["environment"]
    assert variables["ACCELERATE_USE_FSDP"] == "true" and variables["FSDP_OFFLOAD_PARAMS"] == "false"


@pytest.mark.parametrize("launch", STARTED)
def test_variables_of_a_strategy_have_no_effect_once_removed(found: Found, launch: str) -> None:
    assert len(found[launch]) == 2
    for each in found[launch]:
        assert each["plugins"] == [False, False] and each["wrapper"] == "DistributedDataParallel"
        assert each["precision"] == "no" and each["accumulation"] == 1


@pytest.mark.parametrize("launch", STARTED)
def test_two_cpu_processes_with_a_backend_form_a_group_with_its_timeout(found: Found, launch: str) -> None:
    for each in found[launch]:
        assert each["type"] == "MULTI_CPU" and each["processes"] == 2
        assert each["backend"] == "gloo" and each["timeout"] == 77


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without GPU")
def test_two_cpu_processes_without_a_backend_form_no_group(found: Found) -> None:
    assert [each["processes"] for each in found["alone"]] == [1, 1]


def test_one_process_with_a_backend_is_refused() -> None:
    AcceleratorState._reset_state(True)
    try:
        with pytest.raises(ValueError, match="process group"):
            Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    finally:
        AcceleratorState._reset_state(True)


@pytest.mark.parametrize("launch", STARTED)
def test_buffers_stay_with_each_process_and_gradients_are_averaged(found: Found, launch: str) -> None:
    by_rank = {each["environment"]["RANK"]: each for each in found[launch]}
    assert [by_rank[rank]["buffer"] for rank in ("0", "1")] == [0, 1]
    assert {each["bias_gradient"] for each in by_rank.values()} == {3}
    assert [by_rank[rank]["unsynced"] for rank in ("0", "1")] == [3, 4]  # no_sync adds the process's own gradient


@pytest.mark.parametrize("launch", STARTED)
def test_processes_find_one_another_through_the_launchers_store(found: Found, launch: str) -> None:
    for each in found[launch]:
        assert each["seen"] == "here"
        assert each["environment"]["LOCAL_WORLD_SIZE"] == "2" and each["environment"]["GROUP_WORLD_SIZE"] == "1"


@pytest.mark.long
@pytest.mark.parametrize("launch", RESTARTED)
def test_a_launcher_counts_restarts_and_stays_the_same_process(found_in_restarts: Found, launch: str) -> None:
    """At least one process of the first attempt prints; its end may end the other before it does."""
    first = [each for each in found_in_restarts[launch] if each["environment"]["TORCHELASTIC_RESTART_COUNT"] == "0"]
    second = [each for each in found_in_restarts[launch] if each["environment"]["TORCHELASTIC_RESTART_COUNT"] == "1"]
    assert first and len(second) == 2
    assert {each["environment"]["TORCHELASTIC_MAX_RESTARTS"] for each in found_in_restarts[launch]} == {"1"}
    assert len({each["environment"]["TORCHELASTIC_RUN_ID"] for each in found_in_restarts[launch]}) == 1
    assert len({each["parent"] for each in found_in_restarts[launch]}) == 1


@pytest.mark.long
def test_a_launch_without_a_name_has_the_id_none(found_in_restarts: Found) -> None:
    """So launch_id uses the launcher's process."""
    assert found_in_restarts["restarted_by_accelerate"][0]["environment"]["TORCHELASTIC_RUN_ID"] == "none"
    assert found_in_restarts["restarted_by_torchrun"][0]["environment"]["TORCHELASTIC_RUN_ID"] != "none"


def test_a_launch_has_no_restarts_by_default(found: Found) -> None:
    assert found["zero3"][0]["environment"]["TORCHELASTIC_MAX_RESTARTS"] == "0"


def test_backward_does_not_divide_and_the_optimizer_steps_every_time() -> None:
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=1.0))
    for expected in (-1.0, -3.0):
        accelerator.backward((weight * 2).sum())
        optimizer.step()
        optimizer.zero_grad()
        assert weight.item() == expected


def test_the_learning_rate_set_on_a_prepared_optimizer_is_the_one_it_uses() -> None:
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=1.0))
    optimizer.param_groups[0]["lr"] = 0.25
    accelerator.backward(weight.sum())
    optimizer.step()
    assert weight.item() == 0.75


def test_clipping_returns_the_norm_before_clipping_and_an_infinite_limit_clips_nothing() -> None:
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.ones(4))
    for limit, left in ((float("inf"), 2.0), (0.5, 0.5)):
        weight.grad = torch.ones(4)
        assert float(accelerator.clip_grad_norm_([weight], limit)) == 2.0
        assert float(weight.grad.norm()) == pytest.approx(left, rel=1e-4)
