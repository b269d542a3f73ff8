"""accelerate understands the files of docs/launch/, and they set nothing that a recipe owns."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from harness import ROOT, problem

from framework.distributed.launch import LAUNCHER_ONLY, start_accelerator
from framework.recipe import load_recipe

FOLDER = ROOT / "docs" / "launch"
FILES = sorted(FOLDER.glob("*.yaml"))
PROCESSES = {"cpu": (1, 2), "one_gpu": (1, 1), "eight_gpus": (1, 8), "two_machines": (2, 16)}  # machines, processes
SCRIPT = FOLDER / "slurm.sbatch"


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    """An Accelerator sets the number of threads of the process if `accelerate launch` exports it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def understood(file: Path, *words: str):
    """The arguments that accelerate reads from the file and its command line."""
    typed = ["--config_file", str(file), *words, "launch.py", "recipes/smoke.yaml"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(typed))
    return arguments


def exported(file: Path, *words: str) -> dict[str, str]:
    """The environment in which accelerate would start the processes."""
    arguments = understood(file, *words)
    return prepare_multi_gpu_env(arguments) if arguments.multi_gpu else prepare_simple_launcher_cmd_env(arguments)[1]


def test_every_file_is_documented() -> None:
    assert {file.stem for file in FILES} == set(PROCESSES)
    text = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    assert [file.name for file in [*FILES, SCRIPT] if f"(launch/{file.name})" not in text] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_every_key_and_starts_the_given_number_of_processes(file: Path) -> None:
    read = load_config_from_file(str(file))  # raises for unknown keys
    assert (read.num_machines, read.num_processes) == PROCESSES[file.stem]
    arguments = understood(file)
    assert (arguments.num_machines, arguments.num_processes) == PROCESSES[file.stem]
    assert arguments.multi_gpu == (read.num_processes > 1)  # without it accelerate starts one process, silently


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_file_sets_what_the_recipe_owns(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        not {"mixed_precision", "deepspeed_config", "fsdp_config", "dynamo_config"}
        & yaml.safe_load(file.read_text(encoding="utf-8")).keys()
    )
    for name, value in exported(file, "--main_process_port", "0", "--main_process_ip", "localhost").items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    accelerator = start_accelerator(load_recipe(ROOT / "recipes" / "smoke.yaml"))  # raises if the two differ
    assert accelerator.mixed_precision == "no"


def test_a_file_that_contradicts_the_recipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "half.yaml"
    file.write_text((FOLDER / "cpu.yaml").read_text(encoding="utf-8") + "mixed_precision: bf16\n", encoding="utf-8")
    for name in LAUNCHER_ONLY:
        monkeypatch.delenv(name, raising=False)
    for name in exported(file).keys() & {*LAUNCHER_ONLY}:
        monkeypatch.setenv(name, exported(file)[name])
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    with problem("conflicting-settings", place="train.precision"):
        start_accelerator(load_recipe(ROOT / "recipes" / "smoke.yaml"))


def test_the_two_machines_differ_only_in_their_rank() -> None:
    first, second = (understood(FOLDER / "two_machines.yaml", "--machine_rank", rank) for rank in "01")
    others = [{**vars(machine), "machine_rank": None} for machine in (first, second)]
    assert others[0] == others[1] and (first.machine_rank, second.machine_rank) == (0, 1)


def test_the_slurm_script_is_valid_shell_and_its_times_fit() -> None:
    done = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = SCRIPT.read_text(encoding="utf-8")
    (warned,) = re.findall(r"--signal=B:TERM@(\d+)", text)
    (waited,) = re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", text)
    assert 30 < int(waited) < int(warned)
    (gpus,) = re.findall(r"--gpus-per-node=(\d+)", text)
    assert f"\ngpus={gpus} " in text
    read = load_config_from_file(str(FOLDER / "two_machines.yaml"))
    assert read.num_processes == read.num_machines * int(gpus)


STAND_INS = {
    # Like Slurm's: starts one task per machine, here one, and forwards signals to it.
    "srun": '[[ $1 == --* ]] && shift\nSLURM_NODEID=0 "$@" &\ntask=$!\ntrap \'kill -TERM "$task"\' TERM\n'
    'wait "$task"; code=$?; ((code > 128)) && wait "$task"; exit "$code"\n',
    "scontrol": '[[ $1 == show ]] && echo localhost || echo "$*" >>scontrol.log\n',
}


@pytest.mark.long
def test_a_job_at_its_time_limit_saves_is_requeued_and_resumes(tmp_path: Path) -> None:
    """Runs the script with stand-ins for the two programs of Slurm, on one machine with two processes."""
    for name in ("launch.py", "framework", "plugins", "recipes", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    script = SCRIPT.read_text(encoding="utf-8").replace("\ngpus=8 ", "\ngpus=2 ")
    output = [_job(tmp_path, script, until) for until in ("epoch 1/", "epoch 4/")]
    assert all("stopped by SIGTERM after step" in text for text in output)
    assert "resumed from" not in output[0] and "resumed from runs/smoke/job-4711/checkpoints/" in output[1]
    assert (tmp_path / "scontrol.log").read_text(encoding="utf-8").split("\n") == ["requeue 4711"] * 2 + [""]


def _job(folder: Path, script: str, until: str) -> str:
    """The output of a job that gets SIGTERM once it has printed `until`."""
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "BIN": str(Path(sys.executable).parent),
        "ACCELERATE_USE_CPU": "true",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NNODES": "1",
    }
    words = [
        "bash",
        "-c",
        script,
        "slurm.sbatch",
        "recipes/smoke.yaml",
        "train.epochs=200",
        "distributed.strategy=zero2",
    ]
    job = subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert job.stdout is not None
    output = ""
    for line in job.stdout:
        if until in line and until not in output:
            job.send_signal(signal.SIGTERM)
        output += line
    job.wait()
    return output
