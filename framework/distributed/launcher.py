"""Starts the processes of a command by the launcher of accelerate: with every default set, and exit codes passed on.

`accelerate launch` lists the defaults that it chose, ends every failure in a traceback of its own, and exits with 1.
With one process it forwards no signal.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from framework.registry import did_you_mean
from framework.runtime import errors
from framework.runtime.errors import UserError
from framework.runtime.processes import COMMAND_LINE
from framework.runtime.signals import SIGNALS, handle_signals

USAGE = "launch [--num_processes N] [FLAG of accelerate launch]... RECIPE [KEY=VALUE]..."


def parse_launch(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of the launcher, and the command that it starts.

    Raises:
        UserError: an option is unknown, or there is no command.
    """
    from accelerate.commands.launch import launch_command_parser  # seconds

    parser = launch_command_parser()
    options = [each for action in parser._actions for each in action.option_strings if each.startswith("--")]

    def refuse(message: str) -> NoReturn:
        unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in options]
        message = message.replace("training_script", "RECIPE")
        raise UserError(
            "wrong-format", message, place="launch", expected=USAGE,
            hint=did_you_mean(unknown[0], options).strip() if unknown else "",
        )  # fmt: skip

    parser.error = refuse  # type: ignore[method-assign]
    options_given = parser.parse_args(list(words))
    command = [options_given.training_script, *options_given.training_script_args]
    options_given.training_script, options_given.training_script_args = str(COMMAND_LINE), command
    return options_given, command


def run_launcher(options: argparse.Namespace) -> int:
    """Starts the processes, waits for them, and returns the exit code of the command."""
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _set_defaults(options)
    # The launcher's own account of processes that end, in place of which the command prints its error.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    handle_signals(SIGNALS, _forward)
    options.signals_to_handle = signal.SIGQUIT.name  # torch would kill the processes 30 s after the others
    with tempfile.TemporaryDirectory(prefix="sonoscribe-launch-") as folder:
        outcome = Path(os.environ.setdefault(errors.OUTCOME, str(Path(folder) / "outcome.json")))
        try:
            launch_command(options)
            code = 0
        except subprocess.CalledProcessError as error:
            code = error.returncode
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
        return code if code == 0 else _code_of(outcome, code)


def _set_defaults(options: argparse.Namespace) -> None:
    """Sets what `accelerate launch` would choose and list, unless a configuration file of accelerate decides."""
    from accelerate.commands.config import default_config_file
    from torch.cuda import device_count

    from framework.models.device import on_cpu

    if options.num_machines in (None, 1) and options.main_process_port is None:
        options.main_process_port = 0  # any free port
    if options.config_file is not None or (Path(default_config_file).is_file() and not options.cpu):
        return
    cpu = options.cpu or on_cpu()
    options.num_machines = options.num_machines or 1
    options.num_processes = options.num_processes or (1 if cpu else device_count())
    options.mixed_precision = options.mixed_precision or "no"
    options.dynamo_backend = options.dynamo_backend or "no"
    options.num_cpu_threads_per_process = options.num_cpu_threads_per_process or int(
        os.environ.get("OMP_NUM_THREADS", "1")
    )
    if options.num_processes > 1 and not (options.use_deepspeed or options.use_fsdp):
        options.multi_gpu = True  # which starts the processes on CPUs as well
        options.cpu = False
    if cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"


def _forward(number: int, frame: FrameType | None) -> None:
    """Passes a signal on to the processes, which save and end."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _code_of(outcome: Path, launcher: int) -> int:
    """The exit code of the process that failed first; the launcher's if that process was killed."""
    found = errors.read_outcome(outcome)
    if found is not None:
        return found
    if launcher < 0:
        name = signal.Signals(-launcher).name
        raise errors.ProcessLost(f"a process was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}")
    return launcher
