"""Numbers of a study for Prometheus, through Ray's metrics: `docker/grafana/` shows them.

Ray exports each as `ray_NAME`, on the metrics port of the node that the driver is on.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.util.metrics import Gauge

from tuner.spec.grid import planned_trials
from tuner.study.trial_entry import TrialState, epochs_spent
from tuner.trial.messages import EpochReport, TrialRequest

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from tuner.study.study import Study

STUDY_GAUGES = {
    "segtune_trials": "Trials of a study in a state; those to come have the state `to come`.",
    "segtune_best_score": "Best value of the study's metric so far.",
    "segtune_epochs": "Epochs that were trained, over all trials of the study.",
}
"""Gauges of a study; the first one has a tag `state` as well."""

TRIAL_GAUGES = {
    "segtune_trial_epoch": "Epochs that a running trial has trained.",
    "segtune_trial_score": "Value of the study's metric in the last epoch of a running trial.",
    "segtune_trial_epoch_seconds": "Seconds that the last epoch of a running trial took.",
    "segtune_trial_memory_bytes": "Most memory that a running trial took so far: of its GPU, or "
    "on the CPU the growth of its process.",
}
"""Gauges of a trial while it runs, with the tags `trial` and `node`."""

INTERVAL = 5.0
"""Seconds between two looks at the whole record; Ray exports every 10 s."""


class StudyGauges(Callback):  # type: ignore[misc]
    """Sets the gauges of a study.

    A trial's gauges become NaN when it ends, since Ray exports a gauge for as long as its process
    lives: dashboards then show a line that ends.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._tags = {"study": study.label}
        self._gauges = {
            name: Gauge(name, help_, ("study", "state") if name == "segtune_trials" else ("study",))
            for name, help_ in STUDY_GAUGES.items()
        } | {
            name: Gauge(name, help_, ("study", "trial", "node"))
            for name, help_ in TRIAL_GAUGES.items()
        }
        self._looked = -math.inf
        self._shown: dict[int, dict[str, str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks; there is nothing to keep."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Set the gauges of the study, now and then."""
        now = time.monotonic()
        if now - self._looked >= INTERVAL:
            self._looked = now
            self._look()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Set the gauges of the study once more."""
        self._look()

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Set the gauges of a trial."""
        report = EpochReport.from_ray(result)
        if report is None:
            return
        number = TrialRequest.from_ray(trial.config).number
        placement = self._study.record.entries[number].placement
        tags = {
            **self._tags,
            "trial": str(number),
            "node": "" if placement is None else placement.node,
        }
        if tags != self._shown.get(number):
            self._clear(number)
            self._shown[number] = tags
        values = (
            *(report.epoch, report.score, report.seconds),
            report.metrics.get("peak_memory", math.nan),
        )
        for name, value in zip(TRIAL_GAUGES, values, strict=True):
            self._gauges[name].set(value, tags)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """End the gauges of a trial."""
        self._clear(TrialRequest.from_ray(trial.config).number)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """End the gauges of a trial."""
        self._clear(TrialRequest.from_ray(trial.config).number)

    def _clear(self, number: int) -> None:
        tags = self._shown.pop(number, None)
        for name in TRIAL_GAUGES if tags else ():
            self._gauges[name].set(math.nan, tags)

    def _look(self) -> None:
        record = self._study.record
        for state in TrialState:
            self._count(state.value, len(record.with_state(state)))
        self._count("to come", planned_trials(self._study.spec) - len(record.entries))
        best = record.best()
        score = best.best(record.mode) if best else None
        if score is not None:
            self._gauges["segtune_best_score"].set(score[1], self._tags)
        spent = epochs_spent(record.entries.values())
        self._gauges["segtune_epochs"].set(spent, self._tags)

    def _count(self, state: str, trials: int) -> None:
        self._gauges["segtune_trials"].set(trials, {**self._tags, "state": state})
