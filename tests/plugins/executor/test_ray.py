"""The executor `ray`, on a cluster of two nodes that the tests start, one of which is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import ROOT, problem

from framework.grid.executor import Job
from plugins.executor import ray as plugin
from plugins.executor.ray import RayCluster

PATIENCE_S = 60
MIB = 1024**2

# Notes its start, and SIGTERM, after which it takes a moment to save; ends when there is a file for it.
CELL = """
import os, pathlib, signal, sys, time
notes, go = map(pathlib.Path, sys.argv[1:])
def note(text):
    with notes.open("a") as file:
        file.write(text + "\\n")
def save(number, frame):
    time.sleep(0.5)
    note("saved")
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
note(f"started {os.getpid()}")
while not go.exists():
    time.sleep(0.05)
note("done")
"""
# Ignores SIGTERM, and so does a process that it starts in another session.
DEAF = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
pathlib.Path(sys.argv[1]).write_text(f"started {os.getpid()} {child.pid}\\n")
time.sleep(600)
"""
SCHEDULER = """
import sys, time
from framework.grid.executor import Job
from pathlib import Path
from plugins.executor.ray import RayCluster
address, log, *command = sys.argv[1:]
RayCluster(address=address).start([Job("cell", tuple(command), Path(log))])
time.sleep(600)
"""


class TwoNodes:
    """A head with 2 CPUs, and a node with 2 CPUs and what is called 2 GPUs."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()
        self.common = {"num_cpus": 2, "object_store_memory": 80 * MIB, "temp_dir": folder}
        # A node that does not answer is lost after some seconds, not a minute.
        quick = {"health_check_period_ms": 1000, "health_check_timeout_ms": 3000, "health_check_failure_threshold": 2}
        self.cluster.add_node(include_dashboard=False, _system_config=quick, **self.common)
        self.start_other()

    def start_other(self) -> None:
        self.other = self.cluster.add_node(num_gpus=2, **self.common)

    def kill_other(self) -> None:
        self.cluster.remove_node(self.other, allow_graceful=False)

    def hang_other(self) -> None:
        """Stops its processes, without an end of their connections: as when a cable is pulled."""
        (raylet,) = [process for process in raylets() if self.other.node_id in " ".join(process.cmdline())]
        for process in [raylet, *raylet.children(recursive=True)]:
            process.suspend()

    @property
    def address(self) -> str:
        return str(self.cluster.address)


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: paths of sockets end at 107 letters
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a token would be written into the home folder
        started = None
        try:
            started = TwoNodes(folder)
            yield started
        finally:
            if started is not None:
                started.cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def executor(nodes: TwoNodes, **keys: Any) -> Iterator[RayCluster]:
    made = RayCluster(address=nodes.address, **keys)
    try:
        yield made
    finally:
        made.close()


def cell(folder: Path, name: str = "cell", script: str = CELL) -> Job:
    command = (sys.executable, "-c", script, str(folder / name), str(folder / f"{name}-go"))
    return Job(name, command, folder / "logs" / f"{name}.txt")


def notes(folder: Path, name: str = "cell") -> list[str]:
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


def pids(folder: Path, name: str = "cell") -> list[int]:
    return [int(word) for line in notes(folder, name) if line.startswith("started") for word in line.split()[1:]]


def node_of(job: Job) -> str:
    """Where a job ran last, from its log."""
    return [line for line in job.log.read_text().splitlines() if line.startswith("ray: on node")][-1]


def raylets() -> set[psutil.Process]:
    return {process for process in psutil.Process().children() if process.name() == "raylet"}


def wait(until: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE_S} s"
        time.sleep(0.05)


@pytest.mark.long
def test_cells_run_on_both_nodes_and_the_others_wait(nodes: TwoNodes, tmp_path: Path) -> None:
    with executor(nodes, cpus=2) as ray:
        wait(lambda: ray.room() == 2, "two nodes have room for two")
        jobs = [cell(tmp_path, name) for name in ("a", "b", "c")]
        first, second = ray.start(jobs[:2])
        wait(lambda: first.state() == second.state() == "running", "both run")
        wait(lambda: notes(tmp_path, "a") and notes(tmp_path, "b"), "both commands have started")
        assert node_of(jobs[0]) != node_of(jobs[1])
        assert ray.room() == 0

        (third,) = ray.start(jobs[2:])
        time.sleep(1)
        assert third.state() == "waiting"
        third.cancel()
        wait(lambda: third.state() == "gone", "what waits leaves the queue")

        (tmp_path / "a-go").touch()
        wait(lambda: first.state() == "gone", "the first ends")
        assert notes(tmp_path, "a")[-1] == "done"
        assert second.state() == "running"
        wait(lambda: ray.room() == 1, "its place is free")
        assert not notes(tmp_path, "c")
        assert "gone" not in jobs[0].log.read_text()


@pytest.mark.long
def test_a_cancelled_cell_gets_sigterm_and_has_time_to_save(nodes: TwoNodes, tmp_path: Path) -> None:
    with executor(nodes, jobs=3) as ray:
        (handle,) = ray.start([cell(tmp_path)])
        wait(lambda: notes(tmp_path), "the command starts")
        assert ray.room() == 2
        handle.cancel()
        wait(lambda: handle.state() == "gone", "it ends")
        assert notes(tmp_path)[1:] == ["saved"]
        assert ray.room() == 3
        handle.cancel()  # of no use, and no harm


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "hung"])
def test_a_cell_of_a_lost_node_is_gone_and_resumes_on_the_other(nodes: TwoNodes, tmp_path: Path, how: str) -> None:
    with executor(nodes, cpus=2) as ray:
        wait(lambda: ray.room() == 2, "both nodes are free")
        jobs = {name: cell(tmp_path, name) for name in ("a", "b")}
        handles = dict(zip(jobs, ray.start([*jobs.values()])))
        wait(lambda: notes(tmp_path, "a") and notes(tmp_path, "b"), "both commands start")
        on_other = nodes.other.node_id[:8]
        (lost,) = [name for name, job in jobs.items() if on_other in node_of(job)]
        (kept,) = {*jobs} - {lost}
        try:
            if how == "hung":
                nodes.hang_other()
                wait(lambda: handles[lost].state() == "gone", "the loss is noticed")
            nodes.kill_other()
            wait(lambda: handles[lost].state() == "gone", "the loss is noticed")
            wait(lambda: not psutil.pid_exists(pids(tmp_path, lost)[0]), "nothing of the cell is left on it")
            assert notes(tmp_path, lost)[1:] == ["saved"]
            assert "ray: the task is gone: " in jobs[lost].log.read_text()
            assert handles[kept].state() == "running"

            (tmp_path / f"{kept}-go").touch()
            wait(lambda: ray.room() == 1, "the node that is left is free")
            (again,) = ray.start([jobs[lost]])
            wait(lambda: again.state() == "running" and len(pids(tmp_path, lost)) == 2, "it starts again")
            (tmp_path / f"{lost}-go").touch()
            wait(lambda: again.state() == "gone", "it ends")
            assert notes(tmp_path, lost)[-1] == "done"
            assert on_other not in node_of(jobs[lost])
        finally:
            nodes.start_other()


@pytest.mark.long
def test_a_cell_gets_its_gpus_its_threads_and_the_environment_of_the_scheduler(
    nodes: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("GREETING", "hello")
    program = "import json, os; print(json.dumps([os.getcwd(), dict(os.environ)]))"

    def environment_of(**keys: Any) -> tuple[str, dict[str, str]]:
        with executor(nodes, **keys) as ray:
            job = Job("environment", (sys.executable, "-c", program), tmp_path / "log")
            (handle,) = ray.start([job])
            wait(lambda: handle.state() == "gone", "it ends")
        folder, environment = json.loads(job.log.read_text().splitlines()[-1])
        return folder, environment

    folder, with_gpus = environment_of(processes=1, gpus=True, cpus=2)
    assert folder == str(tmp_path)
    assert with_gpus["CUDA_VISIBLE_DEVICES"] in ("0", "1")
    assert (with_gpus["OMP_NUM_THREADS"], with_gpus["GREETING"]) == ("2", "hello")
    assert not [name for name in with_gpus if name.startswith("RAY_") or name == "PYTHONBREAKPOINT"]
    _, without = environment_of(processes=2)
    assert (without["CUDA_VISIBLE_DEVICES"], without["OMP_NUM_THREADS"]) == ("", "1")


@pytest.mark.long
def test_more_resources_than_a_node_has_are_refused_at_once(nodes: TwoNodes) -> None:
    with problem("does-not-fit"):
        RayCluster(address=nodes.address, cpus=3, resources={"wings": 1})
    with executor(nodes) as ray:  # the refusal left nothing behind
        assert ray.room() > 0
        with problem("in-use"):
            RayCluster(address=nodes.address)


@pytest.mark.long
def test_the_log_of_a_command_that_does_not_start_has_the_reason(nodes: TwoNodes, tmp_path: Path) -> None:
    with executor(nodes) as ray:
        job = Job("nothing", ("/no/such/command",), tmp_path / "log")
        (handle,) = ray.start([job])
        wait(lambda: handle.state() == "gone", "it is noticed")
    assert "No such file or directory: '/no/such/command'. Nodes need the code" in job.log.read_text()


@pytest.mark.long
def test_cells_of_a_killed_scheduler_save_and_end(nodes: TwoNodes, tmp_path: Path) -> None:
    job = cell(tmp_path)
    command = [sys.executable, "-c", SCHEDULER, nodes.address, str(job.log), *job.command]
    scheduler = subprocess.Popen(command, cwd=ROOT)
    try:
        wait(lambda: notes(tmp_path), "the command starts")
    finally:
        scheduler.kill()
        scheduler.wait()
    wait(lambda: notes(tmp_path)[1:] == ["saved"], "it saves")
    wait(lambda: not psutil.pid_exists(pids(tmp_path)[0]), "it ends")


@pytest.mark.long
def test_a_closed_executor_lets_cells_save_and_reports_them_gone(nodes: TwoNodes, tmp_path: Path) -> None:
    with executor(nodes) as ray:
        (handle,) = ray.start([cell(tmp_path)])
        wait(lambda: notes(tmp_path), "the command starts")
    assert handle.state() == "gone"
    wait(lambda: notes(tmp_path)[1:] == ["saved"], "it saves")


@pytest.mark.long
def test_a_cluster_of_this_machine_is_started_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    handler = signal.getsignal(signal.SIGTERM)
    others = raylets()
    ray = RayCluster(jobs=1)
    try:
        assert signal.getsignal(signal.SIGTERM) is handler
        (handle,) = ray.start([cell(tmp_path)])
        (tmp_path / "cell-go").touch()
        wait(lambda: handle.state() == "gone", "it ends")
        assert notes(tmp_path)[-1] == "done"
        started = raylets() - others
        assert len(started) == 1
    finally:
        ray.close()
    assert not psutil.wait_procs(started, timeout=30)[1]


@contextlib.contextmanager
def keeper(job: Job, save_seconds: int = 60) -> Iterator[subprocess.Popen[str]]:
    """The process that runs a command for a task, without Ray."""
    order = {"command": job.command, "folder": "/", "log": str(job.log), "environment": {}, "node": "here"}
    job.log.parent.mkdir()
    pipe = subprocess.PIPE
    made = subprocess.Popen([sys.executable, "-m", plugin.__name__], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert made.stdin is not None and made.stdout is not None
    with made:
        made.stdin.write(json.dumps({**order, "save_seconds": save_seconds}) + "\n")
        made.stdin.flush()
        yield made


def test_a_command_gets_sigterm_when_its_worker_is_gone(tmp_path: Path) -> None:
    with keeper(cell(tmp_path)):
        wait(lambda: notes(tmp_path), "the command starts")
    wait(lambda: not psutil.pid_exists(pids(tmp_path)[0]), "it ends")
    assert notes(tmp_path)[1:] == ["saved"]


def test_a_command_that_ignores_sigterm_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    with keeper(cell(tmp_path, script=DEAF), save_seconds=1) as process:
        wait(lambda: notes(tmp_path), "the command starts")
        process.stdin.close()
        assert process.stdout.read() == ""  # up to the keeper's end
        assert len(pids(tmp_path)) == 2
        assert not any(map(psutil.pid_exists, pids(tmp_path)))


def test_children_of_a_killed_command_end(tmp_path: Path) -> None:
    with keeper(cell(tmp_path, script=DEAF)) as process:
        wait(lambda: notes(tmp_path), "the command starts")
        command, child = pids(tmp_path)
        os.kill(command, signal.SIGKILL)
        assert process.stdout.read() == ""
        assert not psutil.pid_exists(child)


def test_a_command_gets_sigterm_when_its_keeper_is_killed(tmp_path: Path) -> None:
    with keeper(cell(tmp_path)):
        wait(lambda: notes(tmp_path), "the command starts")
        psutil.Process(pids(tmp_path)[0]).parent().kill()
        wait(lambda: notes(tmp_path)[1:] == ["saved"], "it saves")


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("nowhere.invalid:6379", "cluster-unavailable"),
        ("127.0.0.1:1", "cluster-unavailable"),
        ("ray://127.0.0.1:10001", "wrong-format"),
        ("somewhere", "wrong-format"),
    ],
)
def test_an_address_without_a_cluster_is_refused_quickly(address: str, code: str) -> None:
    start = time.monotonic()
    with problem(code, place="executor.address"):
        RayCluster(address=address)
    assert time.monotonic() - start < 15


def test_something_else_that_listens_is_refused_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "TIMEOUT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with problem("cluster-unavailable", place="executor.address"):
            RayCluster(address=f"127.0.0.1:{port}")


def test_without_ray_the_executor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with problem("missing-package"):
        RayCluster()


@pytest.mark.parametrize(("resources", "code"), [({"GPU": 1}, "unsupported"), ({"wings": 1.5}, "out-of-range")])
def test_resources_that_ray_would_refuse_later_are_refused_at_once(resources: dict[str, float], code: str) -> None:
    with problem(code, place="executor.resources"):
        RayCluster(resources=resources)
