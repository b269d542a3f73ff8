"""The process that trains a cell: how it starts the training."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands import launch as accelerate_launch

from framework.grid.cell_folder import CellFolder
from framework.grid.cell_process import CellProcess


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cell_ignores_the_users_configuration_of_accelerate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    mine = tmp_path / "default_config.yaml"
    mine.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: fp16\n")
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(mine))
    monkeypatch.setattr(accelerate_launch, "default_config_file", str(mine))
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    CellProcess(CellFolder(tmp_path), processes, attempts=1)._start()
    words = started[0][started[0].index("accelerate.commands.launch") + 1 :]
    args, *_ = accelerate_launch._validate_launch_command(accelerate_launch.launch_command_parser().parse_args(words))
    assert (args.mixed_precision, args.use_fsdp, args.multi_gpu) == ("no", False, processes > 1)
    assert args.num_processes == processes
