"""Cells as tasks of a Ray cluster. When a task ends for any reason, its cell saves and ends as well.

A job has three processes. A Ray worker runs the task `_hold`, which reserves CPUs and GPUs. It starts a keeper
(`_keep`, this file as a program) in its own session, connected by a pipe; the keeper starts the command. When the pipe
closes, because the task was cancelled or its worker died, the keeper ends the command.
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
from framework.runtime.errors import UserError, first_line

ROOT = Path(__file__).resolve().parent.parent.parent  # of this code
TIMEOUT_S = 30.0  # of a cluster
NODES_POLL_S = 2.0
OBJECT_STORE_BYTES = 80 * 1024**2  # of a local cluster; cells do not use it, and Ray's default is 30 % of the memory
RESERVED = ("CPU", "GPU", "memory", "object_store_memory")  # resources that have keys here, or are not for cells
# Variables that Ray sets in its workers for itself, which must not reach the command.
WORKER_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTHONBREAKPOINT")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


@register("executor", "ray")
class RayCluster:
    """Tasks of a Ray cluster: one task per cell, with its CPUs and GPUs on one node.

    All nodes need this code and its Python at the same paths, and the folder of the runs on a shared disk: nothing is
    copied to them. The scheduler runs on a node of the cluster. A cell has the environment of the scheduler, then that
    of the node; OMP_NUM_THREADS defaults to CPUs / processes, and Ray sets CUDA_VISIBLE_DEVICES, empty without GPUs.
    The niceness of a cell is that of Ray tasks (RAY_worker_niceness).

    Ray does not retry a task (max_retries is 0): the scheduler queues a lost cell again, since it knows from the disk
    what is left to do. Unlike with other executors cells end with the scheduler: when it is closed or killed, even by
    SIGKILL, every command gets SIGTERM within seconds and saves. While it saves, Ray may already assign its GPUs to
    another task. A dead node is noticed within seconds, one that does not answer within about a minute. When the head
    of a cluster is unreachable for a minute, Ray ends the scheduler and the tasks; cells save, and a new `grid run`
    resumes them.

    Args:
        processes: Processes per cell.
        gpus: One GPU per process; otherwise cells see no GPU.
        cpus: CPUs per cell. None: one per process.
        memory_gib: Memory that a cell reserves; Ray uses it for placement and does not enforce it. None: not
            considered. [GiB]
        address: A running cluster: host:port of its head, or auto for the one that this machine is a node of. None:
            starts a cluster of this machine that ends with the scheduler.
        resources: Custom resources (`ray start --resources`) that a cell reserves, such as {a100: 1}.
        save_seconds: Time to save between SIGTERM and SIGKILL. [seconds]

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, or no node has room for one cell.
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
        taken = sorted({*RESERVED} & {*resources})
        if taken:
            hint = "CPUs, GPUs and memory have their own keys: cpus, gpus, memory_gib."
            raise UserError("unsupported", f"found {', '.join(taken)}", place="executor.resources", hint=hint)
        if broken := [name for name, amount in resources.items() if amount > 1 and amount % 1]:
            found = f"{', '.join(broken)} is neither an integer nor below 1"
            raise UserError(
                "out-of-range", found, place="executor.resources", expected="an integer, or a fraction below 1"
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
            self._check_nodes()
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
            "num_returns": "streaming",  # the task reports that it runs before it ends
            "max_retries": 0,
        }
        return ray.remote(**options)(_hold)

    def _check_nodes(self) -> None:
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        if not any(_count_fitting(node["Resources"], self._needs) for node in nodes):
            found = "; ".join(
                f"{node['NodeManagerAddress']}: {_amounts(node['Resources'], self._needs)}" for node in nodes
            )
            needs = f"a cell needs {_amounts(self._needs, self._needs)} on one node, and no node has that much"
            raise UserError("does-not-fit", needs, place="executor ray", hint=f"Nodes: {found}.")

    def room(self) -> int:
        """How many more jobs it can take now: up to `jobs`; without, as many as the nodes have resources for."""
        import ray
        from ray._private.state import available_resources_per_node

        states = [(handle, handle.state()) for handle in self._handles]
        self._handles = [handle for handle, state in states if state != "gone"]
        if self.jobs is not None:
            return max(0, self.jobs - len(self._handles))
        # The free resources are a second old and may include those of a job that just started.
        whole = sum(_count_fitting(node["Resources"], self._needs) for node in ray.nodes() if node["Alive"])
        free = sum(_count_fitting(node, self._needs) for node in available_resources_per_node().values())
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
        """Leaves the cluster, which ends the tasks: running commands get SIGTERM."""
        import ray

        ray.shutdown()


class _Nodes:
    """The ids of the nodes that are alive."""

    def __init__(self) -> None:
        self._alive: set[str] = set()
        self._asked = float("-inf")

    def alive(self) -> set[str]:
        import ray

        if time.monotonic() - self._asked > NODES_POLL_S:
            self._alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            self._asked = time.monotonic()
        return self._alive


class _Handle:
    def __init__(self, stream: Any, log: Path, nodes: _Nodes) -> None:
        self._stream = stream  # ObjectRefGenerator of the messages of the task
        self._log = log
        self._nodes = nodes
        self._state: State = "waiting"
        self._messages: dict[str, str] = {}  # node: where it runs; problem: why it failed

    def state(self) -> State:
        import ray

        if self._state == "gone":
            return "gone"
        if not ray.is_initialized():  # the executor was closed; a call would start a cluster
            self._state = "gone"
        elif ray.wait([self._stream.completed()], timeout=0, fetch_local=False)[0]:
            self._state = "gone"
            while self._receive():
                pass
        elif self._state == "waiting" and ray.wait([self._stream], timeout=0, fetch_local=False)[0]:
            self._receive()
            self._state = "running"
        elif "node" in self._messages and self._messages["node"] not in self._nodes.alive():
            # Ray reports a node that hangs, or without a network, only after minutes.
            self._messages["problem"] = "its node is lost"
            self._state = "gone"
        if self._state == "gone" and "problem" in self._messages:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"ray: the task is gone: {self._messages['problem']}\n")
        return self._state

    def _receive(self) -> bool:
        """Reads the next message of the task; False without one."""
        import ray

        try:
            self._messages.update(ray.get(next(self._stream), timeout=TIMEOUT_S))
        except (StopIteration, ray.exceptions.TaskCancelledError):
            return False
        except ray.exceptions.RayError as error:
            self._messages["problem"] = first_line(error)
            return False
        return True

    def cancel(self) -> None:
        import ray

        if self.state() != "gone":
            ray.cancel(self._stream)  # a KeyboardInterrupt in `_hold`


def _without(environment: Any, *names: str) -> dict[str, str]:
    """The variables that are neither Ray's nor in `names`."""
    return {name: value for name, value in environment.items() if not name.startswith("RAY_") and name not in names}


def _count_fitting(node: dict[str, float], needs: dict[str, float]) -> int:
    """How many cells fit on a node with these resources."""
    return int(min(node.get(name, 0) / amount + 1e-6 for name, amount in needs.items()))  # 0.3 / 0.1 is below 3


def _amounts(amounts: dict[str, float], names: dict[str, float]) -> str:
    """Such as `CPU 2, memory 3.5 GiB`."""
    in_gib = {name: amounts.get(name, 0) / 1024**3 if name == "memory" else amounts.get(name, 0) for name in names}
    return ", ".join(f"{name} {amount:.4g}{' GiB' if name == 'memory' else ''}" for name, amount in in_gib.items())


def _connect(address: str | None) -> None:
    """Starts a cluster of this machine, or joins one.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be started or reached.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # under `uv run`, Ray would copy this folder to every node
    try:
        import ray
    except ImportError as error:
        found, hint = f"Ray does not import ({error})", "Run `pip install 'sonoscribe[ray]'`."
        raise UserError("missing-package", found, place="executor ray", hint=hint) from None
    if ray.is_initialized():
        raise UserError("in-use", "this process is already in a Ray cluster", place="executor ray")
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    # Ray replaces them.
    handler, debugger = signal.getsignal(signal.SIGTERM), os.environ.get("PYTHONBREAKPOINT")
    try:
        if address is None:
            ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        else:
            _check_address(address)
            ray.init(address, **quiet)
    except (OSError, RuntimeError) as error:
        found = "a local cluster does not start" if address is None else f"the cluster at {address} cannot be joined"
        raise UserError("cluster-unavailable", f"{found}: {error}", place="executor.address") from error
    finally:
        os.environ.pop("PYTHONBREAKPOINT", None)
        if debugger is not None:
            os.environ["PYTHONBREAKPOINT"] = debugger
        with contextlib.suppress(ValueError):  # not the main thread; there Ray sets no handler either
            signal.signal(signal.SIGTERM, handler)


def _check_address(address: str) -> None:
    """Joins a cluster in a process of its own: `ray.init` may try for minutes and then exits.

    Raises:
        UserError: no cluster answers within TIMEOUT_S.
    """
    host, _, port = address.rpartition(":")
    if address != "auto":
        expected = "host:port of the head of a running cluster, as printed by `ray start --head`, or auto"
        if "://" in address or not host or not port.isdigit():
            raise UserError("wrong-format", f"found {address}", place="executor.address", expected=expected)
        try:
            socket.create_connection((host, int(port)), timeout=TIMEOUT_S / 2).close()
        except (OSError, OverflowError) as error:
            found = f"nothing answers at {address} ({error})"
            raise UserError("cluster-unavailable", found, place="executor.address", expected=expected) from None
    join = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)"
    ask = [sys.executable, "-c", join, address]
    try:
        asked = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        reason = f"it does not answer within {TIMEOUT_S:.0f} s"
    else:
        if not asked.returncode:
            return
        reason = next((line.strip() for line in reversed(asked.stderr.splitlines()) if line.strip()), "no reason")
    raise UserError(
        "cluster-unavailable",
        f"the cluster at {address} cannot be joined: {reason}",
        place="executor.address",
        hint="This machine must be one of its nodes, and the port that of `ray start --head`. If that asks for a "
        "token, set RAY_AUTH_MODE=token.",
    )


def _hold(order: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The task: holds its resources while the command runs. Yields its node, and the problem if that does not start."""
    import ray

    context = ray.get_runtime_context()
    order = {**order, "environment": {**_without(os.environ, *WORKER_VARIABLES), **order["environment"]}}
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
        keeper.wait()  # it continues as a process of its own
        yield {"node": context.get_node_id()}
        _until_readable(keeper.stdout)
        failure = keeper.stdout.read()
    finally:  # also by the KeyboardInterrupt of `ray.cancel`
        with contextlib.suppress(OSError):
            keeper.stdin.close()
        end = time.monotonic() + order["save_seconds"] + 10
        while time.monotonic() < end:
            with contextlib.suppress(KeyboardInterrupt):  # Ray sends several
                _until_readable(keeper.stdout, end)
                break
    if failure:
        yield {"problem": failure.strip()}


def _until_readable(pipe: Any, end: float = float("inf")) -> None:
    """Waits for data, or the end of the pipe. In short intervals, since Ray's interrupts do not wake a longer wait."""
    while time.monotonic() < end and not select.select([pipe], [], [], 0.5)[0]:
        pass


def _keep() -> None:
    """The keeper: runs the command of the order on standard input, and ends it when standard input ends.

    Prints why the command does not start, or nothing.
    """
    import psutil

    # Not a child of the worker, which kills its children when it ends, and the parent of orphans of the command.
    if os.fork():
        os._exit(0)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    line = sys.stdin.readline()
    if not line:
        return  # the worker died before it could write
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
    # Orphans in any session would write into the folder of the cell when it is started again.
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _end_with_the_keeper() -> None:
    """In the process of the command: requests SIGTERM for when the keeper is killed."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


if __name__ == "__main__":
    _keep()
