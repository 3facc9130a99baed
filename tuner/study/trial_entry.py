"""Entries of a study's record: a trial, and a decision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class TrialState(StrEnum):
    """State of a trial; every trial ends in one of these, with a reason."""

    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def finished(self) -> bool:
        """Whether the trial will never run again."""
        return self not in {*IN_PROGRESS, TrialState.PAUSED}

    @property
    def usable(self) -> bool:
        """Whether the trial's best checkpoint may win the study."""
        return not self.finished or self in {TrialState.COMPLETED, TrialState.STOPPED}


IN_PROGRESS = (TrialState.RUNNING, TrialState.INTERRUPTED)
"""States of trials that train, or that were cut off and go on as soon as the study does."""

FAILURES = (TrialState.FAILED, TrialState.OUT_OF_MEMORY)
"""Endings by an exception, a lost worker or too little memory: they say nothing about a config,
which may do well elsewhere."""

BAD_CONFIGS = (TrialState.DIVERGED, TrialState.OUT_OF_MEMORY, TrialState.INFEASIBLE)
"""Endings that are the config's fault in this study: as bad as a result can be."""


OVERRIDDEN = "overridden"
"""Note of a trial: after which epochs which values were replaced, as it had run out of memory or
its schedule was shortened."""

MAX_EPOCHS = "max_epochs"
"""Value that is replaced where a trial's schedule is shortened."""

BEST_VALUES = "best_values"
"""Note of a trial: the values that its best score was reached with, if they are not those that
Optuna's tables have, which it was proposed with."""

MOVED = "moved"
"""Note of a trial: after which epoch its nodes failed, and how often in a row."""

MEMORY = "memory"
"""Note of a trial: the most that its processes held of their node's memory at a time, in bytes."""

FORMER_NAMES = {"learning_rate": "lr"}
"""Logged metrics by the name that they had in earlier versions, and the one that they have now."""


@dataclass(frozen=True)
class DecisionEntry:
    """A decision about a trial, with its reason.

    Attributes:
        time: When, in seconds since 1970.
        trial: The trial's number.
        epoch: The epoch that it had trained.
        action: What was decided, or the state that it ended in.
        reason: The reason as text.
    """

    time: float
    trial: int
    epoch: int
    action: str
    reason: str


@dataclass(frozen=True)
class Placement:
    """Where a trial trains.

    Attributes:
        node: Name of the host.
        gpus: Ids of its GPUs there, as Ray counts them; none on the CPU.
    """

    node: str
    gpus: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.node, *(["GPU", ",".join(self.gpus)] if self.gpus else [])])


@dataclass
class TrialEntry:
    """One trial of the record.

    Attributes:
        number: Number of the trial in the study, from 0.
        values: Sampled values by field name.
        state: How the trial stands.
        reason: Why it ended, as text.
        scores: Value of the study's metric by epoch, from 1. Where the trial is judged on several
            folds, epochs are counted over all of them, and each fold has its own; the last
            one of a fold counts as its `fold_epochs`-th, however early it ended.
        metrics: All metrics of the best epoch; of several folds their means.
        seconds: Time spent on training, over all its runs.
        epoch_seconds: Time of an epoch now: a mean in which each counts half as much as the next;
            0 for none, and in records of earlier versions.
        proposed_by: What drew its values.
        generation: Generation of a searcher that works in generations.
        failures: How often it failed and was tried again.
        overrides: Values that a retry after running out of memory, or a shortened schedule, has
            in place of others.
        notes: Further facts, by name; what JSON can hold.
        fold_epochs: Epochs of a fold where there are several, None where the trial trains once.
    """

    number: int
    values: dict[str, Any]
    state: TrialState = TrialState.RUNNING
    reason: str = ""
    scores: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    proposed_by: str = ""
    generation: int = 0
    failures: int = 0
    overrides: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    fold_epochs: int | None = None

    @property
    def lineage(self) -> list[Exploit]:
        """The exploit steps of the trial (PBT), in the order of epochs."""
        return [Exploit(**step) for step in self.notes.get(LINEAGE, ())]

    @property
    def ends_at(self) -> int | None:
        """Epochs that its schedule was shortened to, to end in time; None if it was not."""
        epochs: int | None = self.overrides.get(MAX_EPOCHS)
        return epochs

    @property
    def is_finalist(self) -> bool:
        """Whether it trains on to the end while others pause, since time is short."""
        return FINALIST in self.notes

    @property
    def placement(self) -> Placement | None:
        """Where it trains, or trained last; None before it did, and in older records."""
        note = self.notes.get(PLACEMENT)
        return None if note is None else Placement(note["node"], tuple(note["gpus"]))

    @property
    def overridden(self) -> list[list[Any]]:
        """After which epochs which values were replaced."""
        # a record of an earlier version does not have the epoch
        first = [[0, self.overrides]] if self.overrides else []
        return list(self.notes.get(OVERRIDDEN, first))

    @property
    def trained_values(self) -> dict[str, Any]:
        """The values that the trial really trains with from its next epoch on."""
        return self.trained_values_at(self.epochs + 1)

    def trained_values_at(self, epoch: int) -> dict[str, Any]:
        """The values that the trial really trains, or trained, an epoch with."""
        values = self.values_at(epoch)
        for after, overrides in self.overridden:
            if after < epoch:
                values |= overrides
        return values

    def best_values(self, mode: str) -> dict[str, Any]:
        """The values that the best score was reached with; without one those of the next epoch."""
        best = self.best(mode)
        return self.trained_values if best is None else self.trained_values_at(best[0])

    def values_at(self, epoch: int) -> dict[str, Any]:
        """The values of the search space with which an epoch is trained."""
        return values_at(self.values, self.lineage, epoch)

    @property
    def epochs(self) -> int:
        """How far the trial has come: the epoch that it trained last."""
        return max(self.scores, default=0)

    @property
    def epochs_trained(self) -> int:
        """Epochs that were trained; of folds that ended early there are fewer than `epochs`."""
        return self.epochs if self.fold_epochs is None else len(self.scores)

    @property
    def finished_folds(self) -> int:
        """Folds that were trained to their end, of several."""
        return 0 if self.fold_epochs is None else self.epochs // self.fold_epochs

    def add_epoch_of(self, seconds: float) -> None:
        """Count the time of one more epoch."""
        self.seconds += seconds
        self.epoch_seconds = ((self.epoch_seconds or seconds) + seconds) / 2

    def best(self, mode: str) -> tuple[int, float] | None:
        """Epoch and value of the best finite score; the first of equals.

        As soon as a fold of several is finished, the mean over those that are, each with its best
        epoch, and the epoch at which the last of them ended.
        """
        if not self.finished_folds:
            return self.best_of_fold(0, mode)
        assert self.fold_epochs is not None
        ended = self.finished_folds * self.fold_epochs
        mean = self.score_at(ended, mode)
        return (ended, mean) if math.isfinite(mean) else None

    def scores_of_fold(self, fold: int) -> dict[int, float]:
        """Score by epoch of a fold, counted from its own start."""
        before = fold * (self.fold_epochs or 0)
        end = before + self.fold_epochs if self.fold_epochs else math.inf
        return {
            epoch - before: score for epoch, score in self.scores.items() if before < epoch <= end
        }

    def best_of_fold(self, fold: int, mode: str) -> tuple[int, float] | None:
        """Epoch and value of the best finite score of a fold, counted from its own start."""
        return best_of(self.scores_of_fold(fold), mode)

    def fold_scores(self, mode: str) -> list[float]:
        """Best score of each finished fold of several; NaN where none is defined."""
        found = (self.best_of_fold(fold, mode) for fold in range(self.finished_folds))
        return [math.nan if best is None else best[1] for best in found]

    def metrics_of_fold(self, fold: int) -> dict[str, float]:
        """All metrics of a fold's best epoch; those of the best epoch where there is one fold."""
        if self.fold_epochs is None:
            return self.metrics
        by_fold: dict[str, dict[str, float]] = self.notes.get(FOLD_METRICS, {})
        return by_fold.get(str(fold), {})

    def score_at(self, epoch: int, mode: str) -> float:
        """The score that a trial has when it is compared after an epoch; NaN for none.

        Where a fold of several ends, it is the mean over the folds so far, each with its best
        epoch; those whose score is not defined are left out.
        """
        if self.fold_epochs is None or epoch % self.fold_epochs:
            return self.scores.get(epoch, math.nan)
        scores = self.fold_scores(mode)[: epoch // self.fold_epochs]
        defined = [score for score in scores if math.isfinite(score)]
        if len(scores) * self.fold_epochs < epoch or not defined:
            return math.nan
        return math.fsum(defined) / len(defined)

    def standing(self, mode: str) -> tuple[int, float] | None:
        """What trials are ranked by, greater is better: the folds they finished, then the score.

        None for a trial without a score.
        """
        best = self.best(mode)
        return None if best is None else (self.finished_folds, sign_of(mode) * best[1])


def best_of(scores: Mapping[int, float], mode: str) -> tuple[int, float] | None:
    """Epoch and value of the best finite score of a training; the first of equals."""
    finite = {epoch: score for epoch, score in scores.items() if math.isfinite(score)}
    if not finite:
        return None
    sign = sign_of(mode)
    epoch = max(sorted(finite), key=lambda epoch: sign * finite[epoch])
    return epoch, finite[epoch]


def ranked(entries: Iterable[TrialEntry], mode: str) -> list[TrialEntry]:
    """Those of the entries that may win, the best first; of equals the first trial."""
    scored = [
        (-standing[0], -standing[1], entry.number, entry)
        for entry in entries
        if entry.state.usable and (standing := entry.standing(mode)) is not None
    ]
    return [entry for *_, entry in sorted(scored, key=lambda found: found[:3])]


def named_now(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics that an earlier version may have logged, by the names that they have now."""
    return {FORMER_NAMES.get(name, name): value for name, value in metrics.items()}


def epochs_spent(entries: Iterable[TrialEntry]) -> int:
    """Epochs trained over `entries`."""
    return sum(entry.epochs_trained for entry in entries)


def sign_of(mode: str) -> float:
    """Factor that makes a greater score the better one."""
    return 1.0 if mode == "max" else -1.0


GPU_SECONDS = "gpu_seconds"
"""Note of a trial: time that it trained, times its share of a GPU."""

FOLD_METRICS = "fold_metrics"
"""Note of a trial with several folds: all metrics of each fold's best epoch, by fold."""

VIOLATION = "violation"
"""Note of a trial that broke a constraint: by what share of the limit it was above it."""

CASES = "cases"
"""Note of a trial of a confirmation: its score by test case."""

GRID = "grid"
"""Note of a trial of a confirmation: the grid of its scores, see
`training.bundle.case_scores.Grid`."""

PLACEMENT = "placement"
"""Note of a trial: where it trains, or trained last, see `Placement`."""

FINALIST = "finalist"
"""Note of a trial that trains on to the end while others pause, since time is short."""

LINEAGE = "lineage"
"""Note of a trial: whose weights it copied, and the values that it went on with."""


@dataclass(frozen=True)
class Exploit:
    """A step of population based training: a trial copied the weights of another one.

    It goes on with values near those of the other one, which is to explore.

    Attributes:
        epoch: Epoch after which it did; both had trained as many.
        donor: Number of the other trial.
        values: All its values by field name, from the next epoch on.
        explored: What the donor's value was and what it is now, of each field that differs.
    """

    epoch: int
    donor: int
    values: Mapping[str, Any]
    explored: Mapping[str, Sequence[Any]]

    def describe(self) -> str:
        """The step as one line of text."""
        changes = ", ".join(
            f"{name} {_short(old)} -> {_short(new)}" for name, (old, new) in self.explored.items()
        )
        return f"trial {self.donor} at epoch {self.epoch}: {changes or 'nothing changed'}"

    def to_json(self) -> dict[str, Any]:
        """As the record keeps it."""
        return asdict(self)


def values_at(
    proposed: Mapping[str, Any], lineage: Sequence[Exploit], epoch: int
) -> dict[str, Any]:
    """The values with which a trial trained an epoch."""
    values = proposed
    for step in lineage:
        if step.epoch < epoch:
            values = step.values
    return dict(values)


def _short(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Old and new value of each field that differs; None where a field takes no part."""
    names = dict.fromkeys([*old, *new])
    return {
        name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)
    }
