"""Tune's view of a policy: scores go to the record, decisions take effect after that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import cloudpickle
from ray.exceptions import OutOfMemoryError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tuner.record import TrialState
from tuner.schedulers.policy import Action
from tuner.searchers import TRIAL_NUMBER, report_result
from tuner.worker_death import WorkerOutOfMemoryError

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

    from tuner.record import StudyRecord
    from tuner.schedulers.policy import Policy


class RecordScheduler(FIFOScheduler):  # type: ignore[misc]
    """Writes each score to the record before anything else, then does what the policy says.

    A trial that pauses ends for Tune, whose worker is free at once; when it is promoted, the
    searcher proposes it again, and it goes on from its last checkpoint.

    Args:
        record: The study's record.
        policy: What decides.
    """

    def __init__(self, record: StudyRecord, policy: Policy) -> None:
        super().__init__()
        self._record = record
        self._policy = policy

    def __getstate__(self) -> dict[str, Any]:
        """The record is the state; there is nothing else to keep."""
        return {}

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        """Record the result, then say whether the trial goes on."""
        number = trial.config[TRIAL_NUMBER]
        if not report_result(self._record, number, result):
            return str(TrialScheduler.CONTINUE)
        decision = self._policy.judge(number, result["epoch"])
        if decision.action is Action.CONTINUE:
            return str(TrialScheduler.CONTINUE)
        if decision.action is Action.STOP:
            self._record.finish(number, TrialState.STOPPED, decision.reason)
        else:
            self._record.pause(number, decision.reason)
        return str(TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Close a trial whose worker process died."""
        state, reason = _death_of(trial)
        self._record.finish(trial.config[TRIAL_NUMBER], state, reason)


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
