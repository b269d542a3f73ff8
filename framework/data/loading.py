"""From exams to batches: which exams a step has, whatever the number of processes, and how they are padded."""

from __future__ import annotations

import atexit
import functools
import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from framework.data.image_cache import ImageCache, Images
from framework.exam import PAD, Batch, Exam
from framework.recipe import RecipeError
from framework.runtime.console import print0
from framework.runtime.errors import ProcessLost, UserError, first_line
from framework.runtime.processes import end_with_parent, require_shared_locks
from framework.runtime.signals import SIGNALS


@dataclass(frozen=True)
class Sample:
    exam_id: str
    image_VCHW: np.ndarray
    tokens: list[int]
    topic: int | None
    topic_weights: np.ndarray | None = None  # [K]
    targets: Mapping[str, np.ndarray] = field(default_factory=dict)  # by loss


class ExamSet(Dataset[Sample]):
    """The exams of one split with their images, token ids and topics.

    Args:
        cache: of the images.
        topics: of each exam, [n]; None where no distiller has found any.
        topic_weights: how much of each topic a report has, [n, K].

    Attributes:
        targets: of each exam, by loss, [n, ...]; only training exams have them.
        maps: feature maps that samples have in place of the images.
        order: the numbers of all exams in the order in which an epoch reads them, by (seed, epoch).
    """

    def __init__(
        self,
        exams: Sequence[Exam],
        cache: Images,
        tokens: Sequence[list[int]],
        topics: np.ndarray | None,
        topic_weights: np.ndarray | None = None,
    ) -> None:
        self.exams, self.cache, self.tokens = list(exams), cache, list(tokens)
        self.topics, self.topic_weights = topics, topic_weights
        self.targets: Mapping[str, np.ndarray] = {}
        self.maps: ImageCache | None = None
        self.order: Callable[[int, int], np.ndarray] = functools.partial(epoch_order, len(self.exams))

    def __len__(self) -> int:
        return len(self.exams)

    def __getitem__(self, index: int) -> Sample:
        exam = self.exams[index]
        topic = None if self.topics is None else int(self.topics[index])
        weights = None if self.topic_weights is None else self.topic_weights[index]
        targets = {name: rows[index] for name, rows in self.targets.items()}
        images = self.cache if self.maps is None else self.maps
        return Sample(exam.id, images.images(exam.id), self.tokens[index], topic, weights, targets)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pads views with black and reports with PAD."""
    views = max(len(sample.image_VCHW) for sample in samples)
    longest = max(len(sample.tokens) for sample in samples)
    first_VCHW = samples[0].image_VCHW
    image_BVCHW = np.empty((len(samples), views, *first_VCHW.shape[1:]), first_VCHW.dtype)
    view_mask_BV = torch.zeros(len(samples), views, dtype=torch.bool)
    report_BT = torch.full((len(samples), longest), PAD)
    for row, sample in enumerate(samples):
        image_BVCHW[row, : len(sample.image_VCHW)] = sample.image_VCHW
        image_BVCHW[row, len(sample.image_VCHW) :] = 0
        view_mask_BV[row, : len(sample.image_VCHW)] = True
        report_BT[row, : len(sample.tokens)] = torch.tensor(sample.tokens)
    topics = [sample.topic for sample in samples]
    weights = [sample.topic_weights for sample in samples if sample.topic_weights is not None]
    return Batch(
        [sample.exam_id for sample in samples],
        torch.from_numpy(image_BVCHW),
        view_mask_BV,
        report_BT,
        None if topics[0] is None else torch.tensor(topics),
        torch.from_numpy(np.stack(weights)).float() if weights else None,
        {name: torch.from_numpy(np.stack([sample.targets[name] for sample in samples])) for name in samples[0].targets},
    )


def epoch_order(exams: int, seed: int, epoch: int) -> np.ndarray:
    """The order of exams. It depends on (seed, epoch) alone, not on processes or on resuming."""
    return np.random.default_rng([seed, epoch]).permutation(exams)


def exam_seed(seed: int, epoch: int, exam_id: str, *, copy: bool = False) -> int:
    """Seed of an exam's augmentation in this epoch, on any process; with `copy`, of the second one."""
    return _hashed_seed(seed, epoch, exam_id, *(["copy"] if copy else []))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout in this step."""
    return _hashed_seed("step", seed, step, rank)


def _hashed_seed(*parts: str | int) -> int:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is divided: over the processes, then into micro-batches that are accumulated."""

    batch_size: int
    micro_batch_size: int
    rank: int
    processes: int

    @classmethod
    def plan(cls, batch_size: int, micro_batch_size: int | None, rank: int, processes: int) -> BatchPlan:
        """The plan of this process.

        Args:
            micro_batch_size: None is all exams of a process at once.

        Raises:
            RecipeError: batch_size is not micro_batch_size x processes x a whole number.
        """
        micro = micro_batch_size or batch_size // processes
        unit = micro * processes
        if micro < 1 or batch_size % unit:
            unit = unit if micro_batch_size else processes
            fits = sorted({max(1, batch_size // unit) * unit, (batch_size // unit + 1) * unit})
            raise RecipeError(
                "does-not-divide",
                f"{batch_size} exams do not divide into {processes} processes x micro-batches of {max(1, micro)}",
                place="train.batch_size",
                expected=" or ".join(map(str, fits)),
            )
        return cls(batch_size, micro, rank, processes)

    @property
    def accumulation(self) -> int:
        return self.batch_size // (self.micro_batch_size * self.processes)

    def steps(self, exams: int) -> int:
        """Steps of an epoch. Exams that do not fill the last batch are left out; the next epoch shuffles again."""
        return exams // self.batch_size

    def epoch(self, exams: int, seed: int, epoch: int, done: int = 0) -> list[list[int]]:
        """Micro-batches (exam numbers) of this process in an epoch, after the first `done` steps."""
        found: list[list[int]] = self.cut(epoch_order(exams, seed, epoch), done).tolist()
        return found

    def cut(self, order: np.ndarray, done: int = 0) -> np.ndarray:
        """Micro-batches [n, micro_batch_size] of this process in an epoch of this order, after `done` steps."""
        steps = self.steps(len(order))
        order = order[: steps * self.batch_size].reshape(steps, self.processes, -1, self.micro_batch_size)
        return order[done:, self.rank].reshape(-1, self.micro_batch_size)


class EpochSampler(Sampler[list[int]]):
    """Micro-batches (exam numbers) of one epoch of this process, so that one DataLoader serves all epochs.

    `set_epoch` chooses the epoch before the loader is iterated.
    """

    def __init__(self, exams: ExamSet, batch_plan: BatchPlan, seed: int) -> None:
        self.order, self.batch_plan, self.seed = exams.order, batch_plan, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int, steps_done: int = 0) -> None:
        self.micro_batches = self.batch_plan.cut(self.order(self.seed, epoch), steps_done)

    def __iter__(self) -> Iterator[list[int]]:
        return map(np.ndarray.tolist, self.micro_batches)

    def __len__(self) -> int:
        return len(self.micro_batches)


class Loader:
    """The batches of a DataLoader. Errors that a user can fix are the same with and without workers."""

    def __init__(self, batches: DataLoader) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.batches)
        while True:
            try:
                batch = next(batches, None)
            except (ConnectionError, EOFError) as error:  # a batch in the memory of a worker that has died meanwhile
                raise _worker_lost(str(error)) from error
            if batch is None:
                return
            if isinstance(batch, UserError):
                try:
                    raise batch
                finally:
                    del batch  # a cycle through this frame: garbage collection would leave the workers waiting
            yield batch


def build_loader(exams: ExamSet, batches: Iterable[list[int]], num_workers: int, *, pin: bool = False) -> Loader:
    """A loader of the batches whose workers live as long as it does.

    Args:
        pin: copies batches to page-locked memory, for a GPU.

    Raises:
        UserError: this machine cannot start workers.
    """
    if num_workers:
        require_shared_locks("load batches", "Or set data.num_workers=0.")
        _kill_workers_at_exit()
    loaded: DataLoader[Any] = DataLoader(
        range(len(exams)),  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=functools.partial(_load_in_worker if num_workers else _load, exams),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin,
        worker_init_fn=_start_worker,
    )
    return Loader(loaded)


def _load(exams: ExamSet, numbers: Sequence[int]) -> Batch:
    return collate([exams[number] for number in numbers])


@functools.cache  # registered once
def _kill_workers_at_exit() -> None:
    """Python ends its daemon processes by SIGTERM, which workers ignore, and then waits for them."""

    def kill() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises when a worker is killed
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    atexit.register(kill)


def _start_worker(worker: int) -> None:
    """Slurm and terminals signal every process. A worker that ended by a signal would end the run before it saves."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def _load_in_worker(exams: ExamSet, numbers: Sequence[int]) -> Batch | _CopiedBatch | UserError:
    """A batch in shared memory, where DataLoader would move it too late for an error to reach the training process; or
    an error, whose type and fields DataLoader would not keep.
    """
    try:
        batch = _load(exams, numbers)
    except UserError as error:
        return error
    try:
        batch.map(Tensor.share_memory_)
    except RuntimeError as error:
        return _CopiedBatch(batch, first_line(error))
    return batch


@dataclass
class _CopiedBatch:
    """A batch that passes to the training process through a pipe, and is a `Batch` there."""

    batch: Batch
    reason: str  # why it does not pass through shared memory

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive_copied, (self.batch.map(Tensor.numpy), self.reason)


def _receive_copied(arrays: Any, reason: str) -> Batch:
    _notice_of_copies(reason.rpartition(": ")[2])
    batch: Batch = arrays.map(torch.from_numpy)
    return batch


@functools.cache  # printed once
def _notice_of_copies(reason: str) -> None:
    print0(
        f"notice: some batches do not fit into the shared memory of /dev/shm ({reason}) and are copied through a pipe, "
        "which is slower. Give it more room (in a container by --shm-size), or lower data.num_workers"
    )


@contextmanager
def lost_workers_reported() -> Iterator[None]:
    """Turns the RuntimeError that torch raises when a worker has died, anywhere in the main thread, into an error
    without a traceback.

    Raises:
        ProcessLost: a worker was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in (text := first_line(error)):
            raise
        raise _worker_lost(text.strip()) from error


def _worker_lost(reason: str) -> ProcessLost:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise again while this error is handled
    return ProcessLost(
        "a process that loads batches has died, most often because the machine ran out of memory "
        f"({reason}). Start again, a training with resume=auto; a lower data.num_workers needs less memory"
    )


def grouped(micro_batches: Iterable[Batch], accumulation: int) -> Iterator[list[Batch]]:
    """The micro-batches of each step."""
    group: list[Batch] = []
    for batch in micro_batches:
        group.append(batch)
        if len(group) == accumulation:
            yield group
            group = []
    assert not group, "an epoch is a whole number of steps"


def hardest_sample(exams: ExamSet) -> Sample:
    """A sample with as many views and as long a report as any exam has; its pixels do not matter."""
    views = max(len(exam.views) for exam in exams.exams)
    tokens = max(exams.tokens, key=len)
    first = exams[0]
    image_VCHW = first.image_VCHW[:1].repeat(views, axis=0)
    return replace(first, image_VCHW=image_VCHW, tokens=tokens)
