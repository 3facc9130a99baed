"""Schedulers: what stops or pauses a weak trial early.

Rungs live in the study's record, not in the scheduler: they are full again as soon as a
study is resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tuner.schedulers.asha import PromotionAsha, RungPolicy, StoppingAsha
from tuner.schedulers.median import MedianStopping
from tuner.schedulers.pasha import Pasha
from tuner.schedulers.policy import Action, Decision, Policy
from tuner.schedulers.record_scheduler import RecordScheduler

if TYPE_CHECKING:
    from tuner.record import StudyRecord
    from tuner.spec import StudySpec

__all__ = [
    "SCHEDULERS",
    "Action",
    "Decision",
    "MedianStopping",
    "Pasha",
    "Policy",
    "PromotionAsha",
    "RecordScheduler",
    "StoppingAsha",
    "build_policy",
]


def _of_rungs(kind: type[RungPolicy], record: StudyRecord, spec: StudySpec) -> Policy:
    settings = spec.rung_settings
    return kind(
        record, spec.rungs(), settings.reduction_factor, settings.brackets, spec.search.seed
    )


def asha(record: StudyRecord, spec: StudySpec) -> Policy:
    """ASHA with the rungs of the spec, stopping or promoting."""
    promotion = spec.rung_settings.promotion
    return _of_rungs(PromotionAsha if promotion else StoppingAsha, record, spec)


def pasha(record: StudyRecord, spec: StudySpec) -> Policy:
    """Progressive ASHA with the rungs of the spec."""
    return _of_rungs(Pasha, record, spec)


def median(record: StudyRecord, spec: StudySpec) -> Policy:
    """Median stopping after the spec's grace period."""
    return MedianStopping(record, spec.rung_settings.grace_period)


def none(record: StudyRecord, spec: StudySpec) -> Policy:
    """Every trial trains to the full budget."""
    return Policy(record)


SCHEDULERS: dict[str, Callable[[StudyRecord, StudySpec], Policy]] = {
    "asha": asha,
    "pasha": pasha,
    "median": median,
    "none": none,
}


def build_policy(record: StudyRecord, spec: StudySpec) -> Policy:
    """The policy of the scheduler that the spec asks for."""
    return SCHEDULERS[spec.scheduler](record, spec)
