"""Cells as jobs of a Slurm cluster, handed over through submitit.

What tells Slurm from the rest here is signals, so this is who gets which (Slurm 22.05, `man slurm.conf`, `man sbatch`):

- Time limit: `--signal` sends SIGUSR2 to the tasks of a job some time before its end, never to the batch script.
- Preemption and `scontrol requeue`: SIGTERM, after KillWait (30 s unless the site says otherwise) SIGKILL; Slurm queues
  the job again by itself. In a partition with GraceTime, SIGTERM comes that much earlier, but a job that has ended when
  the time is over counts as ended: it has to ask to be queued again.
- `scancel --signal=TERM`: SIGTERM, and nothing after it.

Depending on ProctrackType all processes of a task get them, or only the one that Slurm started: `Command`, which passes
SIGTERM on. So the command may hear SIGTERM twice, and must never hear SIGUSR2, which would end it on the spot.
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

LOOKS_S = 0.5  # between two looks at a command
ASKS_S = 5.0  # between two questions to Slurm, however many jobs there are
ANSWERS_S = 30.0  # that Slurm may take; scancel tries for minutes to signal a job that it cannot signal yet
REQUEUE_S = 30  # before the time limit, that a job may take to end its command and to be queued again
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
SIGNALLED = ("RUNNING", "SUSPENDED")  # jobs that scancel can send a signal to
# Variables by which srun, mpirun and launchers tell a process its rank. accelerate reads PMI_SIZE and its like too.
RANK_PREFIXES = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI", "OMPI_", "MV2_", "TORCHELASTIC_")
RANK_NAMES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
HARMLESS = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_TMPDIR")
# Options of sbatch that are this file's, with the key that sets them.
OWN_OPTIONS = {
    "partition": "partition", "time": "minutes", "cpus-per-task": "cpus", "mem": "memory_gib", "account": "account",
    "constraint": "constraint", "qos": "qos", "gpus": "gpus", "gpus-per-node": "gpus", "gpus-per-task": "gpus",
    "signal": "save_seconds",
    **dict.fromkeys(("array", "job-name", "nodes", "ntasks", "ntasks-per-node", "output", "error", "open-mode")),
    **dict.fromkeys(("requeue", "no-requeue", "chdir", "clusters", "parsable", "test-only", "wait", "wrap")),
}  # fmt: skip


@register("executor", "slurm")
class Slurm:
    """Jobs of a Slurm cluster: one a cell, on one node. Those that start together are one array.

    The folder of the runs, this code and its Python lie on a disk that the nodes share. A job that is preempted or
    reaches its time limit lets its cell save and is queued again, also when there is no `grid run` any more.
    A cell has the environment of the `grid run`; OMP_NUM_THREADS, unless set, is its CPUs over its processes.

    Slurm's accounting (sacct) is not needed. What submitit logs lies in the grid's folder, in slurm/.

    Args:
        processes: Processes of a cell.
        gpus: Each process has a GPU of its own. Otherwise cells see none.
        gpu_type: Which GPUs, as the site calls them, such as a100. None: any.
        cpus: CPUs of a cell. None: one a process.
        memory_gib: Memory of a cell. None: what the site gives. [GiB]
        minutes: Time limit of a job. [minutes]
        save_seconds: Time that a cell has to save and end before the time limit, and when it is cancelled. Where Slurm
            preempts without GraceTime, it kills after its KillWait. [seconds]
        timeouts: How often a job that reached its time limit is queued again; above that, it is left to `grid run`.
        partition: Partition, or several with commas. None: the site's default.
        account: Account that is charged. None: the user's default.
        qos: Quality of service. None: the default.
        constraint: Features that nodes must have.
        extra: Other options of sbatch, such as {reservation: course, exclusive: true}.
        cluster: slurm; or, to try a grid out on this machine, submitit's own: local, or debug, which runs one cell
            after the other in this process. These two take no notice of memory, CPUs and the queue.

    Raises:
        ValueError: submitit is not installed, there is no Slurm on this machine, or keys do not fit one another.
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
            raise ValueError(f"executor 'slurm': {self.folder} has a %, which means something else to sbatch; move it")
        if minutes * 60 <= save_seconds + REQUEUE_S:
            raise ValueError(
                f"executor 'slurm': with minutes: {minutes}, a job would be told to save as soon as it starts, since "
                f"save_seconds is {save_seconds}, and {REQUEUE_S} s more go to queueing it again. Raise minutes"
            )
        if gpu_type is not None and not gpus:
            raise ValueError(f"executor 'slurm': gpu_type: {gpu_type} needs gpus: true")
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
                "srun_args": [f"--cpus-per-task={cpus}"],  # since Slurm 22.05, srun does not take sbatch's
                "signal_delay_s": save_seconds + REQUEUE_S,
                "additional_parameters": {"requeue": True, **options},
                **queue,
            }
            if gpus:
                self.parameters["gpus_per_node"] = f"{gpu_type}:{processes}" if gpu_type else processes
            if memory_gib is not None:
                self.parameters["mem"] = f"{math.ceil(memory_gib * 1024)}M"
            self._queue = _Queue()
            self._most = _largest_array()
            return
        unheeded = [*queue, *extra, *(["memory_gib"] if memory_gib is not None else [])]
        if unheeded:
            warnings.warn(f"executor 'slurm': cluster {cluster} takes no notice of {', '.join(unheeded)}", stacklevel=2)
        if cluster == "debug" and (jobs or 1) != 1:
            raise ValueError(f"executor 'slurm': cluster debug runs one cell at a time, not {jobs}; leave --jobs out")
        self.parameters = {
            "timeout_min": minutes,
            "signal_delay_s": save_seconds + REQUEUE_S,
            "gpus_per_node": processes if gpus else 0,
        }
        self._most = jobs or 1

    def room(self) -> int:
        """How many more jobs it would take now; without `jobs`, as many as an array may have, since Slurm queues."""
        self._handles = [handle for handle in self._handles if handle.state() != "gone"]
        if self.cluster == "slurm" and self.jobs is None:
            return self._most
        return max(0, (self.jobs or self._most) - len(self._handles))

    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Queues jobs as one array.

        Raises:
            ValueError: sbatch refused them, and why.
        """
        if not jobs:
            return []
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        commands = [self._command(job) for job in jobs]
        executor = self._executor(_array_name([job.name for job in jobs]))
        try:
            # submitit also prints what sbatch says.
            with contextlib.redirect_stderr(io.StringIO()), _outside_a_job(), executor.batch():
                submitted = [executor.submit(command) for command in commands]
        except (FailedJobError, FailedSubmissionError) as error:
            said = " ".join(str(error).replace("sbatch: error: ", "").split())
            raise ValueError(f"executor 'slurm': sbatch refused {len(jobs)} job(s): {said}") from None
        handles: list[Handle] = []
        for job, command in zip(submitted, commands):
            if self.cluster == "slurm":
                handles.append(_SlurmHandle(job.job_id, command.cancelled, self._queue))
            elif self.cluster == "local":
                handles.append(_LocalHandle(job, command.cancelled))
            else:
                job.exception()  # runs it; `result` would open a debugger where it fails
                handles.append(_Ended())
        self._handles += handles
        return handles

    def close(self) -> None:
        """Jobs go on."""

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
        named = {"job_name": name, "array_parallelism": self.jobs or self._most} if self.cluster == "slurm" else {}
        executor.update_parameters(**self.parameters, **named)
        return executor


@dataclass(frozen=True)
class Command:
    """What a job does. submitit pickles it, calls it on the node, and pickles it again for the next attempt."""

    name: str
    command: tuple[str, ...]
    log: Path
    save_seconds: float
    cancelled: Path  # a file: once it is there, the job shall end, or not begin
    environment: dict[str, str]  # beside that of the job

    def __call__(self) -> int:
        """Runs the command, and gives its exit status.

        A signal ends the command and is then handled as it would have been without one: submitit asks for the requeue.

        Raises:
            RuntimeError: the command failed, so that Slurm counts the job as failed.
        """
        import submitit

        print(f"{self.name}: {self.command}; its output is added to {self.log}", flush=True)
        warning = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        heard: list[int] = []
        # A handler only makes a note, since what it interrupts may be the start of the command.
        numbers = (signal.SIGTERM, warning)
        before = {number: signal.signal(number, lambda heard_now, _: heard.append(heard_now)) for number in numbers}
        code, process = 0, None
        try:
            if not self.cancelled.exists():
                process = self._start(warning)
                while process.poll() is None and not heard and not self.cancelled.exists():
                    time.sleep(LOOKS_S)
        finally:
            if process is not None:
                code = self._end(process)
            for which, handler in before.items():
                signal.signal(which, handler)
        if self.cancelled.exists():
            return code
        if heard and warning not in heard and _preempted():
            heard.append(warning)
        for number in dict.fromkeys(heard):
            signal.raise_signal(number)
        if code and not heard:
            raise RuntimeError(f"{self.name} ended with exit status {code}; what it printed is in {self.log}")
        return code

    def checkpoint(self) -> Any:
        """What is queued in place of the job: the same command, which goes on from what it saved."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _start(self, warning: signal.Signals) -> subprocess.Popen[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if name in HARMLESS or not _tells_a_rank(name)}
        # A signal that is blocked stays so in what is started.
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
        """Waits until the command has saved and ended, or ends all that it has started."""
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
    """What squeue says of this user's jobs: one question for all of them, every few seconds."""

    states: dict[str, str] = field(default_factory=dict)  # by job; "12_3" is element 3 of array 12
    answered: float = -math.inf  # when the question was put that they answer
    asked: float = -math.inf

    def look(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self.asked < ASKS_S:
            return
        self.asked = time.monotonic()
        # All partitions, hidden ones too; and every state but those of jobs that have ended. Not `--jobs`, which fails
        # once Slurm has forgotten a job.
        found = _ask("squeue", "--all", "--array", "--noheader", f"--user={os.getuid()}", "--format=%i|%T")
        if found.returncode:
            warnings.warn(f"executor 'slurm': squeue does not answer: {found.stderr.strip()}", stacklevel=2)
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
        self.queue.look()
        if self.queue.answered < self.submitted:
            return "waiting"
        found = self.queue.states.get(self.job)
        self.gone = found is None
        return "gone" if found is None else "waiting" if found in WAITING else "running"

    def cancel(self) -> None:
        # The file reaches a job that is just starting, which no signal does, and one that Slurm would start again.
        self.cancelled.touch()
        self.queue.look(now=True)
        found = self.queue.states.get(self.job)
        if found in SIGNALLED:
            _ask("scancel", "--signal=TERM", self.job)  # plain scancel would kill after KillWait
        elif found is not None:
            _ask("scancel", self.job)
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
        raise ValueError("executor 'slurm' needs submitit: pip install 'sonoscribe[slurm]'") from None


def _largest_array() -> int:
    """How many elements an array may have.

    Raises:
        ValueError: there is no Slurm here, or it does not answer.
    """
    missing = [tool for tool in ("sbatch", "srun", "squeue", "scancel", "scontrol") if shutil.which(tool) is None]
    if missing:
        raise ValueError(
            f"executor 'slurm': there is no {', '.join(missing)} on this machine. Run this where jobs are submitted (a "
            "login node; perhaps after `module load slurm`), use --executor local, or try it out here with "
            "executor: {name: slurm, cluster: local}"
        )
    found = _ask("scontrol", "show", "config")
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", found.stdout, re.MULTILINE)
    if found.returncode or size is None:
        raise ValueError(f"executor 'slurm': Slurm does not answer `scontrol show config`: {found.stderr.strip()}")
    return max(1, int(size[1]))  # 0: this Slurm has no arrays


def _options(extra: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    """Raises ValueError for an option that something else sets."""
    options = {}
    for word, value in extra.items():
        option = word.lstrip("-").replace("_", "-")
        if option in OWN_OPTIONS or len(option) == 1:
            key = OWN_OPTIONS.get(option)
            instead = f"set {key}" if key else "write it out" if len(option) == 1 else "jobs rely on how it is set here"
            raise ValueError(f"executor 'slurm': extra cannot have '{word}': {instead}")
        if option == "gres" and "gpu" in str(value):
            raise ValueError(f"executor 'slurm': extra cannot have '{word}: {value}': set gpus and gpu_type")
        if value is False:
            raise ValueError(f"executor 'slurm': extra has '{word}: false'; leave it out, or give it a value")
        options[option] = value
    return options


def _array_name(names: Sequence[str]) -> str:
    """What an array is called: as its job; of several, what all their names say up to the last dash."""
    starts = {name.rpartition("-")[0] for name in names}
    return names[0] if len(names) == 1 else starts.pop() if len(starts) == 1 else "sonoscribe"


def _tells_a_rank(name: str) -> bool:
    return name.startswith(RANK_PREFIXES) or name in RANK_NAMES


@contextlib.contextmanager
def _outside_a_job() -> Iterator[None]:
    """Hides the shape of the job that this process may itself be in: new ones would take it over from here."""
    names = [name for name in os.environ if name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names if "SLURM_JOB_ID" in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _preempted() -> bool:
    """Whether this job was told to make room, and Slurm believes that it is still using its GraceTime."""
    if "SLURM_JOB_ID" not in os.environ:
        return False
    found = _ask("scontrol", "show", "job", os.environ["SLURM_JOB_ID"])
    at = re.search(r"\bPreemptTime=(\S+)", found.stdout)
    return at is not None and at[1] not in ("None", "N/A")


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a tool of Slurm, whatever defaults the user has for it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SCANCEL_"))}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWERS_S, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
