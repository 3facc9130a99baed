"""Studies as plain values that JSON can hold: what `--json` prints and `Study.to_dict` gives.

A study has the keys `name`, `folder`, `metric`, `mode`, `objectives`, `num_trials` (planned),
`states` (how many trials are in which), `epochs` (trained), `running` (whether a process runs
it), `finished`, `best` (a trial or null), and in `tune status` also `trials`. A trial has the
keys `number`, `state`, `reason`, `score`, `epoch` (of the score), `epochs` (trained), `seconds`,
`node` and `gpus` (where it trains, or trained last), `params` and `metrics` (of the best epoch).
What is not known, not defined or infinite is null.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tuner.spec.grid import planned_trials
from tuner.study.confirmation import is_finished
from tuner.study.driver_lock import driver_is_running
from tuner.study.trial_entry import TrialState, epochs_spent

if TYPE_CHECKING:
    from tuner.study.study import Study
    from tuner.study.trial_entry import TrialEntry


def study_document(study: Study) -> dict[str, Any]:
    """A study without its trials, as `tune list --json` has it."""
    record, spec = study.record, study.spec
    best = record.best()
    return {
        "name": study.name,
        "folder": str(study.folder),
        "metric": spec.metric,
        "mode": spec.mode,
        "objectives": [{"metric": name, "mode": mode} for name, mode in spec.objectives],
        "num_trials": planned_trials(spec),
        "states": {
            state.value: len(entries)
            for state in TrialState
            if (entries := record.with_state(state))
        },
        "epochs": epochs_spent(record.entries.values()),
        "running": driver_is_running(study.folder),
        "finished": is_finished(study),
        "best": None if best is None else trial_document(best, record.mode),
    }


def trial_document(entry: TrialEntry, mode: str) -> dict[str, Any]:
    """A trial."""
    best = entry.best(mode)
    placement = entry.placement
    return {
        "number": entry.number,
        "state": entry.state.value,
        "reason": entry.reason,
        "score": best[1] if best else None,
        "epoch": best[0] if best else None,
        "epochs": entry.epochs_trained,
        **({} if entry.fold_epochs is None else {"folds": _fold_scores(entry, mode)}),
        "seconds": round(entry.seconds, 1),
        "node": placement and placement.node,
        "gpus": placement and list(placement.gpus),
        "params": entry.best_values(mode),
        "metrics": {name: _finite(number) for name, number in entry.metrics.items()},
    }


def _fold_scores(entry: TrialEntry, mode: str) -> list[float | None]:
    return [_finite(score) for score in entry.fold_scores(mode)]


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
