"""Schedulers: what stops or pauses a weak trial early.

Rungs live in the study's record, not in the scheduler: they are full again as soon as a
study is resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tuner.search.policies.asha import PromotionAsha, RungPolicy, StoppingAsha
from tuner.search.policies.hyperband import Hyperband
from tuner.search.policies.median import MedianStopping
from tuner.search.policies.pasha import Pasha
from tuner.search.policies.pb2 import PopulationBandits
from tuner.search.policies.pbt import PopulationTraining
from tuner.search.policies.policy import Action, Decision, Policy
from tuner.spec.brackets import hyperband_brackets
from tuner.spec.grid import planned_trials

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec
    from tuner.study.record import StudyRecord

__all__ = [
    "POLICIES",
    "Action",
    "Decision",
    "Hyperband",
    "MedianStopping",
    "Pasha",
    "Policy",
    "PopulationBandits",
    "PopulationTraining",
    "PromotionAsha",
    "RungPolicy",
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


def hyperband(record: StudyRecord, spec: StudySpec) -> Policy:
    """Hyperband with the brackets of the full budget and the spec's reduction factor."""
    factor = spec.rung_settings.reduction_factor
    brackets = hyperband_brackets(spec.max_epochs, factor)
    return Hyperband(record, brackets, factor, planned_trials(spec))


def _of_population(kind: type[PopulationTraining], record: StudyRecord, spec: StudySpec) -> Policy:
    return kind(record, spec.pbt, planned_trials(spec), spec.max_epochs, spec.search.seed)


def pbt(record: StudyRecord, spec: StudySpec) -> Policy:
    """Population based training with the spec's section `pbt`."""
    return _of_population(PopulationTraining, record, spec)


def pb2(record: StudyRecord, spec: StudySpec) -> Policy:
    """Population based bandits with the spec's section `pbt`."""
    return _of_population(PopulationBandits, record, spec)


def none(record: StudyRecord, spec: StudySpec) -> Policy:
    """Every trial trains to the full budget."""
    return Policy(record)


POLICIES: dict[str, Callable[[StudyRecord, StudySpec], Policy]] = {
    "asha": asha,
    "pasha": pasha,
    "hyperband": hyperband,
    "median": median,
    "pbt": pbt,
    "pb2": pb2,
    "none": none,
}


def build_policy(record: StudyRecord, spec: StudySpec) -> Policy:
    """The policy of the scheduler that the spec asks for."""
    return POLICIES[spec.scheduler](record, spec)
