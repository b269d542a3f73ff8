"""Inner details of accelerate that framework/distributed.py and the engine lean on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

TELL = """
import json, os
from accelerate import Accelerator
accelerator = Accelerator()
names = ("ACCELERATE_MIXED_PRECISION", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE")
if accelerator.is_main_process:
    print("told", json.dumps({**{n: os.environ.get(n) for n in names}, "processes": accelerator.num_processes}))
accelerator.end_training()
"""


def launched(tmp_path: Path, *flags: str) -> dict[str, object]:
    script = tmp_path / "tell.py"
    script.write_text(TELL)
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION")}
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *flags, str(script)],
        env={**environment, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("told")).split(" ", 1)[1])


def test_accelerate_launch_exports_a_precision_though_none_was_asked_for(tmp_path: Path) -> None:
    assert launched(tmp_path)["ACCELERATE_MIXED_PRECISION"] == "no"


def test_two_cpu_processes_need_the_multi_gpu_flag_and_gloo_is_found(tmp_path: Path) -> None:
    told = launched(tmp_path, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    assert told["processes"] == 2 and told["LOCAL_WORLD_SIZE"] == "2"


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
