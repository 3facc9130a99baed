"""Trials that no other trial beats in every metric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tuner.study.trial_entry import sign_of

if TYPE_CHECKING:
    from tuner.study.trial_entry import TrialEntry

Objectives = Sequence[tuple[str, str]]
"""Metrics and their modes, "max" or "min"."""


def metric_values(entry: TrialEntry, objectives: Objectives) -> tuple[float, ...] | None:
    """Metrics of a trial's best epoch, whose checkpoint is kept; None if one is missing."""
    values = tuple(entry.metrics.get(name, math.nan) for name, _ in objectives)
    return values if all(math.isfinite(value) for value in values) else None


def dominates(one: Sequence[float], other: Sequence[float], objectives: Objectives) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better."""
    signs = [sign_of(mode) for _, mode in objectives]
    gains = [sign * (a - b) for sign, a, b in zip(signs, one, other, strict=True)]
    return min(gains) >= 0 and max(gains) > 0


def pareto_front(entries: Iterable[TrialEntry], objectives: Objectives) -> list[TrialEntry]:
    """The trials that may win and that no other such trial dominates, best first metric first.

    Args:
        entries: Trials.
        objectives: What they are compared by.
    """
    known = [
        (values, entry)
        for entry in entries
        if entry.state.usable and (values := metric_values(entry, objectives)) is not None
    ]
    front = [
        (values, entry)
        for values, entry in known
        if not any(dominates(other, values, objectives) for other, _ in known)
    ]
    sign = -sign_of(objectives[0][1])
    return [
        entry for _, entry in sorted(front, key=lambda pair: (sign * pair[0][0], pair[1].number))
    ]
