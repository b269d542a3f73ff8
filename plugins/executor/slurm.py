"""Cells as jobs of a Slurm cluster, submitted through submitit.

Signals are the difficult part. Who gets which (Slurm 22.05, `man slurm.conf`, `man sbatch`):

- Time limit: `--signal` sends SIGUSR2 to the tasks of a job some time before its end, never to the batch script.
- Preemption and `scontrol requeue`: SIGTERM, and SIGKILL after KillWait (30 s by default); Slurm requeues the job. In a
  partition with GraceTime, SIGTERM comes earlier by that time, but a job that ends within it counts as ended: it has to
  request the requeue itself.
- `scancel --signal=TERM`: SIGTERM, and nothing after it.

Depending on ProctrackType all processes of a task get a signal, or only the one that Slurm started: `Command`, which
forwards SIGTERM. So the command may get SIGTERM twice, and must never get SIGUSR2, which ends most commands at once.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from framework.grid.executor import Handle, Job, State
from framework.registry import register
from framework.runtime.errors import UserError

POLL_S = 0.5  # of a command
QUEUE_POLL_S = 5.0  # of squeue, for all jobs at once
TIMEOUT_S = 30.0  # of Slurm's tools; scancel tries for minutes to signal a job that is not ready for signals
REQUEUE_S = 30  # before the time limit, to end the command and requeue the job
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
SIGNALLED = ("RUNNING", "SUSPENDED")  # states of jobs that scancel can send a signal to
# Variables with the rank of a process, set by srun, mpirun and launchers. accelerate reads PMI_SIZE and others too.
RANK_PREFIXES = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI", "OMPI_", "MV2_", "TORCHELASTIC_")
RANK_NAMES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
HARMLESS = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_TMPDIR")
# Options of sbatch that this file sets, with the key to use instead.
OWN_OPTIONS = {
    "partition": "partition", "time": "minutes", "cpus-per-task": "cpus", "mem": "memory_gib", "account": "account",
    "constraint": "constraint", "qos": "qos", "gpus": "gpus", "gpus-per-node": "gpus", "gpus-per-task": "gpus",
    "signal": "save_seconds",
    **dict.fromkeys(("array", "job-name", "nodes", "ntasks", "ntasks-per-node", "output", "error", "open-mode")),
    **dict.fromkeys(("requeue", "no-requeue", "chdir", "clusters", "parsable", "test-only", "wait", "wrap")),
}  # fmt: skip


@register("executor", "slurm")
class Slurm:
    """Jobs of a Slurm cluster: one job per cell, on one node. Jobs that start together are one array.

    The folder of the runs, this code and its Python must be on a disk that the nodes share. A job that is preempted or
    reaches its time limit lets its cell save and is requeued, also without a running `grid run`. A cell has the
    environment of the `grid run`; OMP_NUM_THREADS defaults to CPUs / processes.

    Slurm's accounting (sacct) is not needed. The logs of submitit are in slurm/ in the folder of the grid.

    Args:
        processes: Processes per cell.
        gpus: One GPU per process; otherwise cells see no GPU.
        gpu_type: GPU type, as the site names it, such as a100. None: any.
        cpus: CPUs per cell. None: one per process.
        memory_gib: Memory per cell. None: the site's default. [GiB]
        minutes: Time limit of a job. [minutes]
        save_seconds: Time to save before the time limit and when cancelled. If Slurm preempts without GraceTime, it
            kills after its KillWait. [seconds]
        timeouts: How often a job that reached its time limit requeues itself; after that, `grid run` starts it again.
        partition: Partition, or several separated by commas. None: the site's default.
        account: Account to charge. None: the user's default.
        qos: Quality of service. None: the default.
        constraint: Features that nodes must have.
        extra: Other options of sbatch, such as {reservation: course, exclusive: true}.
        cluster: slurm; or, to test a grid on this machine, submitit's local, or debug, which runs one cell at a time in
            this process. Both ignore memory, CPUs and the queue.

    Raises:
        UserError: submitit is not installed, this machine has no Slurm, or keys conflict.
    """

    def __init__(
        self,
        *,
        folder: Path,
        jobs: int | None = None,
        processes: PositiveInt = 1,
        gpus: bool = False,
        gpu_type: str | None = None,
        cpus: PositiveInt | None = None,
        memory_gib: PositiveFloat | None = None,
        minutes: PositiveInt = 1440,
        save_seconds: PositiveInt = 120,
        timeouts: NonNegativeInt = 20,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        extra: dict[str, str | int | bool] = {},  # noqa: B006  a literal, as plugins' defaults are; it is only read
        cluster: Literal["slurm", "local", "debug"] = "slurm",
    ) -> None:
        _import_submitit()
        self.processes, self.jobs, self.cluster = processes, jobs, cluster
        self.folder = folder.absolute()
        self.save_seconds, self.timeouts, self.minutes = save_seconds, timeouts, minutes
        self._handles: list[Handle] = []
        if "%" in str(self.folder):
            raise UserError("unsupported", "sbatch interprets % in paths", place=self.folder, hint="Rename it.")
        if minutes * 60 <= save_seconds + REQUEUE_S:
            raise UserError(
                "out-of-range",
                f"found {minutes}",
                place="executor.minutes",
                expected=f"more time than save_seconds, {save_seconds} s, plus {REQUEUE_S} s to requeue a job",
            )
        if gpu_type is not None and not gpus:
            raise UserError(
                "ignored-setting", f"found {gpu_type}", place="executor.gpu_type", expected="gpus: true with it"
            )
        cpus = processes if cpus is None else cpus
        self._environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cpus // processes))}
        if not gpus:
            self._environment["CUDA_VISIBLE_DEVICES"] = ""
        queue = {"partition": partition, "account": account, "qos": qos, "constraint": constraint}
        queue = {option: value for option, value in queue.items() if value is not None}
        options = _options(extra)
        if cluster == "slurm":
            self.parameters = {
                "time": minutes,
                "nodes": 1,
                "ntasks_per_node": 1,
                "cpus_per_task": cpus,
                "srun_args": [f"--cpus-per-task={cpus}"],  # since Slurm 22.05, srun does not inherit it from sbatch
                "signal_delay_s": save_seconds + REQUEUE_S,
                "additional_parameters": {"requeue": True, **options},
                **queue,
            }
            if gpus:
                self.parameters["gpus_per_node"] = f"{gpu_type}:{processes}" if gpu_type else processes
            if memory_gib is not None:
                self.parameters["mem"] = f"{math.ceil(memory_gib * 1024)}M"
            self._queue = _Queue()
            self._max_jobs = _max_array_size()
            return
        ignored = [*queue, *extra, *(["memory_gib"] if memory_gib is not None else [])]
        if ignored:
            warnings.warn(f"executor slurm: cluster {cluster} ignores {', '.join(ignored)}", stacklevel=2)
        if cluster == "debug" and (jobs or 1) != 1:
            raise UserError(
                "unsupported", f"found {jobs}", place="--jobs", expected="1, as cluster: debug runs one cell at a time"
            )
        self.parameters = {
            "timeout_min": minutes,
            "signal_delay_s": save_seconds + REQUEUE_S,
            "gpus_per_node": processes if gpus else 0,
        }
        self._max_jobs = jobs or 1

    def room(self) -> int:
        """How many more jobs it can take now; without `jobs`, the maximum size of an array, since Slurm queues them."""
        self._handles = [handle for handle in self._handles if handle.state() != "gone"]
        if self.cluster == "slurm" and self.jobs is None:
            return self._max_jobs
        return max(0, (self.jobs or self._max_jobs) - len(self._handles))

    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Submits the jobs as one array.

        Raises:
            UserError: sbatch refuses them.
        """
        if not jobs:
            return []
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        commands = [self._command(job) for job in jobs]
        executor = self._executor(_array_name([job.name for job in jobs]))
        try:
            # submitit also prints the output of sbatch.
            with contextlib.redirect_stderr(io.StringIO()), _outside_a_job(), executor.batch():
                submitted = [executor.submit(command) for command in commands]
        except (FailedJobError, FailedSubmissionError) as error:
            message = " ".join(str(error).replace("sbatch: error: ", "").split())
            found = f"sbatch refused {len(jobs)} job(s): {message}"
            raise UserError("cluster-unavailable", found, place="executor slurm") from None
        handles: list[Handle] = []
        for job, command in zip(submitted, commands):
            if self.cluster == "slurm":
                handles.append(_SlurmHandle(job.job_id, command.cancelled, self._queue))
            elif self.cluster == "local":
                handles.append(_LocalHandle(job, command.cancelled))
            else:
                job.exception()  # runs it; `result` would open a debugger if it fails
                handles.append(_Ended())
        self._handles += handles
        return handles

    def close(self) -> None:
        """Jobs continue."""

    def _command(self, job: Job) -> Command:
        self.folder.mkdir(parents=True, exist_ok=True)
        cancelled = self.folder / f"{uuid.uuid4().hex}.cancelled"
        return Command(job.name, job.command, job.log.absolute(), self.save_seconds, cancelled, self._environment)

    def _executor(self, name: str) -> Any:
        import submitit

        if self.cluster == "debug":
            return submitit.DebugExecutor(self.folder)
        kind = submitit.SlurmExecutor if self.cluster == "slurm" else submitit.LocalExecutor
        executor = kind(self.folder, max_num_timeout=self.timeouts)
        named = {"job_name": name, "array_parallelism": self.jobs or self._max_jobs} if self.cluster == "slurm" else {}
        executor.update_parameters(**self.parameters, **named)
        return executor


@dataclass(frozen=True)
class Command:
    """The function of a job. submitit pickles it, calls it on the node, and pickles it again for the next attempt."""

    name: str
    command: tuple[str, ...]
    log: Path
    save_seconds: float
    cancelled: Path  # if this file exists, the job ends, or does not start
    environment: dict[str, str]  # added to that of the job

    def __call__(self) -> int:
        """Runs the command and returns its exit status.

        A signal first ends the command and then goes to its former handler: submitit requests the requeue.

        Raises:
            RuntimeError: the command failed, so Slurm counts the job as failed.
        """
        import submitit

        print(f"{self.name}: {self.command}; its output goes to {self.log}", flush=True)
        warning = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        received: list[int] = []
        # A handler only stores the signal, since it may interrupt the start of the command.
        numbers = (signal.SIGTERM, warning)
        before = {number: signal.signal(number, lambda signum, _: received.append(signum)) for number in numbers}
        code, process = 0, None
        try:
            if not self.cancelled.exists():
                process = self._start(warning)
                while process.poll() is None and not received and not self.cancelled.exists():
                    time.sleep(POLL_S)
        finally:
            if process is not None:
                code = self._end(process)
            for which, handler in before.items():
                signal.signal(which, handler)
        if self.cancelled.exists():
            return code
        if received and warning not in received and _preempted():
            received.append(warning)
        for number in dict.fromkeys(received):
            signal.raise_signal(number)
        if code and not received:
            raise RuntimeError(f"{self.name} ended with exit status {code}; its output is in {self.log}")
        return code

    def checkpoint(self) -> Any:
        """What submitit requeues: the same command, which resumes from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _start(self, warning: signal.Signals) -> subprocess.Popen[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if name in HARMLESS or not _is_rank_variable(name)}
        # A child process inherits blocked signals.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [warning])
        try:
            with self.log.open("ab") as log:
                return subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**kept, **self.environment},
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """Waits until the command has saved and ended, or kills it and its children."""
        import psutil

        if process.poll() is None:
            process.terminate()
        try:
            return process.wait(self.save_seconds)
        except subprocess.TimeoutExpired:
            print(f"{self.name} did not end within {self.save_seconds} s of SIGTERM: killed", flush=True)
        for started in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                started.kill()
        return process.wait()


@dataclass
class _Queue:
    """The output of squeue for all jobs of this user, at most every few seconds."""

    states: dict[str, str] = field(default_factory=dict)  # by job; "12_3" is element 3 of array 12
    answered: float = -math.inf  # time of the call that `states` is from
    asked: float = -math.inf

    def update(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self.asked < QUEUE_POLL_S:
            return
        self.asked = time.monotonic()
        # All partitions, including hidden ones, and all states of jobs that have not ended. Not `--jobs`, which fails
        # once Slurm has forgotten a job.
        found = _run("squeue", "--all", "--array", "--noheader", f"--user={os.getuid()}", "--format=%i|%T")
        if found.returncode:
            warnings.warn(f"executor slurm: squeue does not answer: {found.stderr.strip()}", stacklevel=2)
            return
        self.states = dict(line.strip().split("|") for line in found.stdout.splitlines() if line.strip())
        self.answered = self.asked


@dataclass
class _SlurmHandle:
    job: str
    cancelled: Path
    queue: _Queue
    submitted: float = field(default_factory=time.monotonic)
    gone: bool = False

    def state(self) -> State:
        if self.gone:
            return "gone"
        self.queue.update()
        if self.queue.answered < self.submitted:
            return "waiting"
        found = self.queue.states.get(self.job)
        self.gone = found is None
        return "gone" if found is None else "waiting" if found in WAITING else "running"

    def cancel(self) -> None:
        # Unlike a signal, the file also stops a job that is just starting, and one that Slurm would start again.
        self.cancelled.touch()
        self.queue.update(now=True)
        found = self.queue.states.get(self.job)
        if found in SIGNALLED:
            _run("scancel", "--signal=TERM", self.job)  # plain scancel would kill after KillWait
        elif found is not None:
            _run("scancel", self.job)
        self.queue.asked = -math.inf


@dataclass
class _LocalHandle:
    job: Any  # submitit.LocalJob
    cancelled: Path

    def state(self) -> State:
        return "gone" if self.job.done() else "running"

    def cancel(self) -> None:
        self.cancelled.touch()


class _Ended:
    def state(self) -> State:
        return "gone"

    def cancel(self) -> None:
        pass


def _import_submitit() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        hint = "Run `pip install 'sonoscribe[slurm]'`."
        raise UserError("missing-package", "submitit is not installed", place="executor slurm", hint=hint) from None


def _max_array_size() -> int:
    """The maximum size of an array.

    Raises:
        UserError: this machine has no Slurm, or it does not answer.
    """
    missing = [tool for tool in ("sbatch", "srun", "squeue", "scancel", "scontrol") if shutil.which(tool) is None]
    if missing:
        raise UserError(
            "cluster-unavailable",
            f"this machine has no {', '.join(missing)}",
            place="executor slurm",
            hint="Run this on a login node (perhaps after `module load slurm`), use --executor local, or test the grid "
            "here with executor: {name: slurm, cluster: local}.",
        )
    found = _run("scontrol", "show", "config")
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", found.stdout, re.MULTILINE)
    if found.returncode or size is None:
        message = f"`scontrol show config` fails: {found.stderr.strip()}"
        raise UserError("cluster-unavailable", message, place="executor slurm")
    return max(1, int(size[1]))  # 0: this Slurm has no arrays


def _options(extra: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    """Raises UserError for an option that a key or this file sets."""
    options = {}
    for word, value in extra.items():
        option = word.lstrip("-").replace("_", "-")
        if option in OWN_OPTIONS or len(option) == 1:
            key = OWN_OPTIONS.get(option)
            hint = f"Set {key}." if key else "Use its long name." if len(option) == 1 else "This executor sets it."
            raise UserError("unsupported", "extra cannot have this option", place=f"executor.extra.{word}", hint=hint)
        if option == "gres" and "gpu" in str(value):
            hint = "Set gpus and gpu_type."
            raise UserError("unsupported", f"found {value}", place=f"executor.extra.{word}", hint=hint)
        if value is False:
            raise UserError("ignored-setting", "found false", place=f"executor.extra.{word}", hint="Remove it.")
        options[option] = value
    return options


def _array_name(names: Sequence[str]) -> str:
    """Name of an array: that of its job, or the part up to the last dash that the names of all jobs share."""
    starts = {name.rpartition("-")[0] for name in names}
    return names[0] if len(names) == 1 else starts.pop() if len(starts) == 1 else "sonoscribe"


def _is_rank_variable(name: str) -> bool:
    return name.startswith(RANK_PREFIXES) or name in RANK_NAMES


@contextlib.contextmanager
def _outside_a_job() -> Iterator[None]:
    """Hides the variables of the job that this process may run in, which new jobs would inherit."""
    names = [name for name in os.environ if name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names if "SLURM_JOB_ID" in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _preempted() -> bool:
    """Whether this job is being preempted and is in its GraceTime."""
    if "SLURM_JOB_ID" not in os.environ:
        return False
    found = _run("scontrol", "show", "job", os.environ["SLURM_JOB_ID"])
    at = re.search(r"\bPreemptTime=(\S+)", found.stdout)
    return at is not None and at[1] not in ("None", "N/A")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a tool of Slurm without the user's default options for it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SCANCEL_"))}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
