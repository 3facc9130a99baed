"""The records of a study when it begins and ends: its own, and that of its confirmation."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from tuner.study.confirmation import open_confirmation

if TYPE_CHECKING:
    from tuner.study.data import StudyData
    from tuner.study.record import StudyRecord
    from tuner.study.study import Study

DRIVER_GONE = "cut off: the process that ran the study ended without a word"
"""Reason of trials that a driver left running."""

DRIVER_FAILED = "cut off: the study ended by an error, or was ended at once"
"""Reason of trials that ran when it did."""


def close_records(study: Study, reason: str) -> None:
    """Close what a driver that was cut off left running; the caller holds the study's lock."""
    study.record.close_running(reason)
    confirmation = open_confirmation(study)
    if confirmation is not None:
        confirmation.record.close_running(reason)
        confirmation.record.close()


def describe_study(study: Study, record: StudyRecord, data: StudyData) -> None:
    """Say in one of a study's records what the study is, for Optuna's dashboard.

    Args:
        study: The study, with the spec that its folder has.
        record: The record: its own, or that of its confirmation.
        data: Its data.
    """
    attributes = {
        "segtune": version("segtune"),
        "study": study.name,
        "data": str(data.source),
        "data_fingerprint": data.fingerprint,
        "spec": study.spec.to_yaml(),
    }
    record.describe(study.spec.metric, attributes)
