"""Searchers: what proposes the next configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from ray.tune.search import Searcher

from tuner.record import TrialState

if TYPE_CHECKING:
    from tuner.record import StudyRecord
    from tuner.spec import SearchSettings

TRIAL_NUMBER = "trial_number"
"""Key under which a trial's number travels beside its sampled values."""


def tpe(seed: int) -> BaseSampler:
    """Multivariate tree-structured Parzen estimator (Bergstra et al., 2011; Optuna).

    Conditional parameters are modelled by groups, and running trials are counted as bad so
    that concurrent trials spread out.
    """
    with warnings.catch_warnings():
        # grouping is Optuna's only way to model conditional parameters together
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def random(seed: int) -> BaseSampler:
    """Independent random search (Bergstra and Bengio, 2012)."""
    return RandomSampler(seed=seed)


SEARCHERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": tpe, "random": random}


class RecordSearcher(Searcher):  # type: ignore[misc]
    """Proposes trials from the study's record: first those cut off, then new ones.

    Each proposal is drawn by a sampler seeded with the study's seed and the trial's number,
    so what is proposed depends on the record alone and a resumed study goes on as it would
    have.
    """

    def __init__(self, record: StudyRecord, settings: SearchSettings) -> None:
        super().__init__()
        self._record = record
        self._settings = settings
        self._to_resume = [entry.number for entry in record.unfinished()]
        self._number_of: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The record is the state; there is nothing else to keep."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The sampled values of the next trial and its number, or FINISHED."""
        if self._to_resume:
            entry = self._record.entries[self._to_resume.pop(0)]
            self._record.running(entry.number)
        elif len(self._record.entries) < self._settings.num_trials:
            entry = self._record.propose(self._sampler)
        else:
            return str(Searcher.FINISHED)
        self._number_of[trial_id] = entry.number
        return {**entry.values, TRIAL_NUMBER: entry.number}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Close the trial with the ending that it reported, if nothing closed it before."""
        if error or result is None:
            # the scheduler's on_trial_error has the exception and closes the trial
            return
        number = self._number_of[trial_id]
        report_result(self._record, number, result)
        if "outcome" in result:
            self._record.finish(number, TrialState(result["outcome"]), result["reason"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is written as things happen."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def _sampler(self, number: int) -> BaseSampler:
        # not their sum: studies of neighbouring seeds would share most of their trials
        seed = np.random.SeedSequence((self._settings.seed, number)).generate_state(1)[0]
        return SEARCHERS[self._settings.searcher](int(seed))


def report_result(record: StudyRecord, number: int, result: dict[str, Any]) -> bool:
    """Put a trial's result into the record; False if there is nothing new in it."""
    if "epoch" not in result:
        return False
    prefix = "metrics/"
    metrics = {
        key.removeprefix(prefix): float(value)
        for key, value in result.items()
        if key.startswith(prefix)
    }
    return record.report(number, result["epoch"], result["score"], metrics, result["epoch_seconds"])
