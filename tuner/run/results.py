"""A trial's results on their way into the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuner.study.trial_entry import GPU_SECONDS

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord


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
    seconds = result["epoch_seconds"]
    # a score alone is no decision: it need not be on the disk before the trial goes on
    with record.transaction(durable=False):
        new = record.report(number, result["epoch"], result["score"], metrics, seconds)
        if new and result.get("gpus"):
            before = record.entries[number].notes.get(GPU_SECONDS, 0.0)
            record.note(number, GPU_SECONDS, before + seconds * result["gpus"], durable=False)
    return new
