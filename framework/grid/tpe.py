"""Trials proposed from the scores of earlier ones: Optuna's TPE and median pruning in a journal shared by machines."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from framework.grid.cells import fingerprint
from framework.grid.space import Choices, Range, Space, draw_new, is_exhausted
from framework.runtime.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages.journal import JournalStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as OptunaTrial

STUDY = "search"
RANDOM_TRIALS = 10  # finished trials before the first that is not random (n_startup_trials)
# TPE takes the best of this many candidates. When that was tried before, fewer make the proposal less greedy.
CANDIDATES = (24, 12, 6, 3, 1, 1, 1, 1)
MIN_TRIALS_TO_PRUNE = 5  # trials with a score at a validation before another is pruned at it: their median is stable
LOCK_GRACE_S = 30  # after which a lock counts as left behind by a dead process
FAILED = "failed"  # user attribute of a trial

Status = Literal["done", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """A trial; without a status it has not ended."""

    number: int  # from 0
    values: dict[str, Any]  # dotted recipe key -> value
    score: float | None = None  # of a pruned trial, its last validation
    status: Status | None = None


class TpeSearch:
    """A search stored in `search-<hash>.journal`, where the hash is that of the recipe and the search space.

    Several processes, on several machines, may use one search at once. Each change is one line of the journal, written
    under a lock, so a process that is killed leaves a whole trial or none. A proposal depends on the earlier trials
    only: with one trial at a time, an interrupted search continues as if it had not been interrupted.

    Optuna stores, proposes and prunes. Three things are added, since Optuna has none of them: proposals do
    not repeat values (the same cell again), the number of trials is exact with several processes (`n_trials` counts per
    process), and a trial that failed keeps TPE away from its values (Optuna's FAIL state drops it).

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
        """Writes nothing before the first `ask`.

        Args:
            trials: maximum number of trials; with a larger number the same search continues.
            prune_after: validations of a trial before it can be pruned; None disables pruning.
            subject: what else the scores depend on, such as the recipe and the monitor. Another subject, space, seed or
                direction is another search with its own journal.

        Raises:
            UserError: Optuna is not installed.
        """
        self._optuna = _import_optuna()
        self.space = {key: space[key] for key in sorted(space)}
        self.trials, self.seed = trials, seed
        self.direction = "maximize" if higher_is_better else "minimize"
        parts = {key: [type(part).__name__, asdict(part)] for key, part in self.space.items()}
        identity = json.dumps([parts, seed, self.direction, subject], sort_keys=True)
        self.journal = folder.resolve() / f"search-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.journal"
        self._distributions = {key: self._distribution(part) for key, part in self.space.items()}
        pruners = self._optuna.pruners
        self._pruner = (
            pruners.NopPruner()
            if prune_after is None
            else pruners.MedianPruner(n_warmup_steps=prune_after, n_min_trials=MIN_TRIALS_TO_PRUNE)
        )
        self._lock = _JournalLock(self._optuna, self.journal)
        self._storage: JournalStorage | None = None
        self._study: Study | None = None
        self._reported: dict[int, set[int]] = {}  # validations of each trial that are in the journal

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Reports a journal that someone has edited. Optuna checks nothing, and fails in any way.

        Raises:
            UserError: `damaged-file`.
        """
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            hint = "Restore the file, or delete it: the search then starts over, and its trained cells are kept."
            raise UserError("damaged-file", f"not a journal ({error!r})", place=self.journal, hint=hint) from error

    def open_trials(self) -> list[Trial]:
        """Trials that were asked for, by any process, and have not ended."""
        with self._reading():
            return [trial for trial in map(self._as_trial, self._trials()) if trial.status is None]

    def ended_trials(self) -> list[Trial]:
        """Trials that have ended, by number."""
        with self._reading():
            return [trial for trial in map(self._as_trial, self._trials()) if trial.status is not None]

    def ask(self) -> Trial | None:
        """Proposes and stores a new trial, with values that no other has; None if there are no more.

        The lock is held from the read of the earlier trials to the line of the new one.
        """
        with self._reading(), self._lock.held():
            study = self._open(create=True)
            assert study is not None
            past = study.get_trials(deepcopy=False)
            params = self._propose(past) if len(past) < self.trials else None
            if params is None:
                return None
            state = self._optuna.trial.TrialState.RUNNING
            study.add_trial(
                self._optuna.trial.create_trial(state=state, params=params, distributions=self._distributions)
            )
            return Trial(len(past), self._values(params))

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Stores the score of a validation. Repeated calls store it once.

        Args:
            epoch: number of the validation within the trial, from 1.

        Returns:
            Whether to stop the trial: it is stored as pruned, or this is its latest validation and its best score so
            far is worse than the median of the finished trials at the same validation.
        """
        reported = self._reported.setdefault(number, set())
        if epoch in reported and epoch < max(reported):
            return False  # only the latest validation decides; saves reading the journal
        if self._needs_report(number, epoch):
            with self._lock.held():
                if self._needs_report(number, epoch):
                    self._optuna_trial(number).report(float(value), epoch)
        reported.add(epoch)
        trial = self._trial(number)
        if (status := _status(trial)) in ("done", "pruned"):
            return status == "pruned"
        return epoch == trial.last_step and bool(self._optuna_trial(number).should_prune())

    def tell(self, number: int, value: float | None, status: Status) -> None:
        """Stores how a trial ended. The first call counts, except that a failed trial may end again after a retry.

        Args:
            value: score of a trial that is done; NaN counts as failed. None for the others.
        """
        assert (value is not None) == (status == "done"), f"trial {number}: {status} with score {value}"
        if value is not None and math.isnan(value):
            value, status = None, "failed"
        with self._lock.held():
            if _status(self._trial(number)) in ("done", "pruned", status):
                return
            if status == "failed":
                # Optuna's own state for this is final, and TPE would forget the trial and propose again what does not
                # fit into memory. So it remains open for Optuna.
                self._optuna_trial(number).set_user_attr(FAILED, True)
                return
            states = self._optuna.trial.TrialState
            assert self._study is not None
            self._study.tell(number, value, state=states.COMPLETE if status == "done" else states.PRUNED)

    def _propose(self, past: Sequence[FrozenTrial]) -> dict[str, Any] | None:
        """Optuna parameters of the next trial; None if all values were tried.

        Optuna does not store the state of its sampler, so each trial has a seed of its own, in a study in memory.
        """
        import numpy as np

        seen = {fingerprint(self._values(trial.params)) for trial in past}
        if is_exhausted(self.space, seen):
            return None
        study = self._optuna.create_study(direction=self.direction)
        study.add_trials(past)
        for attempt, candidates in enumerate(CANDIDATES):
            seed = np.random.SeedSequence([self.seed, len(past), attempt]).generate_state(1)
            study.sampler = self._optuna.samplers.TPESampler(
                seed=int(seed[0]),
                n_startup_trials=RANDOM_TRIALS,
                n_ei_candidates=candidates,
                multivariate=True,
                constant_liar=True,  # keeps away from open and failed trials
            )
            values = self._values(study.ask(self._distributions).params)
            values = {
                key: part.round(values[key]) if isinstance(part, Range) else values[key]
                for key, part in self.space.items()
            }
            if fingerprint(values) not in seen:
                return self._params(values)
        drawn = draw_new(self.space, np.random.default_rng([self.seed, len(past)]), seen)
        return None if drawn is None else self._params(drawn)

    def _values(self, params: dict[str, Any]) -> dict[str, Any]:
        """Recipe values from Optuna parameters, where choices are labels."""
        return {
            key: part.value(params[key]) if isinstance(part, Choices) else params[key]
            for key, part in self.space.items()
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
        if part.is_integer:
            return kinds.IntDistribution(part.low, part.high, log=part.log, step=part.step or 1)  # type: ignore[no-any-return]
        return kinds.FloatDistribution(part.low, part.high, log=part.log, step=part.step)  # type: ignore[no-any-return]

    def _open(self, *, create: bool = False) -> Study | None:
        """The stored study; None if there is none yet."""
        if self._study is None and (create or self.journal.exists()):
            journals = self._optuna.storages.journal
            backend = journals.JournalFileBackend(str(self.journal), lock_obj=self._lock)
            self._storage = journals.JournalStorage(backend)
            settings = {"study_name": STUDY, "storage": self._storage, "pruner": self._pruner}
            try:
                self._study = self._optuna.load_study(**settings)
            except KeyError:  # no journal, or one of a process that died before it wrote a line
                self._study = self._optuna.create_study(**settings, direction=self.direction) if create else None
        return self._study

    def _trials(self) -> list[FrozenTrial]:
        study = self._open()
        return [] if study is None else study.get_trials(deepcopy=False)

    def _trial(self, number: int) -> FrozenTrial:
        trials = self._trials()
        assert 0 <= number < len(trials), f"{self.journal}: trial {number} of {len(trials)}"
        return trials[number]

    def _optuna_trial(self, number: int) -> OptunaTrial:
        assert self._storage is not None
        study_id = self._storage.get_study_id_from_name(STUDY)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        trial: OptunaTrial = self._optuna.trial.Trial(self._study, trial_id)
        return trial

    def _as_trial(self, trial: FrozenTrial) -> Trial:
        status = _status(trial)
        return Trial(trial.number, self._values(trial.params), trial.value if status else None, status)

    def _needs_report(self, number: int, epoch: int) -> bool:
        trial = self._trial(number)
        return epoch not in trial.intermediate_values and _status(trial) in (None, "failed")


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
        raise UserError(
            "missing-package",
            f"tpe needs Optuna, which does not import ({error})",
            place="search.method",
            hint="Run `pip install 'sonoscribe[search]'`, or take method: random.",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class _JournalLock:
    """Optuna's lock file, which works over NFS, made reentrant so that a read and the line that follows are one change.

    A lock left by a killed process is removed after `LOCK_GRACE_S` seconds. `flock` would be released at once, but on
    many shared disks it holds on one machine only; Optuna's other lock, a symbolic link, measures its age by the
    journal's.
    """

    def __init__(self, optuna: ModuleType, journal: Path) -> None:
        self._journal, self._depth = journal, 0
        self._file = optuna.storages.journal.JournalFileOpenLock(str(journal), grace_period=LOCK_GRACE_S)

    @contextmanager
    def held(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> bool:
        if self._depth == 0:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            self._file.acquire()
            _drop_incomplete_line(self._journal)
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            with suppress(RuntimeError):  # the process was suspended for so long that the lock was removed
                self._file.release()


def _drop_incomplete_line(journal: Path) -> None:
    """Removes a last line that a full disk cut off: with another line after it, Optuna could not read the journal."""
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
