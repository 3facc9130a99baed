"""Budgets of a search in epochs and GPU-hours, over all its runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tuner.study.trial_entry import GPU_SECONDS, epochs_spent

if TYPE_CHECKING:
    from tuner.study.study import Study
    from tuner.study.trial_entry import TrialEntry


def gpu_hours_spent(entries: Iterable[TrialEntry]) -> float:
    """GPU-hours that training took over `entries`; a trial on half a GPU takes half of its time."""
    return math.fsum(entry.notes.get(GPU_SECONDS, 0.0) for entry in entries) / 3600


def spent_budget(study: Study) -> str | None:
    """The budget that is spent, as text; None while none is."""
    entries, search = study.record.entries.values(), study.spec.search
    limit = search.epoch_budget
    if limit is not None and epochs_spent(entries) >= limit:
        return f"the budget of {limit} epochs is spent"
    hours = search.gpu_hours
    if hours is not None and gpu_hours_spent(entries) >= hours:
        return f"the budget of {hours:g} GPU-hours is spent"
    return None


def budget_lines(study: Study) -> list[str]:
    """How much of each budget is spent; none for a study that has trials alone for one."""
    entries, search = study.record.entries.values(), study.spec.search
    lines = []
    if search.epoch_budget is not None:
        lines.append(f"{epochs_spent(entries)} of {search.epoch_budget} epochs")
    if search.gpu_hours is not None:
        lines.append(f"{gpu_hours_spent(entries):.2f} of {search.gpu_hours:g} GPU-hours")
    return lines
