"""Hands the events of Ray Tune on to the live view of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from tuner.report.numbers import score
from tuner.trial.messages import EpochReport, TrialRequest, TrialStart

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from tuner.report.live import StudyView


class ViewCallback(Callback):  # type: ignore[misc]
    """Tells the live view what happens to the trials.

    Args:
        view: The view.
        metric: The study's metric.
    """

    def __init__(self, view: StudyView, metric: str) -> None:
        self._view = view
        self._metric = metric

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks; a view has nothing to keep."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Refresh the view."""
        self._view.refresh()

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Announce a trial that begins, an epoch, and the trial's messages."""
        number = TrialRequest.from_ray(trial.config).number
        if TrialStart.from_ray(result) is not None:
            self._view.trial_started(number)
        report = EpochReport.from_ray(result)
        if report is None:
            return
        if report.note:
            self._view.trial_noted(number, report.note)
        outcome = report.undefined or f"{self._metric} {score(report.score)}"
        self._view.epoch_ended(number, report.epoch, outcome)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Announce the end of a trial."""
        self._view.trial_ended(TrialRequest.from_ray(trial.config).number)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Announce the end of a trial whose process died."""
        self._view.trial_ended(TrialRequest.from_ray(trial.config).number)
