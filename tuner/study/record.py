"""The durable record of a study: every trial, its scores and how it ended.

The record is an Optuna study in `optuna.db` (SQLite) in the study folder. Every proposal,
score and decision is committed there before it takes effect, so that a study resumes from
the record alone; Ray's own state is never read back.

Decisions (proposed, paused, stopped, promoted, retried, ended) are on the disk before they take
effect. The score of a trial that simply goes on is committed too, and is on the disk with the
next decision: should a power loss remove it, it is restored from the trial's checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import create_trial
from sqlalchemy.exc import SQLAlchemyError

from tuner.errors import StudyError
from tuner.spec.space import stored_values
from tuner.study.distributions import distribution_of
from tuner.study.files import DATABASE
from tuner.study.optuna_states import METRIC_NAMES, RUNNING, OptunaEntry, entry_of, optuna_entry
from tuner.study.storage import TransactionalStorage, refuse_lost_record, unreadable
from tuner.study.trial_entry import (
    BEST_VALUES,
    FOLD_METRICS,
    GPU_SECONDS,
    IN_PROGRESS,
    LINEAGE,
    MAX_EPOCHS,
    OVERRIDDEN,
    PLACEMENT,
    DecisionEntry,
    Exploit,
    Placement,
    TrialEntry,
    TrialState,
    epochs_spent,
    ranked,
)

if TYPE_CHECKING:
    from tuner.spec.space import Space

__all__ = [
    "DecisionEntry",
    "StudyRecord",
    "TrialEntry",
    "TrialState",
    "epochs_spent",
]


class StudyRecord:
    """The trials of one study, kept in the study folder.

    Args:
        folder: The study folder.
        space: What the study varies.
        mode: Whether a greater ("max") or smaller ("min") score is better.
        storage: Where the trials are kept; `optuna.db` in `folder` by default.
        fold_epochs: Epochs of a fold where trials are judged on several, None where they train
            once.

    Raises:
        StudyError: if the record in `folder` cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        mode: str,
        storage: BaseStorage | None = None,
        *,
        fold_epochs: int | None = None,
    ) -> None:
        self.folder = folder
        self.fold_epochs = fold_epochs
        self.mode = mode
        self.space = space
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = folder / DATABASE
        if storage is None:
            refuse_lost_record(path)
            storage = TransactionalStorage(path)
        self._storage = storage
        self._durable_storage = storage if isinstance(storage, TransactionalStorage) else None
        self.reload()

    def reload(self) -> None:
        """Read all trials again: another process may have written them."""
        if self._durable_storage is not None:
            self._durable_storage.reload()
        try:
            # the name inside stays what it was when the folder is renamed or moved
            if not self._storage.get_all_studies():
                maximize = self.mode == "max"
                direction = StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE
                # another process may make it just now
                with suppress(DuplicatedStudyError):
                    self._storage.create_new_study([direction], self.folder.name)
            self._study_id = self._storage.get_all_studies()[0]._study_id
            frozen = self._storage.get_all_trials(self._study_id, deepcopy=False)
        except (SQLAlchemyError, RuntimeError) as error:
            raise unreadable(self.folder / DATABASE, error) from error
        stored = self._durable_storage.decisions() if self._durable_storage else []
        self.decisions: list[DecisionEntry] = [DecisionEntry(*row) for row in stored]
        self.halted: str | None = None
        self.entries: dict[int, TrialEntry] = {
            trial.number: entry_of(trial, self.space, self.fold_epochs) for trial in frozen
        }
        self._trial_ids = {trial.number: trial._trial_id for trial in frozen}
        self._in_optuna = {trial.number: OptunaEntry.of(trial) for trial in frozen}
        self._by_epoch: dict[int, dict[int, float]] = {}
        self._by_state: dict[TrialState, set[int]] = {state: set() for state in TrialState}
        for entry in self.entries.values():
            self._by_state[entry.state].add(entry.number)
            for epoch, score in entry.scores.items():
                self._by_epoch.setdefault(epoch, {})[entry.number] = score

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles what it is given; a record is reopened from its folder, never copied."""
        return {"folder": self.folder, "mode": self.mode}

    @property
    def failure(self) -> StudyError | None:
        """Why the record cannot be written any more, None if it can."""
        return self._durable_storage.failure if self._durable_storage else None

    def halt(self, reason: str) -> None:
        """Ask that the study ends now, to be resumed when its cause is fixed."""
        self.halted = self.halted or reason

    def close(self) -> None:
        """Close the file, with everything in it that SQLite kept beside it."""
        if self._durable_storage is not None:
            self._durable_storage.close()

    def transaction(self, *, durable: bool = True) -> AbstractContextManager[None]:
        """Commit all that is noted in the block together; see `TransactionalStorage`."""
        storage = self._durable_storage
        return nullcontext() if storage is None else storage.transaction(durable=durable)

    def decide(self, number: int, action: str, reason: str, at: float | None = None) -> None:
        """Note a decision about a trial that leaves its state as it is; made now, or `at`."""
        moment = time.time() if at is None else at
        decision = DecisionEntry(moment, number, self.entries[number].epochs, action, reason)
        if self._durable_storage is not None:
            self._durable_storage.add_decision(
                decision.time, number, decision.epoch, action, reason
            )
        self.decisions.append(decision)

    def unfinished(self) -> list[TrialEntry]:
        """Trials that were cut off and go on when the study is resumed."""
        return self.with_state(*IN_PROGRESS)

    def with_state(self, *states: TrialState) -> list[TrialEntry]:
        """Trials in one of `states`, by number."""
        numbers = sorted(number for state in states for number in self._by_state[state])
        return [self.entries[number] for number in numbers]

    def scores_at(self, epoch: int) -> dict[int, float]:
        """Score of each trial that reached an epoch, by number, in the order they came.

        It grows with the record, until `reload`; the record alone changes it.
        """
        return self._by_epoch.setdefault(epoch, {})

    def best(self, *, running: bool = True) -> TrialEntry | None:
        """The trial with the best score of all that may win, the first of equals.

        Of several folds, a trial that has finished more is better.

        Args:
            running: Whether it may be one that still runs, and may fail yet.
        """
        entries = self.entries.values()
        allowed = [e for e in entries if running or e.state is not TrialState.RUNNING]
        return next(iter(ranked(allowed, self.mode)), None)

    def propose(
        self, values: Mapping[str, Any], proposed_by: str, generation: int = 0
    ) -> TrialEntry:
        """Open a new trial, in one commit.

        Args:
            values: Its sampled values by field name.
            proposed_by: Name of what drew them, as text.
            generation: Generation of a searcher that works in generations.
        """
        number = len(self.entries)
        template = create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=stored_values(self.space, values),
            distributions={name: distribution_of(self.space.domains[name]) for name in values},
            user_attrs={"proposed_by": proposed_by, "generation": generation},
        )
        entry = TrialEntry(
            number,
            dict(values),
            proposed_by=proposed_by,
            generation=generation,
            fold_epochs=self.fold_epochs,
        )
        with self.transaction():
            self._trial_ids[number] = self._storage.create_new_trial(self._study_id, template)
            self.entries[number] = entry
            self._in_optuna[number] = RUNNING
            self._by_state[entry.state].add(number)
            self.decide(number, "proposed", f"by {proposed_by}")
        return entry

    def running(self, number: int) -> None:
        """Note that a trial goes on: one that paused was promoted, others were cut off."""
        entry = self.entries[number]
        if entry.state is not TrialState.RUNNING:
            promoted = entry.state is TrialState.PAUSED
            with self.transaction():
                self.decide(number, "promoted" if promoted else "resumed", entry.reason)
                self._note_state(entry, TrialState.RUNNING, "")
                self._sync(entry, RUNNING)

    def report(
        self,
        number: int,
        epoch: int,
        score: float,
        metrics: Mapping[str, float],
        seconds: float,
        gpus: float = 0.0,
    ) -> bool:
        """Add an epoch of a trial: its score, and what it took; False if it is there already."""
        entry = self.entries[number]
        if epoch in entry.scores:
            return False
        # a score alone is not a decision: it need not be on the disk before the trial goes on
        with self.transaction(durable=False):
            self._storage.set_trial_intermediate_value(self._trial_ids[number], epoch, score)
            entry.scores[epoch] = score
            self._by_epoch.setdefault(epoch, {})[number] = score
            entry.add_epoch_of(seconds)
            self._note(entry, "seconds", round(entry.seconds, 3))
            self._note(entry, "epoch_seconds", round(entry.epoch_seconds, 3))
            self._note_metrics(entry, epoch, metrics)
            if gpus:
                spent = entry.notes.get(GPU_SECONDS, 0.0) + seconds * gpus
                self.note(number, GPU_SECONDS, spent, durable=False)
        return True

    def _note_metrics(self, entry: TrialEntry, epoch: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of an epoch that is the best so far; of several folds their means."""
        fold, own = divmod(epoch - 1, self.fold_epochs) if self.fold_epochs else (0, epoch - 1)
        best = entry.best_of_fold(fold, self.mode)
        improved = best is not None and best[0] == own + 1
        shown = dict(metrics)
        if self.fold_epochs is not None:
            by_fold: dict[str, dict[str, float]] = {**entry.notes.get(FOLD_METRICS, {})}
            if improved:
                by_fold[str(fold)] = dict(metrics)
                self.note(entry.number, FOLD_METRICS, by_fold, durable=False)
            finished = epoch % self.fold_epochs == 0
            improved = bool(by_fold) and (finished or (improved and fold == 0))
            shown = _means(list(by_fold.values()))
        if improved:
            entry.metrics = shown
            self._note(entry, "metrics", entry.metrics)

    def pause(self, number: int, reason: str) -> None:
        """Set a trial aside that may be promoted later."""
        self._set_state(self.entries[number], TrialState.PAUSED, reason)

    def finish(self, number: int, state: TrialState, reason: str) -> None:
        """Close a trial for good; a trial that has ended keeps its first ending."""
        entry = self.entries[number]
        if entry.state.finished:
            return
        best = entry.best(self.mode)
        if state is TrialState.COMPLETED and best is None:
            if entry.scores:
                reason = f"{reason}; its score was not defined in any epoch"
            else:
                state, reason = TrialState.FAILED, "it ended without reporting a score"
        with self.transaction():
            self._set_state(entry, state, reason)
            self._sync(entry, optuna_entry(entry, self.mode))

    def retry(self, number: int, reason: str, overrides: Mapping[str, Any]) -> None:
        """Let a trial that failed go on from its last checkpoint.

        Args:
            number: The trial.
            reason: Why it failed.
            overrides: Values that it has from now on in place of those proposed.
        """
        entry = self.entries[number]
        with self.transaction():
            entry.failures += 1
            self._note(entry, "failures", entry.failures)
            if overrides:
                self._override(entry, overrides)
            self.decide(number, "retried", reason)
            self._note_state(entry, TrialState.INTERRUPTED, reason)

    def shorten(self, number: int, epochs: int, reason: str) -> None:
        """Let a trial end its schedule, after so many epochs in all; a decision.

        Args:
            number: The trial; it does not train now.
            epochs: Its `max_epochs` from its next epoch on.
            reason: Why.
        """
        with self.transaction():
            self._override(self.entries[number], {MAX_EPOCHS: epochs})
            self.decide(number, "shortened", reason)

    def plan(self, number: int, values: Mapping[str, Any]) -> None:
        """Note the numbers that a trial has for what is `auto`, with which it goes on anywhere."""
        entry = self.entries[number]
        new = {name: value for name, value in values.items() if name not in entry.overrides}
        if new:
            self._override(entry, new)

    def _override(self, entry: TrialEntry, values: Mapping[str, Any]) -> None:
        """Replace values of a trial from its next epoch on."""
        step = [entry.epochs, dict(values)]
        self.note(entry.number, OVERRIDDEN, [*entry.overridden, step])
        entry.overrides = {**entry.overrides, **values}
        self._note(entry, "overrides", entry.overrides)

    def exploit(self, number: int, step: Exploit, reason: str) -> None:
        """Let a trial that waits go on from the weights of another, with other values."""
        steps = [*self.entries[number].lineage, step]
        with self.transaction():
            self.note(number, LINEAGE, [taken.to_json() for taken in steps])
            self.decide(number, "inherits", reason)

    def interrupt(self, number: int, reason: str) -> None:
        """Mark a trial as cut off; it goes on with `tune resume`."""
        entry = self.entries[number]
        if not entry.state.finished:
            self._set_state(entry, TrialState.INTERRUPTED, reason)

    def assume_interrupted(self, reason: str) -> bool:
        """Treat running trials as interrupted, in memory only: no process runs the study.

        Returns:
            Whether there are any.
        """
        cut_off = self.with_state(TrialState.RUNNING)
        for entry in cut_off:
            self._by_state[TrialState.RUNNING].remove(entry.number)
            self._by_state[TrialState.INTERRUPTED].add(entry.number)
            entry.state, entry.reason = TrialState.INTERRUPTED, reason
        return bool(cut_off)

    def close_running(self, reason: str) -> None:
        """Close trials that a driver left running; nobody runs the study, the caller has its lock.

        Trials that a driver left running are interrupted, as of the last write. In Optuna's
        tables no trial is running any more, and the best one is complete, so that it is the
        `best_trial` there. Nothing is written if all that is so already.

        Args:
            reason: Why trials that are still running were cut off.
        """
        assert self._durable_storage is not None
        left = self._durable_storage.last_written()
        with self.transaction():
            for entry in self.with_state(TrialState.RUNNING):
                self._set_state(entry, TrialState.INTERRUPTED, reason, at=left)
            winner = self.best()
            ended = {decision.trial: decision.time for decision in self.decisions}
            for number, entry in self.entries.items():
                wanted = optuna_entry(entry, self.mode, over=True, wins=entry is winner)
                self._sync(entry, wanted, ended=ended.get(number))
                values = entry.best_values(self.mode)
                if entry.notes.get(BEST_VALUES, entry.values) != values:
                    self.note(number, BEST_VALUES, values)

    def describe(self, metric: str, attributes: Mapping[str, Any]) -> None:
        """Write the metric and descriptive attributes of the study to Optuna's tables."""
        with self.transaction():
            self._storage.set_study_system_attr(self._study_id, METRIC_NAMES, [metric])
            for name, value in attributes.items():
                self._storage.set_study_user_attr(self._study_id, name, value)

    def _sync(self, entry: TrialEntry, wanted: OptunaEntry, ended: float | None = None) -> None:
        """Update the state of a trial in Optuna's tables, if it differs."""
        number = entry.number
        if self._in_optuna[number] == wanted:
            return
        trial_id = self._trial_ids[number]
        if self._durable_storage is None:
            self._storage.set_trial_state_values(trial_id, wanted.state, wanted.values)
        else:
            self._durable_storage.set_trial_state_values(
                trial_id, wanted.state, wanted.values, ended=ended
            )
        self._in_optuna[number] = wanted

    def _set_state(
        self, entry: TrialEntry, state: TrialState, reason: str, at: float | None = None
    ) -> None:
        with self.transaction():
            self.decide(entry.number, state.value, reason, at)
            self._note_state(entry, state, reason)

    def _note_state(self, entry: TrialEntry, state: TrialState, reason: str) -> None:
        self._note(entry, "state", state.value)
        self._note(entry, "reason", reason)
        self._by_state[entry.state].remove(entry.number)
        self._by_state[state].add(entry.number)
        entry.state, entry.reason = state, reason

    def place(self, number: int, placement: Placement) -> None:
        """Note where a trial trains from now on."""
        if self.entries[number].placement != placement:
            self.note(number, PLACEMENT, asdict(placement), durable=False)

    def note(self, number: int, name: str, value: Any, *, durable: bool = True) -> None:
        """Keep a further fact of a trial, which JSON can hold."""
        entry = self.entries[number]
        entry.notes[name] = value
        with self.transaction(durable=durable):
            self._note(entry, "notes", entry.notes)

    def _note(self, entry: TrialEntry, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._trial_ids[entry.number], key, value)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric that all rows have."""
    return {
        name: math.fsum(row[name] for row in rows) / len(rows)
        for name in (rows[0] if rows else ())
        if all(name in row for row in rows)
    }
