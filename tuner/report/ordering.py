"""The order in which trials and studies are listed: `--sort KEY` and `--top N`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from tuner.errors import StudyError
from tuner.study.trial_entry import epochs_spent, sign_of

if TYPE_CHECKING:
    from tuner.study.study import Study
    from tuner.study.trial_entry import TrialEntry

Item = TypeVar("Item")

STUDY_KEYS: dict[str, Callable[[Study], Any]] = {
    "name": lambda study: study.name,
    "trials": lambda study: len(study.record.entries),
    "epochs": lambda study: epochs_spent(study.record.entries.values()),
    "score": lambda study: _rank_of_best(study),
}
"""Sort keys of studies; scores come best first."""


def sorted_trials(study: Study, key: str | None = None, top: int | None = None) -> list[TrialEntry]:
    """The trials of a study in the order of a key.

    Scores and the study's metrics come best first, all else from small to large; trials without
    a value come last.

    Args:
        study: The study.
        key: A key of `trial_keys`; by number if None.
        top: How many of the first to keep; all if None.

    Raises:
        StudyError: for an unknown key.
    """
    entries = [entry for _, entry in sorted(study.record.entries.items())]
    return _ordered(entries, trial_keys(study), key, top)


def sorted_studies(
    studies: Iterable[Study], key: str | None = None, top: int | None = None
) -> list[Study]:
    """Studies in the order of a key of `STUDY_KEYS`, as they come without one.

    Raises:
        StudyError: for an unknown key.
    """
    return _ordered(studies, STUDY_KEYS, key, top)


def trial_keys(study: Study) -> dict[str, Callable[[TrialEntry], Any]]:
    """Sort keys of the trials of a study: facts, fields that vary and metrics."""
    mode, modes = study.record.mode, dict(study.spec.objectives)
    metrics = {name for entry in study.record.entries.values() for name in entry.metrics}

    def score(entry: TrialEntry) -> float | None:
        best = entry.best(mode)
        return None if best is None else -sign_of(mode) * best[1]

    def field(name: str) -> Callable[[TrialEntry], Any]:
        return lambda entry: entry.best_values(mode).get(name)

    def metric(name: str) -> Callable[[TrialEntry], float]:
        sign = -sign_of(modes[name]) if name in modes else 1.0
        return lambda entry: sign * entry.metrics.get(name, math.nan)

    return {
        "number": lambda entry: entry.number,
        "state": lambda entry: entry.state.value,
        "score": score,
        "epochs": lambda entry: entry.epochs,
        "seconds": lambda entry: entry.seconds,
        **{name: field(name) for name, _ in study.spec.space.items()},
        **{name: metric(name) for name in sorted(metrics)},
    }


def _ordered(
    items: Iterable[Item],
    keys: Mapping[str, Callable[[Item], Any]],
    key: str | None,
    top: int | None,
) -> list[Item]:
    if key is None:
        return list(items)[:top]
    if key not in keys:
        raise StudyError(f"--sort {key}: unknown key; choose from {', '.join(keys)}")
    value = keys[key]
    return sorted(items, key=lambda item: _rank(value(item)))[:top]


def _rank(value: Any) -> tuple[int, Any]:
    """Sort key: numbers, then texts, then missing values."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return 2, 0
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def _rank_of_best(study: Study) -> float | None:
    """A number that is the smaller the better the study's best score is."""
    entry = study.record.best()
    best = None if entry is None else entry.best(study.record.mode)
    return None if best is None else -sign_of(study.record.mode) * best[1]
