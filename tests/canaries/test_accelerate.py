"""Inner details of accelerate and its launchers that framework/distributed/launch.py, ddp.py and watch.py lean on."""

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
from accelerate.state import AcceleratorState

from framework.distributed.launch import LAUNCHER_ONLY

WORKER = str(Path(__file__).with_name("accelerate_worker.py"))
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ONE, TWO = (["--num_processes", number, "--main_process_port", "0"] for number in "12")
ZERO3 = ["--use_deepspeed", "--zero_stage", "3", "--gradient_clipping", "0.5", "--gradient_accumulation_steps", "4"]
OFFLOAD = ["--offload_optimizer_device", "cpu", "--offload_param_device", "cpu"]
OURS = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_")

LAUNCHES = {
    "plain": [*ACCELERATE, WORKER, "tell"],
    "two_without_the_flag": [*ACCELERATE, "--num_processes", "2", "--num_cpu_threads_per_process", "2", WORKER, "tell"],
    "deepspeed_file": [*ACCELERATE, "--use_deepspeed", "--deepspeed_config_file", "FILE", *ONE, WORKER, "tell"],
    "zero3": [*ACCELERATE, *ZERO3, *OFFLOAD, "--mixed_precision", "bf16", *TWO, WORKER, "start", *LAUNCHER_ONLY],
    "fsdp": [*ACCELERATE, "--use_fsdp", *TWO, WORKER, "start", *LAUNCHER_ONLY],
    "torchrun": [*TORCHRUN, WORKER, "start"],
    "torchrun_untold": [*TORCHRUN, WORKER, "alone"],
}
RESTARTED = {
    "restarted_by_torchrun": [*TORCHRUN, "--max_restarts", "1", WORKER, "fail_once"],
    "restarted_by_accelerate": [*ACCELERATE, "--multi_gpu", "--max_restarts", "1", *TWO, WORKER, "fail_once"],
}
STARTED = ("zero3", "fsdp", "torchrun")
Told = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return what_they_tell(LAUNCHES, tmp_path_factory.mktemp("told"))


@pytest.fixture(scope="module")
def told_of_restarts(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return what_they_tell(RESTARTED, tmp_path_factory.mktemp("told_of_restarts"))


def what_they_tell(launches: dict[str, list[str]], folder: Path) -> Told:
    """What each process of each launch has told; two launches run at a time."""
    file = folder / "deepspeed.json"
    file.write_text(json.dumps({"train_batch_size": 2, "zero_optimization": {"stage": 2}}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    everything: Told = {}
    names = list(launches)
    for pair in (names[at : at + 2] for at in range(0, len(names), 2)):
        running = {}
        for name in pair:
            words = [str(file) if word == "FILE" else word for word in launches[name]]
            said = {} if name == "torchrun_untold" else {"ACCELERATE_USE_CPU": "true"}
            with (folder / f"{name}.out").open("w") as out, (folder / f"{name}.err").open("w") as err:
                running[name] = subprocess.Popen(words, env={**environment, **said}, stdout=out, stderr=err)
        for name, process in running.items():
            try:
                code = process.wait(timeout=240)
            finally:
                process.terminate()  # a launcher takes its processes with it
            assert code == 0, (name, (folder / f"{name}.err").read_text()[-4000:])
            lines = (folder / f"{name}.out").read_text().splitlines()
            everything[name] = [json.loads(line.split(" ", 1)[1]) for line in lines if line.startswith("told ")]
    return everything


def exported(told: Told, launch: str) -> dict[str, str]:
    return told[launch][0]["environment"]


def test_accelerate_launch_exports_a_precision_and_a_thread_though_none_was_asked_for(told: Told) -> None:
    """So "no" contradicts no recipe, and one thread is not what the user wants."""
    found = exported(told, "plain")
    assert found["ACCELERATE_MIXED_PRECISION"] == "no" and found["OMP_NUM_THREADS"] == "1"
    assert found["ACCELERATE_DYNAMO_BACKEND"] == "NO"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in found and "ACCELERATE_USE_DEEPSPEED" not in found
    assert "WORLD_SIZE" not in found
    assert exported(told, "two_without_the_flag")["OMP_NUM_THREADS"] == "2"


def test_two_processes_without_the_multi_gpu_flag_are_one_and_nothing_says_so(told: Told) -> None:
    """So launch.py reads the launcher's command line."""
    assert len(told["two_without_the_flag"]) == 1 and "WORLD_SIZE" not in exported(told, "two_without_the_flag")


def test_the_names_under_which_deepspeed_flags_arrive(told: Told) -> None:
    found = exported(told, "zero3")
    assert found["ACCELERATE_USE_DEEPSPEED"] == "true" and found["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert found["ACCELERATE_GRADIENT_CLIPPING"] == "0.5" and found["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "4"
    assert found["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "cpu"
    assert found["ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"] == "cpu"
    assert found["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert exported(told, "deepspeed_file")["ACCELERATE_DEEPSPEED_CONFIG_FILE"].endswith("deepspeed.json")


def test_deepspeed_flags_that_were_not_given_contradict_nothing(told: Told) -> None:
    found = exported(told, "deepspeed_file")
    assert found.get("ACCELERATE_GRADIENT_CLIPPING", "none") == "none"
    assert found.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") == "none"
    assert found.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none") == "none"


def test_the_name_under_which_the_fsdp_flag_arrives(told: Told) -> None:
    found = exported(told, "fsdp")
    assert found["ACCELERATE_USE_FSDP"] == "true" and found["FSDP_OFFLOAD_PARAMS"] == "false"


@pytest.mark.parametrize("launch", STARTED)
def test_what_the_launcher_said_of_a_strategy_has_no_say_once_it_is_taken_out(told: Told, launch: str) -> None:
    assert len(told[launch]) == 2
    for found in told[launch]:
        assert found["plugins"] == [False, False] and found["wrapper"] == "DistributedDataParallel"
        assert found["precision"] == "no" and found["accumulation"] == 1


@pytest.mark.parametrize("launch", STARTED)
def test_two_cpu_processes_that_are_told_of_gloo_are_two_and_wait_as_long_as_they_are_told(
    told: Told, launch: str
) -> None:
    for found in told[launch]:
        assert found["type"] == "MULTI_CPU" and found["processes"] == 2
        assert found["backend"] == "gloo" and found["timeout"] == 77


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without GPU")
def test_two_cpu_processes_that_are_not_told_believe_each_to_be_alone(told: Told) -> None:
    assert [found["processes"] for found in told["torchrun_untold"]] == [1, 1]


def test_a_single_process_must_not_be_told_of_gloo() -> None:
    AcceleratorState._reset_state(True)
    try:
        with pytest.raises(ValueError, match="process group"):
            Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    finally:
        AcceleratorState._reset_state(True)


@pytest.mark.parametrize("launch", STARTED)
def test_buffers_are_left_to_each_process_and_gradients_averaged(told: Told, launch: str) -> None:
    by_rank = {found["environment"]["RANK"]: found for found in told[launch]}
    assert [by_rank[rank]["buffer"] for rank in ("0", "1")] == [0, 1]
    assert {found["bias_gradient"] for found in by_rank.values()} == {3}
    assert [by_rank[rank]["unsynced"] for rank in ("0", "1")] == [3, 4]  # no_sync adds a gradient of one's own


@pytest.mark.parametrize("launch", STARTED)
def test_processes_find_one_another_through_the_store_of_the_launcher(told: Told, launch: str) -> None:
    for found in told[launch]:
        assert found["seen"] == "here"
        assert found["environment"]["LOCAL_WORLD_SIZE"] == "2" and found["environment"]["GROUP_WORLD_SIZE"] == "1"


@pytest.mark.long
@pytest.mark.parametrize("launch", RESTARTED)
def test_a_launcher_that_restarts_counts_it_and_stays_the_same_process(told_of_restarts: Told, launch: str) -> None:
    """Of the first attempt one process at least tells; its end may come before the other does."""
    first = [found for found in told_of_restarts[launch] if found["environment"]["TORCHELASTIC_RESTART_COUNT"] == "0"]
    second = [found for found in told_of_restarts[launch] if found["environment"]["TORCHELASTIC_RESTART_COUNT"] == "1"]
    assert first and len(second) == 2
    assert {found["environment"]["TORCHELASTIC_MAX_RESTARTS"] for found in told_of_restarts[launch]} == {"1"}
    assert len({found["environment"]["TORCHELASTIC_RUN_ID"] for found in told_of_restarts[launch]}) == 1
    assert len({found["parent"] for found in told_of_restarts[launch]}) == 1


@pytest.mark.long
def test_a_launch_without_a_name_is_called_none(told_of_restarts: Told) -> None:
    """So launch_id takes the launcher's process there."""
    assert exported(told_of_restarts, "restarted_by_accelerate")["TORCHELASTIC_RUN_ID"] == "none"
    assert exported(told_of_restarts, "restarted_by_torchrun")["TORCHELASTIC_RUN_ID"] != "none"


def test_a_launch_is_not_restarted_unless_that_is_asked_for(told: Told) -> None:
    assert exported(told, "fsdp")["TORCHELASTIC_MAX_RESTARTS"] == "0"


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


def test_clipping_returns_the_norm_before_and_an_infinite_limit_clips_nothing() -> None:
    accelerator = Accelerator(cpu=True)
    weight = torch.nn.Parameter(torch.ones(4))
    for limit, left in ((float("inf"), 2.0), (0.5, 0.5)):
        weight.grad = torch.ones(4)
        assert float(accelerator.clip_grad_norm_([weight], limit)) == 2.0
        assert float(weight.grad.norm()) == pytest.approx(left, rel=1e-4)
