"""A trial of a study, as Python users see it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from training.config import ModelTrainingConfig
from tuner.report import numbers
from tuner.study.config_files import config_file
from tuner.study.files import (
    METRICS_FILE,
    best_checkpoints,
    fold_folder,
    trial_folder,
)
from tuner.study.remote.study import fetch_checkpoints

if TYPE_CHECKING:
    from tuner.study.study import Study
    from tuner.study.trial_entry import Exploit, TrialEntry, TrialState


class Trial:
    """One sampled configuration of a study: its values, its scores, how it ended.

    Trials are read from the study's record; nothing of them can be changed.

    Example:
        >>> import tuner
        >>> trial = tuner.open_study("liver").trials[1]
        >>> trial
        <Trial 1: completed, val_dice 0.8000 at epoch 2>
        >>> trial.params
        {'learning_rate': 0.02}
        >>> trial.score, trial.epoch, trial.state.value
        (0.8, 2, 'completed')
        >>> [row["val_dice"] for row in trial.history]
        [0.6, 0.8, 0.7]
    """

    def __init__(self, study: Study, entry: TrialEntry) -> None:
        self._study = study
        self._entry = entry
        self._best = entry.best(study.record.mode)

    @property
    def number(self) -> int:
        """Number of the trial in the study, from 0."""
        return self._entry.number

    @property
    def state(self) -> TrialState:
        """The state of the trial, e.g. `"completed"`; a string enumeration."""
        return self._entry.state

    @property
    def reason(self) -> str:
        """Why the trial ended, as a sentence."""
        return self._entry.reason

    @property
    def params(self) -> dict[str, Any]:
        """The sampled values by field name: those that the best score was reached with."""
        return self._entry.best_values(self._study.record.mode)

    @property
    def score(self) -> float | None:
        """The best value of the study's metric; None if there is none yet.

        Of several folds, the mean over those that are finished, each with its best epoch.
        """
        return self._best[1] if self._best else None

    @property
    def epoch(self) -> int | None:
        """The epoch of the best score, from 1; None if there is none yet.

        Of several folds it is the end of the last finished one, counted over all.
        """
        return self._best[0] if self._best else None

    @property
    def epochs(self) -> int:
        """How many epochs were trained."""
        return self._entry.epochs_trained

    @property
    def seconds(self) -> float:
        """Time spent on training."""
        return self._entry.seconds

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics of the best epoch by name."""
        return dict(self._entry.metrics)

    @property
    def history(self) -> list[dict[str, float]]:
        """All metrics by epoch: a dict an epoch, with `epoch`, `seconds` and every metric.

        Of several folds, each row has its `fold` and the epoch in it. A metric that was not
        measured at an epoch is left out. `pandas.DataFrame(trial.history)`
        is a table of them.
        """
        paths = [
            fold_folder(self.folder, fold) / METRICS_FILE for fold in range(self._study.spec.folds)
        ]
        if not paths[0].is_file():
            metric = self._study.spec.metric
            return [{"epoch": e, metric: s} for e, s in sorted(self._entry.scores.items())]
        if len(paths) == 1:
            return _rows(paths[0])
        return [
            {"fold": fold, **row}
            for fold, path in enumerate(paths)
            if path.is_file()
            for row in _rows(path)
        ]

    @property
    def config(self) -> ModelTrainingConfig:
        """The whole config that the best epoch was trained with."""
        best = self._entry.best_of_fold(0, self._study.record.mode)
        path = config_file(self.folder, best[0] if best else self._entry.epochs + 1)
        if path.is_file():
            return ModelTrainingConfig(**yaml.safe_load(path.read_text()))
        return self._study.spec.trial_config(self.params)

    @property
    def folder(self) -> Path:
        """Folder of the trial: config, metrics by epoch, TensorBoard events, checkpoints."""
        return trial_folder(self._study.folder, self.number)

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint of the best epoch; None where it was removed, or there is none yet.

        Of several folds it is that of the first.
        """
        return self.checkpoints.get(0)

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The best checkpoint of each fold, by fold from 0, of those that are there.

        Those of a study at an address are fetched.

        Raises:
            StudyError: if its storage does not answer.
        """
        fetch_checkpoints(self.folder)
        return best_checkpoints(self._study.folder, self.number, self._study.spec.folds)

    @property
    def fold_scores(self) -> list[float]:
        """The best score of each finished fold; `[]` in a study without folds."""
        return self._entry.fold_scores(self._study.record.mode)

    @property
    def lineage(self) -> list[Exploit]:
        """Whose weights and values the trial took over in PBT, in the order of epochs."""
        return self._entry.lineage

    def __repr__(self) -> str:
        score = "no score"
        if self._best:
            epoch, best = self._best
            score = f"{self._study.spec.metric} {numbers.score(best)} at epoch {epoch}"
        return f"<Trial {self.number}: {self.state}, {score}>"


def _rows(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`."""
    with path.open(newline="") as file:
        return [
            {
                name: int(cell) if name == "epoch" else float(cell)
                for name, cell in row.items()
                if cell
            }
            for row in csv.DictReader(file)
        ]
