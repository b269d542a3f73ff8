"""Trials that are chosen by what those before them scored: Optuna's TPE, over a journal that several machines share."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from framework.grid.labels import fingerprint
from framework.grid.space import Choices, Range, Space, draw_new, is_exhausted

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.storages.journal import JournalStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

STUDY = "search"
AT_RANDOM = 10  # trials that have ended before the first that is not drawn at random
# Of so many candidates TPE takes the best. Where that was tried already, fewer make the choice less and less greedy.
CANDIDATES = (24, 12, 6, 3, 1, 1, 1, 1)
FINISHED_FIRST = 5  # trials with a score at a validation before another is stopped at it: a median of fewer says little
GRACE_S = 30  # that the lock may stay with one process, before it counts as left behind by a dead one
FAILED = "failed"  # attribute of a trial

Status = Literal["done", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    number: int  # from 0
    values: dict[str, Any]  # dotted recipe key -> value


@dataclass(frozen=True)
class Outcome:
    """A trial that has ended."""

    number: int
    values: dict[str, Any]
    score: float | None  # of a pruned one, its last validation; None: failed, or pruned before any
    status: Status


class TpeSearch:
    """A search that is kept in `search-<hash>.journal` of a folder, the hash being that of what is searched.

    Several processes may use one at once, on several machines. Each change of the journal is made under a lock and is
    one line, so that a process that is killed leaves a whole trial or none. What follows from the trials so far, and
    nothing else, decides on the next: with one trial at a time, a search that was broken off goes on as if it had not
    been.

    Source:
        Bergstra et al. 2011, NeurIPS, section 4 (TPE); Golovin et al. 2017, KDD, section 3.2.2 (median stopping).
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        trials: int,
        seed: int,
        higher_is_better: bool,
        prune_after: int | None,
        *,
        subject: str = "",
    ) -> None:
        """Nothing is written before the first trial is asked for.

        Args:
            trials: how many there may be in all; with more, the same search goes on.
            prune_after: validations that a trial has in any case; None: none is stopped.
            subject: what else the scores depend on, such as the recipe that the keys are set in and the monitor. A
                search of another subject, space, seed or direction is another search, and has its own journal.

        Raises:
            ValueError: Optuna is not installed.
        """
        self._optuna = _import_optuna()
        self.space = {key: space[key] for key in sorted(space)}
        self.trials, self.seed = trials, seed
        self.direction = "maximize" if higher_is_better else "minimize"
        plain = {key: [type(part).__name__, asdict(part)] for key, part in self.space.items()}
        said = json.dumps([plain, seed, self.direction, subject], sort_keys=True)
        self.journal = folder.resolve() / f"search-{hashlib.sha256(said.encode()).hexdigest()[:12]}.journal"
        self._distributions = {key: self._distribution(part) for key, part in self.space.items()}
        self._pruner = self._make_pruner(prune_after)
        self._lock = _Lock(self._optuna, self.journal)
        self._study: Study | None = None
        self._storage: JournalStorage | None = None
        self._noted: dict[int, set[int]] = {}  # validations of each trial that are in the journal

    def others(self) -> list[Path]:
        """Journals of other searches in the folder: of another space, seed or subject."""
        return sorted(path for path in self.journal.parent.glob("search-*.journal") if path != self.journal)

    def open_trials(self) -> list[Trial]:
        """Those that were asked for, here or elsewhere, and have not ended."""
        return [Trial(trial.number, self._values(trial.params)) for trial in self._trials() if _status(trial) is None]

    def told(self) -> list[Outcome]:
        """Those that have ended, by number."""
        return [
            Outcome(trial.number, self._values(trial.params), trial.value, status)
            for trial in self._trials()
            if (status := _status(trial)) is not None
        ]

    def best(self) -> Outcome | None:
        """The first of those with the best score. Only trials that were trained to their end count."""
        sign = 1 if self.direction == "maximize" else -1
        done = [trial for trial in self.told() if trial.status == "done"]
        return max(done, key=lambda trial: sign * (trial.score or 0.0), default=None)

    def ask(self) -> Trial | None:
        """A new trial, with values that no other has; None where all are asked for, or no other values are left.

        Two processes do not ask at once: the lock is held from the look at the trials so far to the new one's line.
        """
        with self._lock.held():
            study = self._opened() or self._created()
            past = study.get_trials(deepcopy=False)
            params = self._propose(past) if len(past) < self.trials else None
            if params is None:
                return None
            running = self._optuna.trial.create_trial(
                state=self._optuna.trial.TrialState.RUNNING, params=params, distributions=self._distributions
            )
            storage, study_id = self._stored()
            number = storage.get_trial(storage.create_new_trial(study_id, running)).number
            return Trial(number, self._values(params))

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Notes a validation of a trial, once, however often it is told.

        Args:
            epoch: which validation of the trial, from 1.

        Returns:
            Whether the trial should be stopped: it was told as pruned, or this is its latest validation and the best
            score that it has had is worse than the median of the trials that are done, at the same validation.
        """
        noted = self._noted.setdefault(number, set())
        if epoch in noted and epoch < max(noted):
            return False  # known, and the latest one decides: a file is read again without a look at the journal
        trial = self._trial(number)
        if epoch not in trial.intermediate_values and _status(trial) in (None, "failed"):
            with self._lock.held():
                trial = self._trial(number)
                if epoch not in trial.intermediate_values and _status(trial) in (None, "failed"):
                    storage, study_id = self._stored()
                    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
                    storage.set_trial_intermediate_value(trial_id, epoch, float(value))
                    trial = self._trial(number)
        noted.add(epoch)
        if (status := _status(trial)) in ("done", "pruned"):
            return status == "pruned"
        study = self._opened()
        assert study is not None
        return epoch == trial.last_step and bool(self._pruner.prune(study, trial))

    def tell(self, number: int, value: float | None, status: Status) -> None:
        """Notes how a trial ended. What is told first stays, but a failed one may be told again after another attempt.

        Args:
            value: its score, of one that is done; NaN counts as failed. None of the others.

        Raises:
            ValueError: the trial was never asked for.
        """
        assert (value is not None) == (status == "done"), f"trial {number} is told as {status} with score {value}"
        if value is not None and math.isnan(value):
            value, status = None, "failed"
        with self._lock.held():
            now = _status(self._trial(number))
            if now in ("done", "pruned", status):
                return
            storage, study_id = self._stored()
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
            if status == "failed":
                # For Optuna it stays open. Its own state for this is final, and TPE would forget such a trial and come
                # back to what does not fit the memory.
                storage.set_trial_user_attr(trial_id, FAILED, True)
                return
            study = self._opened()
            assert study is not None
            states = self._optuna.trial.TrialState
            study.tell(number, value, state=states.COMPLETE if status == "done" else states.PRUNED)

    def _propose(self, past: Sequence[FrozenTrial]) -> dict[str, Any] | None:
        """Values for the next trial as Optuna has them; None where all have been tried.

        They are drawn in a study in memory, from a seed of this trial's own, as Optuna does not store the state of its
        sampler. Equal values would be the same cell again, with the same score: they are drawn anew.
        """
        import numpy as np

        seen = {fingerprint(self._values(trial.params)) for trial in past}
        if is_exhausted(self.space, seen):
            return None
        study = self._optuna.create_study(direction=self.direction)
        study.add_trials(past)
        for attempt, candidates in enumerate(CANDIDATES):
            own = np.random.SeedSequence([self.seed, len(past), attempt]).generate_state(1)
            study.sampler = self._optuna.samplers.TPESampler(
                seed=int(own[0]),
                n_startup_trials=AT_RANDOM,
                n_ei_candidates=candidates,
                multivariate=True,
                constant_liar=True,  # keeps away from the trials that are open, and from failed ones
            )
            values = self._tidy(self._values(study.ask(self._distributions).params))
            if fingerprint(values) not in seen:
                return self._params(values)
        drawn = draw_new(self.space, np.random.default_rng([self.seed, len(past)]), seen)
        return None if drawn is None else self._params(drawn)

    def _values(self, params: dict[str, Any]) -> dict[str, Any]:
        """Values of the recipe, from what stands in the journal: labels of choices, and numbers."""
        return {
            key: part.named(params[key]) if isinstance(part, Choices) else params[key]
            for key, part in self.space.items()
        }

    def _tidy(self, values: dict[str, Any]) -> dict[str, Any]:
        return {
            key: part.tidy(values[key]) if isinstance(part, Range) else values[key] for key, part in self.space.items()
        }

    def _params(self, values: dict[str, Any]) -> dict[str, Any]:
        return {
            key: part.label(values[key]) if isinstance(part, Choices) else values[key]
            for key, part in self.space.items()
        }

    def _distribution(self, part: Range | Choices) -> BaseDistribution:
        kinds = self._optuna.distributions
        if isinstance(part, Choices):
            return kinds.CategoricalDistribution(part.labels)  # type: ignore[no-any-return]
        if part.whole:
            return kinds.IntDistribution(part.low, part.high, log=part.log, step=part.step or 1)  # type: ignore[no-any-return]
        return kinds.FloatDistribution(part.low, part.high, log=part.log, step=part.step)  # type: ignore[no-any-return]

    def _make_pruner(self, prune_after: int | None) -> BasePruner:
        pruners = self._optuna.pruners
        if prune_after is None:
            return pruners.NopPruner()  # type: ignore[no-any-return]
        return pruners.MedianPruner(n_warmup_steps=prune_after, n_min_trials=FINISHED_FIRST)  # type: ignore[no-any-return]

    def _opened(self) -> Study | None:
        """The study, if there is one yet."""
        if self._study is None and self.journal.exists():
            try:
                self._study = self._optuna.load_study(study_name=STUDY, storage=self._make_storage())
            except KeyError:
                return None  # a process made the file, and died
        return self._study

    def _created(self) -> Study:
        self._study = self._optuna.create_study(
            study_name=STUDY, storage=self._make_storage(), direction=self.direction
        )
        return self._study

    def _make_storage(self) -> JournalStorage:
        journals = self._optuna.storages.journal
        backend = journals.JournalFileBackend(str(self.journal), lock_obj=self._lock)
        self._storage = journals.JournalStorage(backend)
        return self._storage

    def _stored(self) -> tuple[JournalStorage, int]:
        """Optuna's storage, and the number of the study in it."""
        assert self._storage is not None
        return self._storage, self._storage.get_study_id_from_name(STUDY)

    def _trials(self) -> list[FrozenTrial]:
        study = self._opened()
        return [] if study is None else study.get_trials(deepcopy=False)

    def _trial(self, number: int) -> FrozenTrial:
        trials = self._trials()
        if not 0 <= number < len(trials):
            raise ValueError(f"{self.journal}: there is no trial {number}; {len(trials)} were asked for")
        return trials[number]


def _status(trial: FrozenTrial) -> Status | None:
    """How a trial ended; None: it has not."""
    if trial.state.name == "COMPLETE":
        return "done"
    if trial.state.name == "PRUNED":
        return "pruned"
    return "failed" if FAILED in trial.user_attrs else None


def _import_optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            f"search.method: tpe needs Optuna, which does not import ({error}): pip install 'sonoscribe[search]'; or "
            "take method: random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class _Lock:
    """Optuna's lock of a journal: a file that one process alone can make, also over NFS.

    Optuna takes it for each line; here a process may take it again while it holds it, so that a look and the line that
    follows from it are one. One that a killed process left behind is taken away after `GRACE_S` seconds. Optuna's other
    lock, a symbolic link, tells its age by the journal's, and is for NFS older than version 3. Locks of the kernel
    (`flock`) are let go of at once, but hold on one machine only on many a shared disk.
    """

    def __init__(self, optuna: ModuleType, journal: Path) -> None:
        self._journal = journal
        self._file = optuna.storages.journal.JournalFileOpenLock(str(journal), grace_period=GRACE_S)
        self._threads, self._depth = threading.RLock(), 0

    @contextmanager
    def held(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> bool:
        self._threads.acquire()
        try:
            if self._depth == 0:
                self._journal.parent.mkdir(parents=True, exist_ok=True)
                self._file.acquire()
                _drop_broken_line(self._journal)
        except BaseException:
            self._threads.release()
            raise
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        try:
            if self._depth == 0:
                self._file.release()
        except RuntimeError:
            pass  # this process stood still so long that the lock was taken away; what it wrote is there
        finally:
            self._threads.release()


def _drop_broken_line(journal: Path) -> None:
    """Takes out a last line that a full disk or a lost machine cut off: with another behind it, Optuna would not read
    the journal any more.
    """
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
