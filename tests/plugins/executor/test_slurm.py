"""The executor `slurm`, through submitit's own debug and local executors; a real Slurm is in real_slurm.sh."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import problem
from slurm_cells import PATIENCE_S, cell, notes, wait, wait_until_gone

from framework.grid.executor import Job
from framework.registry import find
from framework.registry.signature import injected_params, keys_of, model_of
from plugins.executor.slurm import Command, Slurm


def executor(folder: Path, **keys: object) -> Slurm:
    keys = {"cluster": "local", **keys}
    return Slurm(folder=folder / "a folder", **keys)  # type: ignore[arg-type]


ARGUMENTS = ("two words", "a 'single' and a \"double\" quote", "$HOME `ls` \\ * %j", "über 甲状腺", "")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of jobs that ran to their end on submitit's local executor."""
    folder = tmp_path_factory.mktemp("ran")
    program = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(repr(sys.argv[2:]), encoding='utf-8')"
    quoting = (sys.executable, "-c", program, str(folder / "out of it"), *ARGUMENTS)
    failing = (sys.executable, "-c", "raise SystemExit('no such data')")
    slurm = executor(folder, jobs=4)
    assert slurm.room() == 4
    handles = slurm.start([cell(folder), Job("q", quoting, folder / "q"), Job("f", failing, folder / "failing.txt")])
    assert slurm.room() < 4
    wait_until_gone(handles)
    assert slurm.room() == 4
    return folder


def test_jobs_run_and_write_their_output_to_logs(ran):
    assert notes(ran) == ["started", "done"]
    assert (ran / "logs" / "cell.txt").read_text() == "a line for the log\n"


def test_arguments_are_passed_unchanged(ran):
    assert (ran / "out of it").read_text(encoding="utf-8") == repr(list(ARGUMENTS))


def test_a_failed_cell_is_gone_and_its_log_has_the_reason(ran):
    assert (ran / "failing.txt").read_text() == "no such data\n"


def test_cluster_debug_runs_a_cell_in_this_process(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    good, bad = cell(tmp_path), Job("bad", (sys.executable, "-c", "raise SystemExit('oh')"), tmp_path / "bad.txt")
    slurm = executor(tmp_path, cluster="debug")
    handles = [handle for job in (good, bad) for handle in slurm.start([job])]
    assert [handle.state() for handle in handles] == ["gone", "gone"]
    assert notes(tmp_path) == ["started", "done"]
    assert bad.log.read_text() == "oh\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cancelled_cell_saves_or_does_not_start(tmp_path):
    runs, begins = executor(tmp_path, jobs=2).start([cell(tmp_path, name, attempts=2) for name in ("runs", "begins")])
    begins.cancel()
    wait(lambda: notes(tmp_path, "runs") == ["started"], "started")
    runs.cancel()
    wait_until_gone([runs, begins])
    assert notes(tmp_path, "runs") == ["started", "saved"]
    assert notes(tmp_path, "begins") == []


def test_a_cell_saves_before_its_time_limit_and_is_restarted(tmp_path):
    """submitit warns the job 28 + 30 seconds before its minute is over: after two seconds."""
    handles = executor(tmp_path, minutes=1, save_seconds=28).start([cell(tmp_path, attempts=2)])
    wait_until_gone(handles)
    assert notes(tmp_path) == ["started", "saved", "started", "done"]


def test_a_cell_is_restarted_a_limited_number_of_times(tmp_path):
    handles = executor(tmp_path, minutes=1, save_seconds=28, timeouts=0).start([cell(tmp_path, attempts=3)])
    wait_until_gone(handles)
    assert notes(tmp_path) == ["started", "saved"]


def run_command(folder: Path, program: str, **environment: str) -> subprocess.Popen[bytes]:
    """A process that does what submitit does on a node: calls a Command, with its handlers set."""
    command = Command(
        "cell", (sys.executable, "-c", program), folder / "log", 1.0, folder / "cancelled", {"GIVEN": "to the cell"}
    )
    (folder / "command.pkl").write_bytes(pickle.dumps(command))
    caller = (
        "import pickle, signal, sys\n"
        "for number in (signal.SIGTERM, signal.SIGUSR2):\n"
        "    signal.signal(number, lambda number, frame: print(f'then {signal.Signals(number).name}', flush=True))\n"
        "print('ended', pickle.load(open(sys.argv[1], 'rb'))(), flush=True)\n"
    )
    arguments = [sys.executable, "-c", caller, str(folder / "command.pkl")]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, env={**os.environ, **environment})


def test_a_signal_ends_the_command_and_then_reaches_submitit(tmp_path):
    program = "import signal, time; signal.signal(15, lambda *_: exit(7)); print('up', flush=True); time.sleep(60)"
    process = run_command(tmp_path, program)
    wait(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text() == "up\n", "up")
    process.send_signal(signal.SIGUSR2)
    printed = process.communicate(timeout=PATIENCE_S)[0].decode().splitlines()
    assert printed[1:] == ["then SIGUSR2", "ended 7"]


def test_a_command_that_does_not_end_is_killed_with_all_that_it_started(tmp_path):
    stubborn = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); "
    child = f"{stubborn} time.sleep(60)"
    program = f"import subprocess, sys; {stubborn} subprocess.run([sys.executable, '-c', {child!r}])"
    process = run_command(tmp_path, program)
    wait(lambda: (tmp_path / "log").exists() and len((tmp_path / "log").read_text().split()) == 2, "both up")
    process.terminate()
    printed = process.communicate(timeout=PATIENCE_S)[0].decode()
    assert "did not end within 1.0 s of SIGTERM: killed" in printed
    assert "then SIGTERM\nended -9\n" in printed
    # A zombie has no command line.
    lines = [Path(f"/proc/{pid}/cmdline") for pid in (tmp_path / "log").read_text().split()]
    wait(lambda: not any(line.exists() and line.read_bytes() for line in lines), "both gone")


def test_a_command_does_not_get_the_warning_that_slurm_sends_to_all_processes(tmp_path):
    program = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print('still here')"
    assert run_command(tmp_path, program).communicate(timeout=PATIENCE_S)[0].decode().endswith("ended 0\n")
    assert (tmp_path / "log").read_text() == "still here\n"


def test_a_command_does_not_get_the_rank_of_its_job(tmp_path):
    outside = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "PMI_SIZE": "1", "MASTER_ADDR": "node7", "WORLD_SIZE": "4"}
    harmless = {"SLURM_JOB_ID": "12", "SLURM_TMPDIR": "/scratch", "OF_THE_USER": "1"}
    program = "import os; print(*sorted(os.environ), sep='\\n')"
    run_command(tmp_path, program, **outside, **harmless).communicate(timeout=PATIENCE_S)
    names = set((tmp_path / "log").read_text().split())
    assert not names & set(outside)
    assert names >= {*harmless, "GIVEN"}


@pytest.mark.parametrize(
    ("keys", "code", "place"),
    [
        ({"cluster": "slurm"}, "cluster-unavailable", "executor slurm"),
        ({"minutes": 2, "save_seconds": 90}, "out-of-range", "executor.minutes"),
        ({"gpu_type": "a100"}, "ignored-setting", "executor.gpu_type"),
        ({"extra": {"time": 5}}, "unsupported", "executor.extra.time"),
        ({"extra": {"cpus_per_task": 5}}, "unsupported", "executor.extra.cpus_per_task"),
        ({"extra": {"--array": "0-3"}}, "unsupported", "executor.extra.--array"),
        ({"extra": {"M": "far"}}, "unsupported", "executor.extra.M"),
        ({"extra": {"gres": "gpu:2"}}, "unsupported", "executor.extra.gres"),
        ({"extra": {"exclusive": False}}, "ignored-setting", "executor.extra.exclusive"),
        ({"cluster": "debug", "jobs": 2}, "unsupported", "--jobs"),
    ],
)
def test_invalid_keys_are_refused(tmp_path, monkeypatch, keys, code, place):
    monkeypatch.setenv("PATH", str(tmp_path))
    with problem(code, place):
        executor(tmp_path, **keys)


def test_a_trial_on_this_machine_warns_of_keys_without_effect(tmp_path):
    # word for word
    with pytest.warns(UserWarning, match="cluster local ignores partition, exclusive"):
        executor(tmp_path, partition="gpu", extra={"exclusive": True})


def test_without_submitit_the_executor_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with problem("missing-package"):
        executor(tmp_path)


def test_a_grid_file_may_set_its_keys():
    plugin = find("executor", "slurm")
    assert set(injected_params(plugin)) == {"folder", "jobs"}
    assert all(key.doc for key in keys_of(plugin))
    keys = {"processes": 2, "extra": {"exclusive": True, "nice": 100, "reservation": "course"}}
    assert model_of(plugin).model_validate(keys, strict=True).model_dump(by_alias=True)["extra"] == keys["extra"]
