"""The verb `launch`: what it prints, and how it ends."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from harness import ROOT, launch, problem
from running import Running, waiting_recipe
from typer.testing import CliRunner

from framework import cli
from framework.distributed.launcher import parse_launch
from framework.runtime.errors import LOST, STOPPED, USER_ERROR

SMOKE = str(ROOT / "recipes" / "smoke.yaml")


def test_the_command_follows_the_flags_of_the_launcher() -> None:
    options, command = parse_launch(["--num-processes", "2", "smoke", "train.epochs=1", "--trust"])
    assert command == ["smoke", "train.epochs=1", "--trust"] == options.training_script_args
    assert options.num_processes == 2 and Path(options.training_script).name == "__main__.py"


@pytest.mark.parametrize(
    "words", [["--num_proces", "2", "smoke"], ["--num_processes", "two", "smoke"], ["--multi_gpu"]]
)
def test_wrong_flags_and_a_missing_recipe_are_refused(words: Sequence[str]) -> None:
    with problem("wrong-format", "launch") as found:
        parse_launch(words)
    assert ("'--num_processes'" in found[0].hint) == ("--num_proces" in words)


def test_a_mistake_in_the_recipe_shows_before_processes_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("framework.distributed.launcher.run_launcher", start)
    done = CliRunner().invoke(cli.app, ["launch", "--num_processes", "2", "breats"])
    assert done.exception is not None and getattr(done.exception, "code", None) == "no-such-file"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_that_the_processes_find_is_one_line(work: Path, processes: int) -> None:
    (work / "empty").mkdir(exist_ok=True)
    words = [SMOKE, "init_from=empty", "data.dataset.exams=2"]
    done = launch(*words, cwd=work, processes=processes, by="launch", check=False)
    assert done.returncode == USER_ERROR
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_to_the_launcher_saves_and_a_killed_process_is_lost(
    work: Path, tmp_path: Path, processes: int
) -> None:
    recipe = waiting_recipe(work)

    def start(name: str) -> Running:
        keys = [f"run.name={name}-{processes}", "train.epochs=2"]
        return Running(
            recipe, *keys, cwd=work, scratch=tmp_path / name, by="launch", processes=processes, wait="train:3"
        )

    with start("signal") as run:
        run.until("waits")
        run.process.send_signal(signal.SIGUSR1)
        run.until("SIGUSR1: saving")
        run.go()
        run.end(STOPPED)
    with start("kill") as run:
        run.until("waits")
        psutil.Process(run.process.pid).children()[0].kill()
        text = run.end(LOST)
    assert "SIGKILL" in text and "Traceback" not in text
