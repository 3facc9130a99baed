"""Ranks trials of different budgets on one scale, for searchers to learn from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tuner.study.trial_entry import BAD_CONFIGS

if TYPE_CHECKING:
    from tuner.search.searchers.view import SearchView


def ranks_by_rung(view: SearchView) -> dict[int, float]:
    """Rank of each trial that has a result, greater is better.

    A trial that came further is better than one that was stopped before it; trials that came
    equally far are ordered by their scores there. So the score of a rung is compared with
    scores of the same rung alone. Of a trial whose score is not defined at a rung, the rung before
    counts; without any it has no result, which is not the worst one.
    """
    keys: dict[int, tuple[int, float]] = {}
    for number, entry in view.record.entries.items():
        if entry.state in BAD_CONFIGS:
            keys[number] = (-1, 0.0)
            continue
        scores = [view.sign * entry.score_at(rung, view.record.mode) for rung in view.rungs]
        defined = [(place, score) for place, score in enumerate(scores, 1) if math.isfinite(score)]
        if defined:
            keys[number] = defined[-1]
    places = {key: place for place, key in enumerate(sorted(set(keys.values())))}
    return {number: float(places[key]) for number, key in keys.items()}
