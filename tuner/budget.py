"""What a search may spend in epochs and GPU-hours, over all its runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.stopper import Stopper

from tuner.errors import ResourceError
from tuner.record import epochs_spent
from tuner.searchers import GPU_SECONDS

if TYPE_CHECKING:
    from tuner.record import StudyRecord, TrialEntry
    from tuner.spec import StudySpec


def gpu_hours_spent(entries: Iterable[TrialEntry]) -> float:
    """GPU-hours that training took over `entries`; a trial on half a GPU takes half of its time."""
    return math.fsum(entry.notes.get(GPU_SECONDS, 0.0) for entry in entries) / 3600


def spent_budget(record: StudyRecord, spec: StudySpec) -> str | None:
    """The budget that is spent, for a person to read; None while none is."""
    limit = spec.search.epoch_budget
    if limit is not None and epochs_spent(record.entries.values()) >= limit:
        return f"the budget of {limit} epochs is spent"
    hours = spec.search.gpu_hours
    if hours is not None and gpu_hours_spent(record.entries.values()) >= hours:
        return f"the budget of {hours:g} GPU-hours is spent"
    return None


def budget_lines(record: StudyRecord, spec: StudySpec) -> list[str]:
    """How much of each budget is spent; none for a study that has trials alone for one."""
    entries = record.entries.values()
    lines = []
    if spec.search.epoch_budget is not None:
        lines.append(f"{epochs_spent(entries)} of {spec.search.epoch_budget} epochs")
    if spec.search.gpu_hours is not None:
        lines.append(f"{gpu_hours_spent(entries):.2f} of {spec.search.gpu_hours:g} GPU-hours")
    return lines


def check_gpu_hours(spec: StudySpec, gpus: float) -> None:
    """Check that a budget of GPU-hours can be spent.

    Args:
        spec: The study's spec.
        gpus: GPUs of a trial.

    Raises:
        ResourceError: if trials have no GPU.
    """
    if spec.search.gpu_hours is not None and not gpus:
        raise ResourceError(
            f"search.gpu_hours={spec.search.gpu_hours:g} would never be spent: trials have no GPU "
            "here; use search.time_budget or search.epoch_budget"
        )


class BudgetStopper(Stopper):  # type: ignore[misc]
    """Ends the search when a budget is spent; what runs is cut off, and can go on later.

    Args:
        record: The study's record.
        spec: Its spec.
    """

    def __init__(self, record: StudyRecord, spec: StudySpec) -> None:
        self._record = record
        self._spec = spec

    @property
    def reason(self) -> str | None:
        """Why the search ends, None while it goes on."""
        return spent_budget(self._record, self._spec)

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Never stop a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether all trials are to end now."""
        return self.reason is not None
