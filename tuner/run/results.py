"""An epoch's report on its way into the record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner.study.trial_entry import GPU_SECONDS

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord
    from tuner.trial.messages import EpochReport


def record_epoch(record: StudyRecord, number: int, report: EpochReport) -> bool:
    """Put an epoch of a trial into the record; False if it is there already."""
    # a score alone is no decision: it need not be on the disk before the trial goes on
    with record.transaction(durable=False):
        new = record.report(number, report.epoch, report.score, report.metrics, report.seconds)
        if new and report.gpus:
            before = record.entries[number].notes.get(GPU_SECONDS, 0.0)
            spent = before + report.seconds * report.gpus
            record.note(number, GPU_SECONDS, spent, durable=False)
    return new
