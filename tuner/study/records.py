"""The records of a study when it begins and ends: its own, and that of its confirmation."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from tuner.study.confirmation import confirm_record

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec
    from tuner.study.data import StudyData
    from tuner.study.record import StudyRecord

DRIVER_GONE = "cut off: the process that ran the study ended without a word"
"""Reason of trials that a driver left running."""

DRIVER_FAILED = "cut off: the study ended by an error, or was ended at once"
"""Reason of trials that ran when it did."""


def close_records(record: StudyRecord, spec: StudySpec, reason: str) -> None:
    """Put a study's records right after a driver that was cut off; the caller holds its lock."""
    record.close_running(reason)
    confirmation = confirm_record(record.folder, spec)
    if confirmation is not None:
        confirmation.close_running(reason)
        confirmation.close()


def describe_study(record: StudyRecord, name: str, spec: StudySpec, data: StudyData) -> None:
    """Say in one of a study's records what the study is, for Optuna's dashboard.

    Args:
        record: The record.
        name: Name of the study.
        spec: Its spec, as its folder has it.
        data: Its data.
    """
    attributes = {
        "segtune": version("segtune"),
        "study": name,
        "data": str(data.source),
        "data_fingerprint": data.fingerprint,
        "spec": spec.to_yaml(),
    }
    record.describe(spec.metric, attributes)
