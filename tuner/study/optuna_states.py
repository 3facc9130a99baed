"""Maps trials and their states to Optuna's, for optuna-dashboard and `optuna.load_study`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from tuner.spec.space import restored_values
from tuner.study.trial_entry import TrialEntry, TrialState, named_now

if TYPE_CHECKING:
    from tuner.spec.space import Space

METRIC_NAMES = "study:metric_names"
"""Attribute of a study in which Optuna keeps the names of its metrics."""


@dataclass(frozen=True)
class OptunaEntry:
    """State and final score of a trial in Optuna's tables.

    Attributes:
        state: The state.
        score: The score, None for none.
    """

    state: OptunaState
    score: float | None = None

    @classmethod
    def of(cls, trial: FrozenTrial) -> OptunaEntry:
        """The current state in the tables."""
        return cls(trial.state, trial.values[0] if trial.values else None)

    @property
    def values(self) -> list[float] | None:
        """The score as Optuna takes it."""
        return None if self.score is None else [self.score]


RUNNING = OptunaEntry(OptunaState.RUNNING)


def optuna_entry(
    entry: TrialEntry, mode: str, *, over: bool = False, wins: bool = False
) -> OptunaEntry:
    """State and score that Optuna's tables should have for a trial.

    Optuna has no state for trials that are paused or were cut off. While a study runs, such a trial
    counts as running, since it may go on; afterwards it is pruned, with its best score.

    Args:
        entry: The trial.
        mode: Whether a greater ("max") or smaller ("min") score is better.
        over: Whether nobody runs the study.
        wins: Whether the trial is the study's best: Optuna seeks it among complete trials alone.
    """
    best = entry.best(mode)
    if not entry.state.usable:
        return OptunaEntry(OptunaState.FAIL)
    if not entry.state.finished and not over:
        return RUNNING
    if best is None:
        return OptunaEntry(OptunaState.FAIL)
    complete = wins or entry.state is TrialState.COMPLETED
    return OptunaEntry(OptunaState.COMPLETE if complete else OptunaState.PRUNED, best[1])


def entry_of(trial: FrozenTrial, space: Space, fold_epochs: int | None = None) -> TrialEntry:
    """The trial that Optuna's tables hold.

    Args:
        trial: As Optuna reads it.
        space: What the study varies.
        fold_epochs: Epochs of a fold where there are several.
    """
    attributes = trial.user_attrs
    return TrialEntry(
        number=trial.number,
        values=restored_values(space, trial.params),
        state=TrialState(attributes.get("state", TrialState.RUNNING)),
        reason=attributes.get("reason", ""),
        scores=dict(trial.intermediate_values),
        metrics=named_now(attributes.get("metrics", {})),
        seconds=attributes.get("seconds", 0.0),
        epoch_seconds=attributes.get("epoch_seconds", 0.0),
        proposed_by=attributes.get("proposed_by", ""),
        generation=attributes.get("generation", 0),
        notes=attributes.get("notes", {}),
        failures=attributes.get("failures", 0),
        overrides=attributes.get("overrides", {}),
        fold_epochs=fold_epochs,
    )
