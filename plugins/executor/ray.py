"""Starts cells on a Ray cluster, and sees to it that a cell's command ends, and saves first, when its Ray task goes.

A job has three processes. A worker of Ray runs the task `_hold`, which holds the CPUs and GPUs. It starts a keeper
(`_keep`, this file run by itself) in a session of its own, tied to it by a pipe; the keeper starts the command. When
the pipe closes, because the task was cancelled or its worker is gone for whatever reason, the keeper ends the command.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from framework.grid.executor import Job, State
from framework.registry import register
from framework.runtime.errors import first_line

ROOT = Path(__file__).resolve().parent.parent.parent  # of this code
ANSWERS_S = 30.0  # that a cluster may take to answer
NODES_S = 2.0  # between two questions which nodes live
OBJECT_STORE_BYTES = 80 * 1024**2  # of a local cluster: cells put nothing in it, and Ray takes 30 % of the memory else
OWN_WORDS = (
    "CPU",
    "GPU",
    "memory",
    "object_store_memory",
)  # resources of Ray that have keys here, or are not for cells
# Variables that Ray sets in its workers for itself, and that would mislead a command.
OF_WORKERS = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONBREAKPOINT")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


@register("executor", "ray")
class RayCluster:
    """Tasks of a Ray cluster: one a cell, which holds its CPUs and GPUs on one node.

    All nodes need this code and its Python at the same paths, and the folder of the runs on a shared disk: nothing is
    copied to them. The scheduler runs on a node of the cluster. A cell has the environment of the scheduler, with the
    node's own for what that does not set; OMP_NUM_THREADS, unless set, is its CPUs over its processes, and
    CUDA_VISIBLE_DEVICES is as Ray says: empty without GPUs. Cells have the niceness that nodes give to tasks
    (RAY_worker_niceness).

    Ray does not start a task again (max_retries is 0): a lost cell is the scheduler's to queue, which knows from the
    disk whether there is anything left to do. Tasks end with the process that started them, so unlike with other
    executors cells do not go on without a scheduler: when it is closed or killed, even by SIGKILL, every command gets
    its SIGTERM within seconds and saves. While it saves, Ray may already give its GPUs to someone else. A node that
    dies is noticed within seconds, one that does not answer any more within about a minute. When the head of a cluster
    is away for a minute, Ray ends the scheduler and the tasks; cells save, and a new `grid run` goes on with them.

    Args:
        processes: Processes of a cell.
        gpus: Each process has a GPU of its own. Otherwise cells see none.
        cpus: CPUs of a cell. None: one a process.
        memory_gib: Memory that a cell reserves. Ray counts it where it places cells, and does not enforce it. None:
            memory is not counted. [GiB]
        address: A running cluster: host:port of its head, or auto for the one that this machine is a node of. None: a
            cluster of this machine alone is started, and ends with the scheduler.
        resources: Amounts of what nodes were given names for (`ray start --resources`), such as {a100: 1}, that a cell
            holds too.
        save_seconds: Time that a cell has to save between SIGTERM and SIGKILL. [seconds]

    Raises:
        ValueError: Ray is not installed, the cluster cannot be reached, or none of its nodes has room for one cell.
    """

    def __init__(
        self,
        *,
        processes: PositiveInt = 1,
        gpus: bool = False,
        cpus: PositiveInt | None = None,
        memory_gib: PositiveFloat | None = None,
        address: str | None = None,
        resources: dict[str, PositiveFloat] = {},  # noqa: B006  a literal, as plugins' defaults are; it is only read
        save_seconds: PositiveInt = 120,
        jobs: int | None = None,
    ) -> None:
        cpus = processes if cpus is None else cpus
        taken = sorted({*OWN_WORDS} & {*resources})
        if taken:
            raise ValueError(
                f"executor 'ray': resources has {', '.join(taken)}; it is for names that nodes were given. CPUs, GPUs "
                "and memory have keys of their own: cpus, gpus, memory_gib"
            )
        if broken := [name for name, amount in resources.items() if amount > 1 and amount % 1]:
            raise ValueError(
                f"executor 'ray': resources has a broken amount above 1 of {', '.join(broken)}; Ray has none"
            )
        self.processes = processes
        self.jobs = jobs
        self._save_seconds = save_seconds
        threads = str(max(1, cpus // processes))
        # Before Ray is imported, which sets variables of its own.
        self._environment = {"OMP_NUM_THREADS": threads, **_without(os.environ, "CUDA_VISIBLE_DEVICES")}
        self._needs: dict[str, float] = {"CPU": cpus, **resources}
        if gpus:
            self._needs["GPU"] = processes
        if memory_gib is not None:
            self._needs["memory"] = int(memory_gib * 1024**3)
        self._handles: list[_Handle] = []
        self._nodes = _Nodes()
        _connect(address)
        try:
            self._task = self._make_task(resources)
            self._refuse_the_impossible()
        except BaseException:
            self.close()
            raise

    def _make_task(self, resources: dict[str, float]) -> Any:
        import ray

        options: dict[str, Any] = {
            "num_cpus": self._needs["CPU"],
            "num_gpus": self._needs.get("GPU", 0),
            "memory": self._needs.get("memory"),
            "resources": dict(resources),
            "num_returns": "streaming",  # so that the task can say that it runs, before it ends
            "max_retries": 0,
        }
        return ray.remote(**options)(_hold)

    def _refuse_the_impossible(self) -> None:
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        if not any(_fitting(node["Resources"], self._needs) for node in nodes):
            found = "; ".join(
                f"{node['NodeManagerAddress']}: {_spelt(node['Resources'], self._needs)}" for node in nodes
            )
            raise ValueError(
                f"executor 'ray': a cell needs {_spelt(self._needs, self._needs)} on one node, and no node of the "
                f"cluster has that much, even when idle. Nodes: {found}. Ask for less, or start such a node"
            )

    def room(self) -> int:
        """How many more jobs it would take now: up to `jobs`; without, as many as nodes have the resources for."""
        import ray
        from ray._private.state import available_resources_per_node

        states = [(handle, handle.state()) for handle in self._handles]
        self._handles = [handle for handle, state in states if state != "gone"]
        if self.jobs is not None:
            return max(0, self.jobs - len(self._handles))
        # What is free comes late, by about a second, so it alone would promise the place of a job that just started.
        whole = sum(_fitting(node["Resources"], self._needs) for node in ray.nodes() if node["Alive"])
        free = sum(_fitting(node, self._needs) for node in available_resources_per_node().values())
        waiting = sum(state == "waiting" for _, state in states)
        return max(0, min(whole - len(self._handles), free - waiting))

    def start(self, jobs: Sequence[Job]) -> list[_Handle]:
        """Queues a task for each job."""
        started = []
        for job in jobs:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            order = {
                "command": list(job.command),
                "folder": str(Path.cwd()),
                "log": str(job.log.absolute()),
                "environment": self._environment,
                "save_seconds": self._save_seconds,
            }
            started.append(_Handle(self._task.options(name=job.name).remote(order), job.log, self._nodes))
        self._handles += started
        return started

    def close(self) -> None:
        """Leaves the cluster, which ends the tasks: commands that run get their SIGTERM."""
        import ray

        ray.shutdown()


class _Nodes:
    """The nodes that live, by id."""

    def __init__(self) -> None:
        self._alive: set[str] = set()
        self._asked = float("-inf")

    def alive(self) -> set[str]:
        import ray

        if time.monotonic() - self._asked > NODES_S:
            self._alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            self._asked = time.monotonic()
        return self._alive


class _Handle:
    def __init__(self, stream: Any, log: Path, nodes: _Nodes) -> None:
        self._stream = stream  # an ObjectRefGenerator of what the task says
        self._log = log
        self._nodes = nodes
        self._state: State = "waiting"
        self._said: dict[str, str] = {}  # node: where it runs; problem: why it failed

    def state(self) -> State:
        import ray

        if self._state == "gone":
            return "gone"
        if not ray.is_initialized():  # the executor was closed; asking Ray would make it start a cluster
            self._state = "gone"
        elif ray.wait([self._stream.completed()], timeout=0, fetch_local=False)[0]:
            self._state = "gone"
            while self._hear():
                pass
        elif self._state == "waiting" and ray.wait([self._stream], timeout=0, fetch_local=False)[0]:
            self._hear()
            self._state = "running"
        elif "node" in self._said and self._said["node"] not in self._nodes.alive():
            # Of a node that hangs, or whose network is gone, Ray tells the tasks nothing for minutes.
            self._said["problem"] = "its node is lost"
            self._state = "gone"
        if self._state == "gone" and "problem" in self._said:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"ray: the task is gone: {self._said['problem']}\n")
        return self._state

    def _hear(self) -> bool:
        """Takes in what the task said next; False: there is no more."""
        import ray

        try:
            self._said.update(ray.get(next(self._stream), timeout=ANSWERS_S))
        except (StopIteration, ray.exceptions.TaskCancelledError):
            return False
        except ray.exceptions.RayError as error:
            self._said["problem"] = first_line(error)
            return False
        return True

    def cancel(self) -> None:
        import ray

        if self.state() != "gone":
            ray.cancel(self._stream)  # a KeyboardInterrupt in `_hold`


def _without(environment: Any, *names: str) -> dict[str, str]:
    """The variables that are neither Ray's own nor among `names`."""
    return {name: value for name, value in environment.items() if not name.startswith("RAY_") and name not in names}


def _fitting(node: dict[str, float], needs: dict[str, float]) -> int:
    """How many cells fit on a node with these resources."""
    return int(min(node.get(name, 0) / amount + 1e-6 for name, amount in needs.items()))  # 0.3 / 0.1 is below 3


def _spelt(amounts: dict[str, float], names: dict[str, float]) -> str:
    """Such as `CPU 2, memory 3.5 GiB`."""
    in_gib = {name: amounts.get(name, 0) / 1024**3 if name == "memory" else amounts.get(name, 0) for name in names}
    return ", ".join(f"{name} {amount:.4g}{' GiB' if name == 'memory' else ''}" for name, amount in in_gib.items())


def _connect(address: str | None) -> None:
    """Starts a cluster of this machine, or joins one.

    Raises:
        ValueError: that fails, and why.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # under `uv run`, Ray would copy this folder to every node
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            f"executor 'ray' needs Ray, which does not import here ({error}): pip install 'sonoscribe[ray]'"
        ) from None
    if ray.is_initialized():
        raise ValueError("executor 'ray': this process is in a Ray cluster already; it can be in one at a time")
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    # The scheduler's own, which Ray would replace.
    handler, debugger = signal.getsignal(signal.SIGTERM), os.environ.get("PYTHONBREAKPOINT")
    try:
        if address is None:
            ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        else:
            _refuse_the_unreachable(address)
            ray.init(address, **quiet)
    except (OSError, RuntimeError) as error:
        where = "a local cluster does not start" if address is None else f"the cluster at {address} cannot be joined"
        raise ValueError(f"executor 'ray': {where}: {error}") from error
    finally:
        os.environ.pop("PYTHONBREAKPOINT", None)
        if debugger is not None:
            os.environ["PYTHONBREAKPOINT"] = debugger
        with contextlib.suppress(ValueError):  # not the main thread, where Ray sets none either
            signal.signal(signal.SIGTERM, handler)


def _refuse_the_unreachable(address: str) -> None:
    """Joins a cluster in a process that can be ended: `ray.init` may try for minutes, and then ends its process.

    Raises:
        ValueError: there is none within ANSWERS_S.
    """
    host, _, port = address.rpartition(":")
    if address != "auto":
        expected = "expected host:port of the head of a running cluster, as `ray start --head` prints it, or auto"
        if "://" in address or not host or not port.isdigit():
            raise ValueError(f"executor 'ray': found the address {address}, {expected}")
        try:
            socket.create_connection((host, int(port)), timeout=ANSWERS_S / 2).close()
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"executor 'ray': nothing answers at the address {address} ({error}); {expected}"
            ) from None
    join = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)"
    ask = [sys.executable, "-c", join, address]
    try:
        asked = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, timeout=ANSWERS_S)
    except subprocess.TimeoutExpired:
        why = f"it does not answer within {ANSWERS_S:.0f} s"
    else:
        if not asked.returncode:
            return
        why = next(
            (line for line in reversed(asked.stderr.splitlines()) if line.strip()), "it does not say why"
        ).strip()
    raise ValueError(
        f"executor 'ray': the Ray cluster at the address {address} cannot be joined: {why}. Is this machine one of its "
        "nodes, and the port the one that `ray start --head` prints? If the cluster wants a token (`ray start` says "
        "so), set RAY_AUTH_MODE=token"
    )


def _hold(order: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The task: holds its resources while the command runs. Says its node, and the problem if that does not start."""
    import ray

    context = ray.get_runtime_context()
    order = {**order, "environment": {**_without(os.environ, *OF_WORKERS), **order["environment"]}}
    order["environment"]["CUDA_VISIBLE_DEVICES"] = ",".join(context.get_accelerator_ids()["GPU"])
    order["node"] = f"{ray.util.get_node_ip_address()} ({context.get_node_id()[:8]})"
    keeper = subprocess.Popen(
        [sys.executable, "-m", __name__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert keeper.stdin is not None and keeper.stdout is not None
    try:
        keeper.stdin.write(json.dumps(order) + "\n")
        keeper.stdin.flush()
        keeper.wait()  # it goes on as a process of its own
        yield {"node": context.get_node_id()}
        _until_readable(keeper.stdout)
        failure = keeper.stdout.read()
    finally:  # also by the KeyboardInterrupt of `ray.cancel`
        with contextlib.suppress(OSError):
            keeper.stdin.close()
        end = time.monotonic() + order["save_seconds"] + 10
        while time.monotonic() < end:
            with contextlib.suppress(KeyboardInterrupt):  # Ray repeats itself
                _until_readable(keeper.stdout, end)
                break
    if failure:
        yield {"problem": failure.strip()}


def _until_readable(pipe: Any, end: float = float("inf")) -> None:
    """Waits for something to read, or the pipe's end. In short turns: Ray's interrupts do not wake a longer one."""
    while time.monotonic() < end and not select.select([pipe], [], [], 0.5)[0]:
        pass


def _keep() -> None:
    """The keeper: runs the command of the order on standard input, and ends it when standard input ends.

    Prints why the command does not start, or nothing.
    """
    import psutil

    # Away from the worker, which kills its children when it ends, and the parent of all that the command leaves behind.
    if os.fork():
        os._exit(0)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    line = sys.stdin.readline()
    if not line:
        return  # the worker was gone before it could say anything
    order = json.loads(line)
    try:
        with Path(order["log"]).open("ab") as log:
            log.write(f"ray: on node {order['node']}\n".encode())
            log.flush()
            command = subprocess.Popen(
                order["command"], cwd=order["folder"], env=order["environment"], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, preexec_fn=_end_with_the_keeper,
            )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        print(f"node {order['node']}: {error}. Nodes need the code and the runs at the same paths, on a shared disk")
        return
    while command.poll() is None and not select.select([sys.stdin], [], [], 0.2)[0]:
        pass
    if command.poll() is None:
        command.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(order["save_seconds"])
    # Whatever it left, in whatever session: it would write into the folder of a cell that is started anew.
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _end_with_the_keeper() -> None:
    """In the command's process: SIGTERM should the keeper be killed."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


if __name__ == "__main__":
    _keep()
