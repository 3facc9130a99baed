"""Schedulers: what stops a weak trial early.

Rungs live in the study's record, not in the scheduler: they are full again as soon as a
study is resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tuner.record import TrialState
from tuner.searchers import TRIAL_NUMBER, report_result
from tuner.worker_death import WorkerOutOfMemoryError

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

    from tuner.record import StudyRecord
    from tuner.spec import StudySpec


class RecordScheduler(FIFOScheduler):  # type: ignore[misc]
    """Trains every trial to the end; writes each score to the record before anything else."""

    def __init__(self, record: StudyRecord) -> None:
        super().__init__()
        self._record = record

    def __getstate__(self) -> dict[str, Any]:
        """The record is the state; there is nothing else to keep."""
        return {}

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        """Record the result, then say whether the trial goes on."""
        number = trial.config[TRIAL_NUMBER]
        if report_result(self._record, number, result):
            return self._decide(number, result["epoch"])
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Close a trial whose worker process died."""
        state, reason = _death_of(trial)
        self._record.finish(trial.config[TRIAL_NUMBER], state, reason)

    def _decide(self, number: int, epoch: int) -> str:
        return str(TrialScheduler.CONTINUE)


class AshaScheduler(RecordScheduler):
    """Asynchronous successive halving, stopping variant (Li et al., 2020).

    A trial that reaches a rung goes on if its score there is in the best 1/reduction_factor
    of all scores reported at that rung so far, its own included; the first few always go on.
    A score that is not finite never goes on.

    Args:
        record: The study's record, which holds the rungs.
        rungs: Epochs at which trials are compared, ascending, below the full budget.
        reduction_factor: One of so many trials survives a rung.
    """

    def __init__(self, record: StudyRecord, rungs: Sequence[int], reduction_factor: int) -> None:
        super().__init__(record)
        self._rungs = tuple(rungs)
        self._reduction_factor = reduction_factor

    def _decide(self, number: int, epoch: int) -> str:
        if epoch not in self._rungs:
            return str(TrialScheduler.CONTINUE)
        sign = 1.0 if self._record.mode == "max" else -1.0
        score = self._record.entries[number].scores[epoch]
        rung = [
            sign * entry.scores[epoch]
            for entry in self._record.entries.values()
            if math.isfinite(entry.scores.get(epoch, math.nan))
        ]
        cutoff = float(np.quantile(rung, 1 - 1 / self._reduction_factor)) if rung else math.nan
        if math.isfinite(score) and sign * score >= cutoff:
            return str(TrialScheduler.CONTINUE)
        self._record.finish(
            number,
            TrialState.STOPPED,
            f"by ASHA at rung {self._rungs.index(epoch) + 1} (epoch {epoch}): {score:.4g} misses "
            f"the best 1/{self._reduction_factor} of {len(rung)} trials "
            f"(cutoff {sign * cutoff:.4g})",
        )
        return str(TrialScheduler.STOP)


def _death_of(trial: Trial) -> tuple[TrialState, str]:
    """State and reason of a trial whose process is gone, from what Ray left of it."""
    error_file = trial.pickled_error_file
    if error_file is None or not Path(error_file).is_file():
        return TrialState.FAILED, "its worker process died"
    error = cloudpickle.loads(Path(error_file).read_bytes())
    reason = str(error).strip().splitlines()[0]
    if isinstance(error, OutOfMemoryError | WorkerOutOfMemoryError):
        return TrialState.OUT_OF_MEMORY, f"Ray ended its worker to free memory: {reason}"
    return TrialState.FAILED, f"its worker process died: {reason}"


def asha(record: StudyRecord, spec: StudySpec) -> RecordScheduler:
    """ASHA with the rungs of the spec."""
    assert spec.asha is not None
    return AshaScheduler(record, spec.rungs(), spec.asha.reduction_factor)


def no_early_stopping(record: StudyRecord, spec: StudySpec) -> RecordScheduler:
    """Every trial trains to the full budget."""
    return RecordScheduler(record)


SCHEDULERS: dict[str, Callable[[StudyRecord, StudySpec], RecordScheduler]] = {
    "asha": asha,
    "none": no_early_stopping,
}


def build_scheduler(record: StudyRecord, spec: StudySpec) -> RecordScheduler:
    """The scheduler that the spec asks for."""
    return SCHEDULERS["none" if spec.asha is None else "asha"](record, spec)
