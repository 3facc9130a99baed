"""The durable record of a study: every trial, its scores and how it ended.

The record is an Optuna study in `optuna.db` (SQLite) in the study folder. Every proposal,
score and decision is committed there before it takes effect, so that a study resumes from
the record alone; Ray's own state is never read back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from tuner.errors import StudyError
from tuner.space import Choice, LogUniform, QUniform, RandInt, Uniform

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from tuner.space import Domain, Space

DATABASE = "optuna.db"


class TrialState(StrEnum):
    """How a trial stands; every trial ends in one of these, with a reason."""

    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def finished(self) -> bool:
        """Whether the trial will never run again."""
        return self not in {TrialState.RUNNING, TrialState.INTERRUPTED}

    @property
    def usable(self) -> bool:
        """Whether the trial's best checkpoint may win the study."""
        return self in {TrialState.COMPLETED, TrialState.STOPPED, TrialState.INTERRUPTED}


_OPTUNA_STATE = {
    TrialState.COMPLETED: optuna.trial.TrialState.COMPLETE,
    TrialState.STOPPED: optuna.trial.TrialState.PRUNED,
    TrialState.DIVERGED: optuna.trial.TrialState.FAIL,
    TrialState.OUT_OF_MEMORY: optuna.trial.TrialState.FAIL,
    TrialState.FAILED: optuna.trial.TrialState.FAIL,
}


@dataclass
class TrialEntry:
    """One trial as the record knows it.

    Attributes:
        number: Number of the trial in the study, from 0.
        values: Sampled values by field name.
        state: How the trial stands.
        reason: Why it ended, for a person to read.
        scores: Value of the study's metric by epoch, from 1.
        metrics: All metrics of the best epoch.
        seconds: Time spent on training, over all its runs.
    """

    number: int
    values: dict[str, Any]
    state: TrialState = TrialState.RUNNING
    reason: str = ""
    scores: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return max(self.scores, default=0)

    def best(self, mode: str) -> tuple[int, float] | None:
        """Epoch and value of the best finite score; the first of equals."""
        finite = {epoch: score for epoch, score in self.scores.items() if math.isfinite(score)}
        if not finite:
            return None
        sign = 1 if mode == "max" else -1
        epoch = max(sorted(finite), key=lambda epoch: sign * finite[epoch])
        return epoch, finite[epoch]


class StudyRecord:
    """The trials of one study, kept in the study folder.

    Args:
        folder: The study folder.
        space: What the study varies.
        mode: Whether a greater ("max") or smaller ("min") score is better.

    Raises:
        StudyError: if the record in `folder` cannot be read.
    """

    def __init__(self, folder: Path, space: Space, mode: str) -> None:
        self.folder = folder
        self.mode = mode
        self._space = space
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = f"sqlite:///{folder / DATABASE}"
        try:
            # the name inside stays what it was when the folder is renamed or moved
            names = optuna.get_all_study_names(storage)
            self._study = optuna.create_study(
                storage=storage,
                study_name=names[0] if names else folder.name,
                direction="maximize" if mode == "max" else "minimize",
                load_if_exists=True,
            )
            frozen = self._study.get_trials(deepcopy=False)
        except (SQLAlchemyError, RuntimeError) as error:
            raise StudyError(
                f"the record {folder / DATABASE} cannot be read: {str(error).splitlines()[0]}"
            ) from error
        self.entries: dict[int, TrialEntry] = {
            trial.number: self._entry_from(trial) for trial in frozen
        }
        self._trials: dict[int, optuna.Trial] = {
            trial.number: optuna.Trial(self._study, trial._trial_id)
            for trial in frozen
            if not trial.state.is_finished()
        }

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles what it is given; a record is reopened from its folder, never copied."""
        return {"folder": self.folder, "mode": self.mode}

    def unfinished(self) -> list[TrialEntry]:
        """Trials that were cut off and go on when the study is resumed."""
        return [entry for entry in self.entries.values() if not entry.state.finished]

    def with_state(self, *states: TrialState) -> list[TrialEntry]:
        """Trials in one of `states`."""
        return [entry for entry in self.entries.values() if entry.state in states]

    def best(self) -> TrialEntry | None:
        """The trial with the best score of all that may win, the first of equals."""
        scored = [
            (score[1], entry)
            for entry in self.entries.values()
            if entry.state.usable and (score := entry.best(self.mode)) is not None
        ]
        if not scored:
            return None
        sign = 1 if self.mode == "max" else -1
        return max(scored, key=lambda pair: (sign * pair[0], -pair[1].number))[1]

    def propose(self, sampler_for: Callable[[int], BaseSampler]) -> TrialEntry:
        """Open a new trial with values from the sampler for that trial's number."""
        self._study.sampler = sampler_for(len(self.entries))
        trial = self._study.ask()
        values: dict[str, Any] = {}
        for name, domain in self._space.items():
            if self._space.active(name, values):
                values[name] = _suggest(trial, name, domain)
        entry = TrialEntry(trial.number, values)
        self.entries[trial.number] = entry
        self._trials[trial.number] = trial
        return entry

    def running(self, number: int) -> None:
        """Note that a trial has started (again)."""
        entry = self.entries[number]
        if entry.state is not TrialState.RUNNING:
            self._set_state(entry, TrialState.RUNNING, "")

    def report(
        self, number: int, epoch: int, score: float, metrics: Mapping[str, float], seconds: float
    ) -> bool:
        """Add the score of an epoch; False if the record has it already."""
        entry = self.entries[number]
        if epoch in entry.scores:
            return False
        trial = self._trials[number]
        trial.report(score, epoch)
        entry.scores[epoch] = score
        entry.seconds += seconds
        trial.set_user_attr("seconds", round(entry.seconds, 3))
        best = entry.best(self.mode)
        if best is not None and best[0] == epoch:
            entry.metrics = dict(metrics)
            trial.set_user_attr("metrics", entry.metrics)
        return True

    def finish(self, number: int, state: TrialState, reason: str) -> None:
        """Close a trial for good; a trial that has ended keeps its first ending."""
        entry = self.entries[number]
        if entry.state.finished:
            return
        best = entry.best(self.mode)
        if state is TrialState.COMPLETED and best is None:
            state, reason = TrialState.FAILED, "it ended without reporting a score"
        self._set_state(entry, state, reason)
        self._study.tell(
            self._trials.pop(number),
            best[1] if state is TrialState.COMPLETED and best else None,
            state=_OPTUNA_STATE[state],
        )

    def interrupt_running(self, reason: str) -> None:
        """Mark every running trial as interrupted; it goes on with `tune resume`."""
        for entry in self.with_state(TrialState.RUNNING):
            self._set_state(entry, TrialState.INTERRUPTED, reason)

    def _set_state(self, entry: TrialEntry, state: TrialState, reason: str) -> None:
        trial = self._trials[entry.number]
        trial.set_user_attr("state", state.value)
        trial.set_user_attr("reason", reason)
        entry.state, entry.reason = state, reason

    def _entry_from(self, trial: FrozenTrial) -> TrialEntry:
        attributes = trial.user_attrs
        domains = dict(self._space.items())
        values = {}
        for name, stored in trial.params.items():
            domain = domains[name]
            values[name] = domain.value_of(stored) if isinstance(domain, Choice) else stored
        return TrialEntry(
            number=trial.number,
            values=values,
            state=TrialState(attributes.get("state", TrialState.RUNNING)),
            reason=attributes.get("reason", ""),
            scores=dict(trial.intermediate_values),
            metrics=attributes.get("metrics", {}),
            seconds=attributes.get("seconds", 0.0),
        )


def _suggest(trial: optuna.Trial, name: str, domain: Domain) -> Any:
    """Draw a value of `domain` from the trial's sampler."""
    match domain:
        case Choice():
            return domain.value_of(trial.suggest_categorical(name, domain.labels))
        case Uniform():
            return trial.suggest_float(name, domain.low, domain.high)
        case LogUniform():
            return trial.suggest_float(name, domain.low, domain.high, log=True)
        case QUniform():
            return trial.suggest_float(name, domain.low, domain.high, step=domain.step)
        case RandInt():
            return trial.suggest_int(name, domain.low, domain.high)


def epochs_spent(entries: Iterable[TrialEntry]) -> int:
    """Epochs trained over `entries`."""
    return sum(entry.epochs for entry in entries)
